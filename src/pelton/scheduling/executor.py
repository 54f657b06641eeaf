"""Where batches run: on the event loop when they are very short, else in one of a few threads (slots).

The slots are shared by all models of a process; the lane whose first call has the earliest deadline goes first. A
batch under about 0.7 ms runs on the loop itself, since a hop to a thread and back costs small models more than it frees. Runtimes
release the interpreter lock, so a batch in a thread leaves the loop free to read and write.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, Protocol

from pelton.errors import ModelFailed
from pelton.scheduling.batcher import Batcher
from pelton.types import Batch, Call, Outcome

log = logging.getLogger(__name__)

REST_SECONDS: Final = 0.003  # that the loop leaves the core to the models while it can only refuse
INLINE_BUDGET: Final = 0.001  # seconds of model time on the loop before sockets are looked at again

Job = Callable[[], None]


class Lane(Protocol):
    """What the executor needs of a model's scheduler. Only `run` is called in a thread."""

    batcher: Batcher
    ready: bool  # the executor knows that something waits here
    running: int  # batches in progress
    most: int  # of them at the same time

    def run(self, batch: Batch) -> list[Outcome]:
        """Blocking; one outcome per call, in order; never raises."""

    def finish(self, batch: Batch, outcomes: list[Outcome], now: float) -> None:
        """The batch came back."""

    def drop(self, call: Call, now: float) -> None:
        """The call left the queue because it could not be answered in time any more."""


class Threads:
    """Threads that run jobs, started as they are needed."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self, job: Job) -> None:
        if len(self._threads) < self._most:
            self._threads.append(threading.Thread(target=self._work, name="pelton-slot", daemon=True))
            self._threads[-1].start()
        self._jobs.put(job)

    def close(self) -> None:
        """Ends the threads once their current job is done."""
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class Executor:
    """The device slots of one process. `slots`: batches that may run in threads at the same time.

    `threads` is where they run; tests give one that needs no thread.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        slots: int,
        clock: Callable[[], float],
        threads: Threads | None = None,
    ) -> None:
        self.slots = slots
        self.full = False  # every slot is taken
        self._loop = loop
        self._clock = clock
        self._ready: list[Lane] = []
        self._busy: dict[int, float] = {}  # id of a running batch -> when it should be done
        self._pumping = False
        self._returning = threading.Event()  # a batch has come back from a thread
        self._timers: dict[int, asyncio.TimerHandle] = {}  # of lanes that wait for company, by id of the lane
        self._threads = threads or Threads(slots)

    def wake(self, lane: Lane) -> None:
        """`lane` has something to run."""
        if lane.ready:
            return
        lane.ready = True
        self._ready.append(lane)
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def pump(self) -> None:
        """Runs what waits now, not in the next turn of the loop."""
        if self._ready:
            self._pump()

    def rest(self) -> None:
        """Lets batches run undisturbed for a moment, or until one is done: for a loop that has only refused of late.

        Where models and the loop share a core, every request that wakes the loop costs the model its caches; requests
        that are refused together cost it less. New calls wait at most `REST_SECONDS` longer for their refusal."""
        if self.full:
            self._returning.wait(REST_SECONDS)

    def free(self, now: float) -> list[float]:
        """When each slot is expected to be free, ascending.

        A batch that is late is taken to be half through with being late: where a model hangs, no queue grows behind it.
        """
        free = sorted([end if end > now else 2.0 * now - end for end in self._busy.values()])
        return [now] * (self.slots - len(free)) + free

    def close(self) -> None:
        """Ends the threads once their current batch is done."""
        for timer in self._timers.values():
            timer.cancel()
        self._threads.close()

    def _pump(self) -> None:
        """Runs what can run now. Short batches follow each other here, until the sockets need a turn."""
        now = self._clock()
        end = now + INLINE_BUDGET
        blocked: list[Lane] = []
        try:
            while self._ready and now < end:
                lane = self._next_lane()
                inline = runs_inline(lane.batcher)
                if inline or (not self.full and lane.running < lane.most):
                    self._run_one(lane, now, inline)
                    now = self._clock()
                else:
                    blocked.append(lane)
        finally:  # whatever a lane does, the others go on
            self._pumping = bool(self._ready)
            self._ready.extend(blocked)  # _returned looks again when a slot is free
            if self._pumping:
                self._loop.call_soon(self._pump)

    def _run_one(self, lane: Lane, now: float, inline: bool) -> None:
        """Takes and starts one batch of a lane."""
        take = lane.batcher.take(now)
        for call in take.late:
            lane.drop(call, now)
        if take.wait_until:
            lane.ready = False  # a new call or the timer wakes it
            self._wake_later(lane, take.wait_until - now)
            return
        if lane.batcher.rows:
            self._ready.append(lane)
        else:
            lane.ready = False
        batch = take.batch
        if batch is not None:
            lane.running += 1
            if inline:
                self._run_inline(lane, batch)
            else:
                self._run_in_thread(lane, batch)

    def _wake_later(self, lane: Lane, seconds: float) -> None:
        timer = self._timers.pop(id(lane), None)
        if timer is not None:
            timer.cancel()
        self._timers[id(lane)] = self._loop.call_later(seconds, self._waited, lane)

    def _waited(self, lane: Lane) -> None:
        del self._timers[id(lane)]
        self.wake(lane)

    def _next_lane(self) -> Lane:
        """The lane whose first call has the earliest deadline, taken out of the ready list."""
        ready = self._ready
        if len(ready) == 1:
            return ready.pop()
        index = min(range(len(ready)), key=lambda i: _deadline(ready[i].batcher.head()))
        return ready.pop(index)

    def _run_inline(self, lane: Lane, batch: Batch) -> None:
        outcomes = lane.run(batch)
        lane.running -= 1
        lane.batcher.inline.ran_inline(batch.rows, batch.run_seconds)
        lane.finish(batch, outcomes, self._clock())

    def _run_in_thread(self, lane: Lane, batch: Batch) -> None:
        self._busy[id(batch)] = batch.started + lane.batcher.expected(batch)
        self.full = len(self._busy) >= self.slots
        loop, returned, resting = self._loop, self._returned, self._returning

        def job() -> None:
            try:
                outcomes = lane.run(batch)
            except BaseException as error:
                # The last boundary of a thread: code that calls sys.exit() must not take a slot with it.
                log.exception("a batch ended its thread")
                failure = ModelFailed(f"the model ended its thread: {type(error).__name__}")
                outcomes = [failure for _ in batch.calls]
            resting.set()
            loop.call_soon_threadsafe(returned, lane, batch, outcomes)

        self._threads.start(job)

    def _returned(self, lane: Lane, batch: Batch, outcomes: list[Outcome]) -> None:
        self._returning.clear()
        del self._busy[id(batch)]
        self.full = False
        lane.running -= 1
        lane.batcher.inline.ran_in_thread()
        lane.finish(batch, outcomes, self._clock())
        if self._ready and not self._pumping:
            # Behind the reads of this turn of the loop: callers that come right back join the next batch.
            self._pumping = True
            self._loop.call_soon(self._pump)


def _deadline(call: Call | None) -> float:
    return call.deadline if call is not None else float("inf")


def runs_inline(batcher: Batcher) -> bool:
    """Whether the batch that would leave now is short enough for the event loop."""
    inline_rows = batcher.inline_rows
    return inline_rows >= batcher.cap or 0 < batcher.rows <= inline_rows or (not batcher.rows and inline_rows > 0)
