"""A lane in simulated time: a loop whose clock moves from one event to the next, and an engine with the speed of a small
model on two cores."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pelton.engine.bounds import Bounds
from pelton.engine.generation import Generation
from pelton.engine.lane import Lane
from pelton.errors import PeltonError
from pelton.runtimes.language import Facts, Order, Speed
from pelton.runtimes.step_engine import LmOutput
from pelton.testing.echo_engine import EchoEngine, EchoOptions

PROMPT_TOKEN = 0.0011  # seconds


def decode(streams: int) -> float:
    """Seconds of a step in which so many streams make a token: 20 ms alone, 65 ms for sixteen."""
    return 0.017 + 0.003 * streams if streams else 0.0


def one_by_one(streams: int) -> float:
    """Of an engine to which a crowd brings nothing: 12 ms for each."""
    return 0.012 * streams


class Later:
    def __init__(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.call: Callable[..., Any] | None = call
        self.arguments = arguments

    def cancel(self) -> None:
        self.call = None


class Loop:
    """As much of an event loop as a lane needs."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Later]] = []
        self._number = 0

    def call_later(self, seconds: float, call: Callable[..., Any], *arguments: Any) -> Later:
        self._number += 1
        later = Later(call, arguments)
        heapq.heappush(self._events, (self.now + seconds, self._number, later))
        return later

    def call_soon(self, call: Callable[..., Any], *arguments: Any) -> Later:
        return self.call_later(0.0, call, *arguments)

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, later = heapq.heappop(self._events)
            if later.call is not None:
                later.call(*later.arguments)
        self.now = until


class Engine:
    """A `LanguageEngine` that takes requests as they come. `speed`: how much faster than the machine above; `step`: the
    seconds of a step by its streams."""

    pids: tuple[int, ...] = ()
    restarts = 0

    def __init__(self, loop: Loop, streams: int, speed: float = 1.0, decode: Callable[[int], float] = decode) -> None:
        self.loop, self.speed, self._decode = loop, speed, decode
        told = Speed(speed / PROMPT_TOKEN, {count: decode(count) / speed for count in (1, 4, streams)})
        self.facts = Facts("simulated", 8192, streams, 0, told, fair=False)
        self.engine = EchoEngine(EchoOptions(seconds=1.0, prefill_tokens=256), streams, 8192, lambda _: None)
        self._busy = False

    def attach(self, loop: Any, listener: Any) -> None:
        self.listener = listener

    def add(self, order: Order) -> None:
        self.engine.add(order.request)
        self._go_on()

    def cancel(self, request_id: str) -> None:
        self.engine.cancel(request_id)
        self._go_on()

    def close(self) -> None: ...

    def _go_on(self) -> None:
        if not self._busy and self.engine.has_work():
            self._busy = True
            self.loop.call_soon(self._step)

    def _step(self) -> None:
        report = self.engine.step()
        streams = sum(1 for share in report.shares if share.decode_tokens)
        seconds = (self._decode(streams) + PROMPT_TOKEN * report.prefill_tokens) / self.speed
        self.loop.call_later(seconds, self._told, replace(report, seconds=seconds))

    def _told(self, report: Any) -> None:
        self._busy = False
        self.listener.reported(report)
        self._go_on()


class Caller:
    """Asks again and again, one question at a time. `first` and `each`: seconds to the first token, and per token."""

    def __init__(self, house: House, tenant: str, prompt: int, most: int, pause: float = 0.0) -> None:
        self.first: list[float] = []
        self.each: list[float] = []
        self.errors: list[PeltonError] = []
        self._house, self._tenant, self._pause = house, tenant, pause
        self._prompt, self._most = prompt, most
        self._asked = 0
        self._wants = True
        house.loop.call_soon(self._ask)

    def ask_no_more(self) -> None:
        self._wants = False

    def _ask(self) -> None:
        if not self._wants:
            return
        loop, self._at = self._house.loop, []
        self._asked += 1
        prompt = (hash(self._tenant) % 1000, self._asked, *range(self._prompt - 2))
        self._began = loop.now
        generation = Generation(prompt, self._most, self._heard, self._done, loop.now, tenant=self._tenant)
        self._house.lane.submit(generation)

    def _heard(self, output: LmOutput) -> None:
        self._at.append(self._house.loop.now)

    def _done(self, error: PeltonError | None) -> None:
        if error is None:
            self.first.append(self._at[0] - self._began)
            self.each.append((self._at[-1] - self._at[0]) / (len(self._at) - 1))
        else:
            self.errors.append(error)
        self._house.loop.call_later(self._pause if error is None else 1.0, self._ask)


class House:
    """A machine with one lane."""

    def __init__(
        self, streams: int = 16, speed: float = 1.0, decode: Callable[[int], float] = decode, **bounds: Any
    ) -> None:
        self.loop = Loop()
        self.closed = 0
        engine = Engine(self.loop, streams, speed, decode)
        self.lane = Lane("m", engine, Bounds(**bounds), self.loop, lambda: self.loop.now, self._close)  # type: ignore[arg-type]

    def _close(self, stream: Any) -> None:
        self.closed += 1
