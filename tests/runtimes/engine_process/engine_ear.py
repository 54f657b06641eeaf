"""A listener that remembers, orders, and a loop around one engine: shared by the tests of this folder."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from pelton.runtimes.language import Facts, LanguageEngine, Order
from pelton.runtimes.step_engine import LmOutput, LmRequest, StepReport

LIMIT = 20.0  # seconds that a test waits for anything


class Ear:
    """A listener that remembers. `until` waits for a condition on the loop; nothing sleeps."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []
        self.outputs: dict[str, list[LmOutput]] = defaultdict(list)
        self.lives: list[str] = []  # "lost" and "back", in order
        self.reasons: list[str] = []
        self._changed = asyncio.Event()

    def reported(self, report: StepReport) -> None:
        self.reports.append(report)
        for output in report.outputs:
            self.outputs[output.request_id].append(output)
        self._changed.set()

    def lost(self, reason: str) -> None:
        self.lives.append("lost")
        self.reasons.append(reason)
        self._changed.set()

    def back(self, facts: Facts) -> None:
        self.lives.append("back")
        self._changed.set()

    def tokens(self, request_id: str) -> list[int]:
        return [token for output in self.outputs[request_id] for token in output.tokens]

    def finish(self, request_id: str) -> str | None:
        """The finish reason, which only the last output has."""
        outputs = self.outputs[request_id]
        assert all(output.finish_reason is None for output in outputs[:-1]), outputs
        return outputs[-1].finish_reason if outputs else None

    def error(self, request_id: str) -> str:
        return self.outputs[request_id][-1].error

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def finished(self, *request_ids: str) -> None:
        await self.until(lambda: all(self.finish(request_id) for request_id in request_ids))


def order(request_id: str, prompt: tuple[int, ...] = (5, 6, 7), max_tokens: int = 4, **more: Any) -> Order:
    grammar = more.pop("grammar", None)
    return Order(LmRequest(request_id, prompt, max_tokens, **more), grammar)


def talk(engine: LanguageEngine, work: Callable[[LanguageEngine, Ear], Any]) -> Ear:
    """Runs `work(engine, ear)` on a loop with the engine attached, then closes the engine on it."""

    async def main() -> Ear:
        ear = Ear()
        engine.attach(asyncio.get_running_loop(), ear)
        await work(engine, ear)
        await asyncio.to_thread(engine.close)
        return ear

    return asyncio.run(main())
