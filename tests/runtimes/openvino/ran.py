"""Runs an engine dry and keeps what it said."""

from __future__ import annotations

from pelton.runtimes.openvino.engine import OpenVinoEngine
from pelton.runtimes.step_engine import FinishReason, LmOutput, LmRequest, StepReport


class Ran:
    """What came of it."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.outputs: list[LmOutput] = []
        self.reports: list[StepReport] = []

    def take(self, report: StepReport) -> None:
        self.reports.append(report)
        for output in report.outputs:
            self.outputs.append(output)
            self.tokens.setdefault(output.request_id, []).extend(output.tokens)

    def finish(self, request_id: str) -> FinishReason | None:
        ends = [o.finish_reason for o in self.outputs if o.request_id == request_id and o.finish_reason]
        assert len(ends) <= 1, "a request ended twice"
        return ends[0] if ends else None

    def cached(self) -> int:
        return sum(share.cached_tokens for report in self.reports for share in report.shares)


def run(engine: OpenVinoEngine, *requests: LmRequest, steps: int = 100_000) -> Ran:
    """Adds the requests and steps until nothing is left, or that often. Checks the scheduler at each step."""
    ran = Ran()
    for request in requests:
        engine.add(request)
    while engine.has_work() and len(ran.reports) < steps:
        ran.take(engine.step())
        engine.scheduler.check()
    return ran
