"""One model's lane: admits calls, forms batches, has them run, hands every outcome on. The effects are the executor's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from pelton.errors import DeadlineExceeded, Overloaded, PeltonError
from pelton.scheduling.admission import predicted_finish, retry_after
from pelton.scheduling.batcher import Batcher
from pelton.scheduling.executor import Executor, runs_inline
from pelton.types import Batch, Call, Outcome

RunBatch = Callable[[Batch], list[Outcome]]  # blocking; one outcome per call, in order; never raises
SettleBatch = Callable[[Batch, list[Outcome]], None]
SettleOne = Callable[[Call, PeltonError], None]


ANY = 1 << 30


class Scheduler:
    """The lane of one replica. All methods belong to the event loop; only `run` may be called in a thread."""

    def __init__(
        self, batcher: Batcher, executor: Executor, run: RunBatch, settle: SettleBatch, settle_one: SettleOne
    ) -> None:
        self.batcher = batcher
        self.run = run
        self._settle = settle
        self._settle_one = settle_one
        self.ready = False
        self.running = 0
        self.most = ANY  # batches in slots at the same time
        self.expected = 0  # calls that are being prepared elsewhere and will be submitted
        self._executor = executor
        self._drained: asyncio.Future[None] | None = None

    def submit(self, call: Call, now: float, returned_after: float = 0.0) -> None:
        """Queues a call, or raises Overloaded when its answer would be late."""
        batcher = self.batcher
        if self.running or batcher.rows + call.rows > batcher.cap or self._executor.full:
            self.admit(call, now)  # else the call joins the next batch, which is bounded to half of the target
        call.queued = now
        batcher.push(call, returned_after)
        if not self.ready:
            self._executor.wake(self)

    def submit_all(self, calls: list[Call], now: float, returned_after: list[float]) -> bool:
        """Queues calls of one row that came together, all of the usual priority and with the same deadline. False: not
        all would be in time, so each must be asked for alone."""
        batcher, rows = self.batcher, len(calls)
        if (self.running or batcher.rows + rows > batcher.cap or self._executor.full) and (
            self._finish(rows, 0, now) > calls[0].deadline
        ):
            return False
        batcher.push_all(calls, now, returned_after)
        if not self.ready:
            self._executor.wake(self)
        return True

    def enqueue(self, call: Call, now: float, returned_after: float = 0.0) -> None:
        """Queues a call that was admitted before, as a piece of a larger one."""
        call.queued = now
        self.batcher.push(call, returned_after)
        if not self.ready:
            self._executor.wake(self)

    def cancel(self, call: Call) -> None:
        """Takes a queued call out."""
        self.batcher.remove(call)
        self.check_drained()

    def expected_seconds(self, call: Call, now: float) -> float:
        """How long `call` would take behind what is queued and runs; 0: nothing does. Asked before it is prepared."""
        if not (self.batcher.rows or self.running):
            return 0.0
        return max(0.0, self._finish(1, call.priority, now) - now)

    def behind(self) -> bool:
        """Whether more waits than the next batch takes: only then can a call of one row be too many."""
        return self.batcher.rows >= self.batcher.full_rows and (self.running > 0 or self._executor.full)

    def one_more(self, now: float) -> float:
        """When a call of one row would be answered."""
        return self._finish(1, 0, now)

    def finish(self, batch: Batch, outcomes: list[Outcome], now: float) -> None:
        """A batch came back: learn from it, then settle its calls."""
        batch.finished = now
        self.batcher.finished(batch, now - batch.started, now)
        self._settle(batch, outcomes)
        if self._drained is not None:
            self.check_drained()

    async def drained(self) -> None:
        """Returns when nothing is expected, waits or runs here. Called once, when no new calls come."""
        if self.running or self.batcher.rows or self.expected:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def check_drained(self) -> None:
        """Something left this lane: tells who waits for the last."""
        if self._drained is not None and not (self.running or self.batcher.rows or self.expected):
            self._drained.set_result(None)
            self._drained = None

    def drop(self, call: Call, now: float) -> None:
        """The call waited until its answer could not be in time any more."""
        self.check_drained()
        waited = (now - call.received) * 1e3
        if call.own_deadline:
            self._settle_one(
                call, DeadlineExceeded(f"the call's own deadline passed after {waited:.0f} ms in the queue")
            )
            return
        self._settle_one(
            call,
            Overloaded(
                f"the call waited {waited:.0f} ms and would have been late; try again",
                retry_after=self.batcher.full_seconds,
                reason="late",
            ),
        )

    def free(self, now: float) -> Sequence[float]:
        """When each slot that this lane may use should be free, ascending."""
        free = self._executor.free(now)
        if self.most >= len(free):
            return free
        return free[-self.most :] if self.running >= self.most else free[: self.most]

    def admit(self, call: Call, now: float) -> None:
        """Raises Overloaded when the answer would be late."""
        finish = self._finish(call.rows, call.priority, now)
        if finish > call.deadline:
            wait = retry_after(now, finish, call.deadline)
            raise Overloaded(
                f"the queue of this model is full: an answer would take {(finish - now) * 1e3:.0f} ms, "
                f"its target is {(call.deadline - call.received) * 1e3:.0f} ms; try again in {wait * 1e3:.0f} ms",
                retry_after=wait,
            )

    def _finish(self, rows: int, priority: int, now: float) -> float:
        batcher = self.batcher
        # The loop is one slot, and free: it is executing this.
        free = (now,) if runs_inline(batcher) else self.free(now)
        cycle = batcher.full_seconds + batcher.gap
        return predicted_finish(now, free, batcher.rows_ahead(priority), rows, batcher.full_rows, cycle)
