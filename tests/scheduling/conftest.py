"""A discrete-event simulator around the real scheduler: the real batcher, admission, executor and latency model, on a
loop whose time is a number. The same seed gives the same run; nothing sleeps and nothing measures."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from pelton.errors import PeltonError, Refused
from pelton.scheduling import Batcher, BatchPolicy, Executor, LatencyModel, LengthBatcher, LengthScheduler, Scheduler
from pelton.types import SETTLED, Batch, Call

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualLoop:
    """What the executor needs of an event loop. `now` moves from event to event."""

    def __init__(self) -> None:
        self.now = 0.0
        self.service = 0.0  # what the job that just "ran in a thread" took
        self._events: list = []
        self._number = itertools.count()

    def at(self, when: float, call: Callable, *args) -> Timer:
        timer = Timer()
        heapq.heappush(self._events, (max(when, self.now), next(self._number), timer, call, args))
        return timer

    def call_soon(self, call: Callable, *args) -> Timer:
        return self.at(self.now, call, *args)

    def call_later(self, delay: float, call: Callable, *args) -> Timer:
        return self.at(self.now + delay, call, *args)

    def call_soon_threadsafe(self, call: Callable, *args) -> Timer:
        return self.at(self.now + self.service, call, *args)

    def run(self, until: float = float("inf")) -> None:
        while self._events and self._events[0][0] <= until:
            when, _, timer, call, args = heapq.heappop(self._events)
            if not timer.cancelled:
                self.now = max(self.now, when)
                call(*args)


class Machine:
    """Slots whose models take exactly as long as they are told.

    `settle_seconds`: what each answer costs the loop; a refusal costs a quarter of that.
    """

    def __init__(self, slots: int = 1, settle_seconds: float = 0.0) -> None:
        self.loop = VirtualLoop()
        self.settle_seconds = settle_seconds
        self.executor = Executor(self.loop, slots, lambda: self.loop.now, threads=self)  # type: ignore[arg-type]
        self.in_thread = False

    def start(self, job: Callable[[], None]) -> None:
        self.in_thread = True
        job()
        self.in_thread = False

    def close(self) -> None:
        pass

    def lane(self, seconds: Callable[[int], float], **kwargs) -> Lane:
        return Lane(self, seconds, **kwargs)


class Lane:
    """One model: its scheduler, and what became of its calls. `seconds(rows)` is the true S(b), which may change."""

    def __init__(
        self,
        machine: Machine,
        seconds: Callable[[int], float],
        target: float = 0.1,
        max_rows: int = 128,
        objective: str = "latency",
        believed: Callable[[int], float] | None = None,
        admission: bool = True,
        sizes: Iterable[int] = SIZES,
    ) -> None:
        self.machine = machine
        self.loop = machine.loop
        self.seconds = seconds
        self.target = target
        self.admission = admission
        believed = believed or seconds
        latency = LatencyModel([(b, believed(b)) for b in sizes if b <= max_rows])
        self.make(BatchPolicy(target, max_rows, objective), latency)
        self.batches: list[tuple[float, list[Call], int, str]] = []
        self.answered: list[Call] = []
        self.failed: list[Call] = []
        self.finished: dict[int, float] = {}
        self.decided: dict[int, float] = {}
        self.busy = 0.0
        self.wrongs = 0

    def make(self, policy: BatchPolicy, latency: LatencyModel) -> None:
        self.batcher = Batcher(policy, latency)
        self.scheduler = Scheduler(self.batcher, self.machine.executor, self._run, self._settle, self._settle_one)

    def took(self, batch: Batch) -> float:
        return self.seconds(batch.rows)

    # ---- the replica and the engine, as far as the scheduler sees them

    def _run(self, batch: Batch) -> list:
        took = self.took(batch)
        self.busy += took
        batch.run_seconds = took
        self.batches.append((self.loop.now, list(batch.calls), batch.rows, batch.reason))
        if self.machine.in_thread:
            self.loop.service = took
        else:
            self.loop.now += took
        return [[call] for call in batch.calls]

    def _settle(self, batch: Batch, outcomes: list) -> None:
        for call, outcome in zip(batch.calls, outcomes, strict=True):
            call.batch = batch
            self._settle_one(call, outcome)

    def _settle_one(self, call: Call, outcome: object) -> None:
        assert call.state != SETTLED, "settled twice"
        call.state = SETTLED
        call.outcome = outcome
        refused = isinstance(outcome, Refused)
        self.loop.now += self.machine.settle_seconds / (4 if refused else 1)
        self.finished[id(call)] = self.loop.now
        (self.failed if isinstance(outcome, PeltonError) else self.answered).append(call)
        call.done(call)

    def send(
        self,
        rows: int = 1,
        priority: int = 0,
        deadline: float | None = None,
        bucket: object = None,
        returned_after: float = 0.0,
        done: Callable[[Call], None] = lambda call: None,
        length: int = 0,
    ) -> Call:
        """A call that arrives now. `deadline`: seconds that its caller allows."""
        now = self.loop.now
        own = deadline is not None
        allowed = (deadline if own else self.target) if self.admission or own else 1e9
        call = Call([], rows, done, now, now + allowed, own_deadline=own, priority=priority, bucket=bucket)
        call.length = length
        if not self.admission:
            self.scheduler.enqueue(call, now, returned_after)
            return call
        try:
            self.scheduler.submit(call, now, returned_after)
        except Refused as error:
            self.decided[id(call)] = self.loop.now - now
            self._settle_one(call, error)
        return call

    # ---- traffic

    def arrive(self, times: Iterable[float], **kwargs) -> None:
        """One call at each time."""

        def next_one(rest: Iterator[float]) -> None:
            self.send(**kwargs)
            for when in rest:
                if when > self.loop.now:
                    self.loop.at(when, next_one, rest)
                    return
                self.send(**kwargs)  # came while the loop was busy: all sockets are read before a batch is formed

        rest = iter(times)
        self.loop.at(next(rest), next_one, rest)

    def clients(self, count: int, think: float, until: float, seed: int = 1) -> None:
        """`count` callers that each come back about `think` seconds after their answer (0.5 to 1.5 times)."""
        dice = random.Random(seed)

        def answered(call: Call) -> None:
            if self.loop.now < until:
                pause = think * dice.uniform(0.5, 1.5)
                self.loop.call_later(pause, lambda: self.send(returned_after=pause, done=answered))

        for _ in range(count):
            self.loop.at(dice.uniform(0, 0.02), lambda: self.send(done=answered))

    def result(self, since: float = 0.0) -> SimpleNamespace:
        """Figures of the calls that arrived at or after `since`, in seconds and per second."""
        times = np.array([self.finished[id(c)] - c.received for c in self.answered if c.received >= since] or [0.0])
        good = int((times <= self.target).sum()) if self.answered else 0
        batches = [rows for start, _, rows, _ in self.batches if start >= since]
        span = max(self.loop.now - since, 1e-9)
        return SimpleNamespace(
            answered=len(times),
            p50=float(np.quantile(times, 0.5)),
            p99=float(np.quantile(times, 0.99)),
            mean=float(times.mean()),
            goodput=good / span,
            rate=len(times) / span,
            mean_batch=float(np.mean(batches)) if batches else 0.0,
            utilization=self.busy / span,
            refused=len(self.failed),
        )


class LengthLane(Lane):
    """A model whose rows differ in length. `seconds(padded tokens)` is the true S; `fifo`: as a lane would do it that
    knows rows only."""

    def make(self, policy: BatchPolicy, latency: LatencyModel) -> None:
        self.batcher = LengthBatcher(policy, latency, longest=512)
        self.scheduler = LengthScheduler(self.batcher, self.machine.executor, self._run, self._settle, self._settle_one)

    def took(self, batch: Batch) -> float:
        assert batch.load == batch.rows * max(call.length for call in batch.calls)
        return self.seconds(batch.load)

    def texts(self, times: Iterable[float], lengths: Iterable[int], **kwargs) -> None:
        """One call of one row at each time."""
        for when, length in zip(times, lengths, strict=False):
            self.loop.at(when, lambda length=length: self.send(length=length, **kwargs))


def poisson(rate: float, count: int, seed: int = 1) -> list[float]:
    """Times of `count` arrivals, `rate` a second on average, nothing known of each other."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, count)
    return list(np.cumsum(gaps).tolist())


def bursts(rate: float, size: int, count: int, seed: int = 1) -> list[float]:
    """`size` calls at once, the bursts a Poisson process: the same average rate, much rougher."""
    return [time for time in poisson(rate / size, count // size, seed) for _ in range(size)]


def linear(t0: float, a: float) -> Callable[[int], float]:
    """S(b) = t0 + a*b, given in milliseconds."""
    return lambda rows: (t0 + a * rows) / 1e3


@pytest.fixture
def sim() -> SimpleNamespace:
    """The tools of this file."""
    return SimpleNamespace(Machine=Machine, LengthLane=LengthLane, poisson=poisson, bursts=bursts, linear=linear)
