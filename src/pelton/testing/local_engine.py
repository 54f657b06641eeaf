"""A language-model engine without a process: a step engine that the event loop itself steps. For tests of what is above.

engine = LocalEngine(EchoEngine(), echo_facts())
engine.kill("why")          # as if its process had died; `revive()` starts it again
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from pelton.runtimes.language import Facts, Listener, Order, Speed
from pelton.runtimes.step_engine import Grammar, GrammarSpec, LmOutput, StepEngine, StepReport
from pelton.testing.echo_engine import EchoEngine


def echo_facts(engine: str = "echo", streams: int = 16, context: int = 8192, step: float = 0.01) -> Facts:
    """What an echo engine could say of itself; `step` are seconds."""
    speed = Speed(2048 / step, {1: step, streams: step})
    return Facts(engine, context, streams, streams * context, speed, f"{engine}: a step takes {step:g} s", fair=False)


class LocalEngine:
    """A `LanguageEngine` (`pelton.runtimes.language`). `pause` seconds lie between two steps, beside what they take."""

    def __init__(
        self,
        engine: Callable[[], StepEngine] = EchoEngine,
        facts: Facts | None = None,
        grammars: Callable[[GrammarSpec], Grammar] | None = None,
        pause: float = 0.0,
    ) -> None:
        """`engine` makes a new one for every life."""
        self._make = engine
        self._engine: StepEngine | None = engine()
        self._facts = facts or echo_facts()
        self._grammars = grammars
        self._pause = pause
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: Listener | None = None
        self._next: asyncio.TimerHandle | None = None
        self._reason = "it was not attached yet"
        self._closed = False
        self.lives = 1

    @property
    def facts(self) -> Facts:
        return self._facts

    @property
    def pids(self) -> tuple[int, ...]:
        return ()

    @property
    def restarts(self) -> int:
        return self.lives - 1

    def attach(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        self._loop, self._listener = loop, listener

    def add(self, order: Order) -> None:
        request = order.request
        if self._engine is None or self._loop is None:
            self._fail(request.id, f"the engine is away: {self._reason}")
            return
        try:
            if order.grammar is not None:
                if self._grammars is None:
                    raise ValueError("this engine has no grammars")
                request = replace(request, grammar=self._grammars(order.grammar))
            self._engine.add(request)
        except ValueError as error:
            self._fail(request.id, str(error))
        self._go_on()

    def cancel(self, request_id: str) -> None:
        if self._engine is not None:
            self._engine.cancel(request_id)
            self._go_on()

    def close(self) -> None:
        self._closed = True
        self._engine = None

    def kill(self, reason: str = "killed by a test") -> None:
        """Its requests are forgotten; the listener is told."""
        self._engine, self._reason = None, reason
        if self._listener is not None and not self._closed:
            self._listener.lost(reason)

    def revive(self) -> None:
        """A new life, without requests."""
        self._engine = self._make()
        self.lives += 1
        if self._listener is not None and not self._closed:
            self._listener.back(self._facts)

    def _go_on(self) -> None:
        if self._next is None and self._loop is not None and self._engine is not None and self._engine.has_work():
            self._next = self._loop.call_later(self._pause, self._step)

    def _step(self) -> None:
        self._next = None
        if self._engine is None or not self._engine.has_work():
            return
        report = self._engine.step()
        self._tell(report)
        self._go_on()

    def _fail(self, request_id: str, why: str) -> None:
        output = LmOutput(request_id, (), "failed", error=why)
        if self._loop is not None:
            self._loop.call_soon(self._tell, StepReport(0, (), (output,), 0.0, (), 0, 0, 0))

    def _tell(self, report: StepReport) -> None:
        if self._listener is not None and not self._closed:
            self._listener.reported(report)
