"""What an engine said while it ran requests to their ends: shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable

from pelton.runtimes.step_engine import LmOutput, LmRequest, StepEngine, StepReport

STREAMS, KV_TOKENS = 4, 512


class Run:
    """What an engine said while it ran `requests` to their ends."""

    def __init__(
        self, engine: StepEngine, requests: list[LmRequest], after: Callable[[Run], None] | None = None
    ) -> None:
        self.engine = engine
        self.reports: list[StepReport] = []
        for request in requests:
            engine.add(request)
        while engine.has_work():
            self.reports.append(engine.step())
            if after is not None:
                after(self)

    def outputs(self, request_id: str) -> list[LmOutput]:
        return [output for report in self.reports for output in report.outputs if output.request_id == request_id]

    def tokens(self, request_id: str = "a") -> list[int]:
        return [token for output in self.outputs(request_id) for token in output.tokens]

    def finish(self, request_id: str = "a") -> str | None:
        outputs = self.outputs(request_id)
        assert all(output.finish_reason is None for output in outputs[:-1])
        return outputs[-1].finish_reason

    def error(self, request_id: str = "a") -> str:
        return self.outputs(request_id)[-1].error

    def total(self, what: str, request_id: str = "a") -> int:
        """Of the shares: "prefill_tokens", "decode_tokens" or "cached_tokens"."""
        return sum(getattr(s, what) for report in self.reports for s in report.shares if s.request_id == request_id)
