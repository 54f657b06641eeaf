"""The queue of one model and how batches leave it. Pure: no clock, no task, no thread; `now` is an argument.

Natural batching: when a slot is free, what waits runs at once, up to the batch size with the best rate. There is no
timer: in open-loop traffic one does not raise the rate that holds a p99 target, and it costs latency at low load.
Waiting pays in two cases only, both decided in `take`: callers that return right after their answer (a closed loop),
and an objective that prefers cost over latency.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import msgspec

from pelton.scheduling.inline import InlineGate
from pelton.scheduling.latency import LatencyModel
from pelton.types import QUEUED, RUNNING, Batch, Call

RECOMPUTE_EVERY: Final = 64  # batches between two looks at the best batch size
RETURN_RATE: Final = 0.05
MIN_FIXED_SHARE: Final = 0.5  # waiting for returning callers pays only where the fixed cost dominates
INLINE_WORTH: Final = 0.7  # of the best rate: what a batch on the loop may lose and still beat the hop to a thread
SLACK_SHARE: Final = {"latency": 0.0, "balanced": 0.5, "cost": 0.9}


class BatchPolicy(msgspec.Struct, frozen=True):
    """`target`: the latency target in seconds; `max_rows`: the hard bound of a batch; `objective`: see packages."""

    target: float = 0.2
    max_rows: int = 128
    objective: str = "latency"


class Take(msgspec.Struct):
    """What `take` decided: a batch to run, calls that became hopeless, or until when to wait for company."""

    batch: Batch | None = None
    late: list[Call] = []
    wait_until: float = 0.0


class Batcher:
    """Calls in, batches out. Urgent calls first, first come first served among equals."""

    def __init__(self, policy: BatchPolicy, latency: LatencyModel) -> None:
        self.policy = policy
        self.latency = latency
        self.inline = InlineGate(latency.points())
        self.rows = 0  # of live calls in the queue
        self._queues: dict[int, deque[Call]] = {0: deque()}
        self._order = [0]
        self._main = self._queues[0]
        self._until_recompute = 0
        self.cap = 1
        self.full_seconds = 0.0
        self.inline_rows = 0  # batches up to this size run on the event loop
        self._return_time = 0.0  # seconds after which answered callers come back, and how much that varies
        self._return_spread = 0.0
        self._returning = 0.0  # share of calls that come from a caller answered just before
        self._last_finish = 0.0
        self._last_calls = 0
        self.refresh()

    def refresh(self) -> None:
        """Looks again for the best batch size; done every few batches, since S(b) changes slowly."""
        policy = self.policy
        self.cap = self.latency.best_rows(policy.max_rows, policy.target / 2)
        self.inline_rows = self.inline.largest(self.cap)
        if 0 < self.inline_rows < self.cap and self._rate(self.inline_rows) > INLINE_WORTH * self._rate(self.cap):
            self.cap = self.inline_rows  # smaller batches on the loop beat larger ones in a thread
        self.full_seconds = self.latency.predict_high(self.cap)
        self._until_recompute = RECOMPUTE_EVERY

    def _rate(self, rows: int) -> float:
        return rows / self.latency.predict(rows)

    def push(self, call: Call, returned_after: float = 0.0) -> None:
        """Queues a call. `returned_after`: seconds since this caller's last answer, 0 for a new one."""
        call.state = QUEUED
        self.rows += call.rows
        if call.priority == 0:
            self._main.append(call)
        else:
            self._queue(call.priority).append(call)
        self._learn_return(returned_after)

    def remove(self, call: Call) -> None:
        """A queued call was settled elsewhere (its caller left); `take` will skip it."""
        self.rows -= call.rows

    def head(self) -> Call | None:
        """The call that would leave first."""
        for priority in self._order:
            queue = self._queues[priority]
            while queue and queue[0].state != QUEUED:
                queue.popleft()
            if queue:
                return queue[0]
        return None

    def take(self, now: float) -> Take:
        """What to do with a slot that is free at `now`."""
        head = self.head()
        if head is None:
            return Take()
        wait_until = self._wait(head, now)
        if wait_until > now:
            return Take(wait_until=wait_until)
        calls: list[Call] = []
        late: list[Call] = []
        reason = self._collect(calls, late, now)
        if not calls:
            return Take(late=late)
        rows = sum([call.rows for call in calls])
        return Take(batch=Batch(calls, rows, reason, started=now), late=late)

    def finished(self, batch: Batch, seconds: float, now: float) -> None:
        """A batch that `take` gave out has held its slot for `seconds`."""
        self.latency.observe(batch.rows, seconds)
        self._last_finish = now
        self._last_calls = len(batch.calls)
        self._until_recompute -= 1
        if self._until_recompute <= 0:
            self.refresh()

    def _queue(self, priority: int) -> deque[Call]:
        queue = self._queues.get(priority)
        if queue is None:
            queue = self._queues[priority] = deque()
            self._order = sorted(self._queues, reverse=True)
        return queue

    def _collect(self, calls: list[Call], late: list[Call], now: float) -> str:
        """Moves calls of one bucket from the queue into `calls`, at most `cap` rows; says why it stopped."""
        rows, bucket, cap = 0, None, self.cap
        shortest = self.latency.predict(1)
        for priority in self._order:
            queue = self._queues[priority]
            while queue:
                call = queue[0]
                if call.state != QUEUED:
                    queue.popleft()
                    continue
                if now + shortest > call.deadline and now > call.received + self.policy.target / 2:
                    queue.popleft()
                    self.rows -= call.rows
                    late.append(call)
                    continue
                if calls:
                    if rows + call.rows > cap:
                        return "full"
                    if call.bucket != bucket:
                        return "shape"
                bucket = call.bucket
                queue.popleft()
                rows += call.rows
                self.rows -= call.rows
                call.state = RUNNING
                calls.append(call)
        return "full" if rows >= cap else "idle"

    def _wait(self, head: Call, now: float) -> float:
        """Until when it pays to leave the slot empty; not after `now`: run at once."""
        if self.rows >= self.cap:
            return now
        share = SLACK_SHARE[self.policy.objective]
        if share:
            slack = head.deadline - self.full_seconds - head.queued
            return head.queued + share * slack
        return self._closed_loop_wait(now)

    def _closed_loop_wait(self, now: float) -> float:
        """Callers that were just answered come back together: wait for them if that saves more than it costs.

        The rule of batching.md: with n rows waiting and probability p that others come within w who would else wait a
        whole batch: n*w < p*(S - w). Too short a wait makes it worse, so the wait is the measured return time or none.
        """
        if self._returning < 0.5 or self._last_calls == 0 or self.latency.fixed_share() < MIN_FIXED_SHARE:
            return now
        until = self._last_finish + self._return_time + 2.0 * self._return_spread
        wait = until - now
        if wait <= 0.0 or self.rows >= self._last_calls:
            return now
        seconds = self.latency.predict(self.rows)
        missing = self._last_calls - self.rows
        if self.rows * wait < self._returning * missing * (seconds - wait):
            return until
        return now

    def _learn_return(self, returned_after: float) -> None:
        fresh = 0.0 < returned_after < self.full_seconds
        self._returning += RETURN_RATE * (fresh - self._returning)
        if fresh:
            error = returned_after - self._return_time
            self._return_time += RETURN_RATE * error
            self._return_spread += RETURN_RATE * (abs(error) - self._return_spread)

    def state(self) -> dict[str, Any]:
        """What the batcher knows, for people."""
        return {
            "rows_queued": self.rows,
            "batch_rows": self.cap,
            "batch_ms": round(self.full_seconds * 1e3, 3),
            "curve_ms": [(rows, round(seconds * 1e3, 4)) for rows, seconds in self.latency.points()],
        }
