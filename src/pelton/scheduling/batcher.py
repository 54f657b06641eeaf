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
PROBE_EVERY: Final = 4  # looks after which, where batches leave full, larger ones are tried for a moment...
PROBE_SELDOM: Final = 64  # ... more and more seldom while that changes nothing
PROBE_BATCHES: Final = 8
RETURN_RATE: Final = 0.05
GAP_RISE: Final = 0.2  # how fast a growing gap between batches is believed, and how slowly it is forgotten
GAP_FALL: Final = 0.02
FILL_RATE: Final = 0.2
MAX_SKIPPED: Final = 1024  # calls of other shapes that are passed over for one batch
PRIORITIES: Final = 8  # levels above and below the usual one
INLINE_WORTH: Final = 0.7  # of the best rate: what a batch on the loop may lose and still beat the hop to a thread
SLACK_SHARE: Final = {"latency": 0.0, "balanced": 0.5, "cost": 0.9}


class BatchPolicy(msgspec.Struct, frozen=True):
    """`target`: the latency target in seconds; `max_rows`: the hard bound of a batch; `objective`: see packages.

    `may_run_inline`: short batches may run on the event loop. Not for code of users: what was short when it was
    measured may block for seconds, and then nothing else would go on."""

    target: float = 0.2
    max_rows: int = 128
    objective: str = "latency"
    may_run_inline: bool = True


class Take(msgspec.Struct):
    """What `take` decided: a batch to run, calls that became hopeless, or until when to wait for company."""

    batch: Batch | None = None
    late: list[Call] = []
    wait_until: float = 0.0


class Level:
    """What waits with one priority: its calls, and the rows of those that still live.

    The rows of the usual priority are not counted: they are those of the batcher less those of the other levels.
    """

    __slots__ = ("calls", "rows")

    def __init__(self) -> None:
        self.calls: deque[Call] = deque()
        self.rows = 0


class Batcher:
    """Calls in, batches out. Urgent calls first, first come first served among equals."""

    def __init__(self, policy: BatchPolicy, latency: LatencyModel) -> None:
        self.policy = policy
        self.latency = latency
        self.inline = self._gate(latency.points() if policy.may_run_inline else [])
        self.rows = 0  # of live calls in the queue
        self._levels: dict[int, Level] = {0: Level()}
        self._order = [0]
        self._usual = self._levels[0].calls
        self._slack_share = SLACK_SHARE[policy.objective]
        self._earliest = float("inf")  # no deadline in the queue is before this
        self._until_recompute = 0
        self._looks = 0
        self._probe_every = PROBE_EVERY
        self._probe_at = PROBE_EVERY  # looks
        self._chosen = 0
        self._left_behind = False  # batches left full and others stayed, since the last look
        self.cap = 1
        self.full_rows = 1  # rows of a batch that leaves others behind: the cap, less where large calls do not fit
        self._fill = 1.0
        self.full_seconds = 0.0
        self.gap = 0.0  # seconds between two batches while calls wait: answers, sockets, other models in the slot
        self.inline_rows = 0  # batches up to this size run on the event loop
        self._return_time = 0.0  # seconds after which answered callers come back, and how much that varies
        self._return_spread = 0.0
        self._returning = 0.0  # share of calls that come from a caller answered just before
        self._returned = 0  # callers that came back since the last batch
        self._pushed = 0  # calls since the last look at who came back, ...
        self._returns: list[float] = []  # ... and of those who did, after how many seconds
        self._waited = False
        self._last_finish = 0.0
        self._last_calls = 0
        self.refresh()

    def refresh(self) -> None:
        """Looks again for the best batch size; done every few batches, since S(b) changes slowly."""
        policy, longest = self.policy, self.policy.target / 2
        self._looks += 1
        self._until_recompute = min(RECOMPUTE_EVERY, 8 * self._looks)
        before = self._chosen
        self._chosen = cap = self.latency.best_rows(policy.max_rows, longest, before)
        if cap != before:
            self._probe_every = PROBE_EVERY
        self.inline_rows = self.inline.largest(cap)
        if 0 < self.inline_rows < cap and self._rate(self.inline_rows) > INLINE_WORTH * self._rate(cap):
            cap = self.inline_rows  # smaller batches on the loop beat larger ones in a thread
        elif self._left_behind and self._looks >= self._probe_at:
            cap = self.latency.larger(cap, policy.max_rows, longest)  # what is known of larger batches may be outdated
            self._until_recompute = PROBE_BATCHES
            self._probe_at = self._looks + self._probe_every
            self._probe_every = min(2 * self._probe_every, PROBE_SELDOM)
        self._left_behind = False
        self._fill *= cap / self.cap
        self.cap = cap
        self._refill()

    def push(self, call: Call, returned_after: float = 0.0) -> None:
        """Queues a call. `returned_after`: seconds since this caller's last answer, 0 for a new one."""
        call.state = QUEUED
        self.rows += call.rows
        if call.priority:
            level = self._level(call.priority)
            level.rows += call.rows
            level.calls.append(call)
        else:
            self._usual.append(call)
        if self._slack_share and call.deadline < self._earliest:
            self._earliest = call.deadline
        self._pushed += 1
        if 0.0 < returned_after < self.full_seconds:
            self._returns.append(returned_after)

    def push_all(self, calls: list[Call], now: float, returned_after: list[float]) -> None:
        """`push` for calls of one row and of the usual priority that came together."""
        for call in calls:
            call.state = QUEUED
            call.queued = now
        self.rows += len(calls)
        self._usual.extend(calls)
        if self._slack_share:
            self._earliest = min(self._earliest, calls[0].deadline)
        self._pushed += len(calls)
        full = self.full_seconds
        self._returns += [seconds for seconds in returned_after if 0.0 < seconds < full]

    def remove(self, call: Call) -> None:
        """A queued call was settled elsewhere (its caller left); `take` will skip it."""
        self.rows -= call.rows
        if call.priority:
            self._level(call.priority).rows -= call.rows

    def rows_ahead(self, priority: int) -> int:
        """Rows that leave before a new call of this priority."""
        if len(self._order) == 1:
            return self.rows
        return sum([self._rows_of(p) for p in self._levels if p >= priority])

    def head(self) -> Call | None:
        """The call that would leave first."""
        for priority in self._order:
            calls = self._levels[priority].calls
            while calls and calls[0].state != QUEUED:
                calls.popleft()
            if calls:
                return calls[0]
        return None

    def take(self, now: float) -> Take:
        """What to do with a slot that is free at `now`."""
        head = self.head()
        if head is None:
            return Take()
        if self._pushed:
            self._learn_returns()
        wait_until = self._wait(head, now)
        if wait_until > now:
            self._waited = True
            return Take(wait_until=wait_until)
        self._learn_gap(head, now)
        calls: list[Call] = []
        late: list[Call] = []
        rows, reason = self._collect(calls, late, now)
        if not self.rows:
            self._earliest = float("inf")
        if not calls:
            return Take(late=late)
        return Take(batch=Batch(calls, rows, reason, started=now), late=late)

    def finished(self, batch: Batch, seconds: float, now: float) -> None:
        """A batch that `take` gave out has held its slot for `seconds`."""
        self.latency.observe(batch.rows, seconds)
        self._last_finish = now
        self._last_calls = len(batch.calls)
        if self._pushed:
            self._learn_returns()
        self._returned = 0
        self._until_recompute -= 1
        if self._until_recompute <= 0:
            self.refresh()
        else:
            self.full_seconds = self.latency.predict_high(self.full_rows)

    def expected(self, batch: Batch) -> float:
        """Seconds that a batch should hold its slot."""
        return self.latency.predict(batch.rows)

    def _gate(self, points: list[tuple[int, float]]) -> InlineGate:
        return InlineGate(points)

    def _rows_of(self, priority: int) -> int:
        if priority:
            return self._levels[priority].rows
        return self.rows - sum([level.rows for p, level in self._levels.items() if p])

    def _rate(self, rows: int) -> float:
        return rows / self.latency.predict(rows)

    def _level(self, priority: int) -> Level:
        """Priorities beyond the outermost levels share those: callers choose the number, memory stays bounded."""
        priority = max(-PRIORITIES, min(PRIORITIES, priority))
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = Level()
            self._order = sorted(self._levels, reverse=True)
        return level

    def _collect(self, calls: list[Call], late: list[Call], now: float) -> tuple[int, str]:
        """Moves calls of one shape from the queue into `calls`, at most `cap` rows; how many, and why it stopped."""
        rows, bucket, cap = 0, None, self.cap
        close = now + self.full_seconds  # deadlines after this need no thought
        skipped: list[Call] = []
        reason = "idle"
        for priority in self._order:
            level = self._levels[priority]
            waiting = level.calls
            popleft = waiting.popleft
            before = rows
            while waiting:
                call = popleft()
                if call.state != QUEUED:
                    continue
                if call.deadline <= close and self._hopeless(call, now):
                    level.rows -= call.rows if priority else 0
                    self.rows -= call.rows
                    call.state = RUNNING  # it is out of the queue: nobody takes it out again
                    late.append(call)
                    continue
                if not calls:
                    bucket = call.bucket
                elif call.bucket != bucket:
                    reason = "shape"
                    skipped.append(call)
                    if len(skipped) > MAX_SKIPPED:
                        break
                    continue
                elif rows + call.rows > cap:
                    reason = "full"
                    waiting.appendleft(call)
                    break
                rows += call.rows
                call.state = RUNNING
                calls.append(call)
            level.rows -= rows - before if priority else 0
            if skipped:
                waiting.extendleft(reversed(skipped))  # the oldest call stays first: its shape leaves next
                skipped.clear()
            if reason == "full":
                break
        self.rows -= rows
        if self.rows and calls and (reason != "idle" or rows >= cap):
            self._filled(rows, calls[0].priority)
        return rows, "full" if rows >= cap else reason

    def _hopeless(self, call: Call, now: float) -> bool:
        """Whether a call that waited cannot be answered in time any more, even by the batch that is being formed.

        One that did not wait behind a batch is always tried: what is believed of S(b) may be wrong, and is only learned
        from batches that run.
        """
        if call.own_deadline:
            waited = now >= call.deadline or call.queued < self._last_finish
        else:
            waited = now > call.received + self.policy.target / 2
        return waited and now + self.latency.predict(max(call.rows, min(self.rows, self.cap))) > call.deadline

    def _filled(self, rows: int, priority: int) -> None:
        """A batch of `rows` rows left others of its priority behind."""
        if rows < self.cap and not self._rows_of(max(-PRIORITIES, min(PRIORITIES, priority))):
            return  # only large, less urgent calls stayed: they did not fit
        self._left_behind = True
        self._fill += FILL_RATE * (rows - self._fill)
        self._refill()

    def _refill(self) -> None:
        self.full_rows = max(1, min(self.cap, int(self._fill + 0.5)))
        self.full_seconds = self.latency.predict_high(self.full_rows)

    def _learn_gap(self, head: Call, now: float) -> None:
        """How long a slot was not ours although calls waited. On one core that is also the time for the sockets."""
        if head.queued < self._last_finish and not self._waited:
            gap = min(now - self._last_finish, self.policy.target)
            self.gap += (GAP_RISE if gap > self.gap else GAP_FALL) * (gap - self.gap)
        else:
            self.gap -= GAP_FALL * self.gap
        self._waited = False

    def _wait(self, head: Call, now: float) -> float:
        """Until when it pays to leave the slot empty; not after `now`: run at once."""
        if self.rows >= self.cap:
            return now
        if self._slack_share:
            latest = self._earliest - self.full_seconds - self.gap
            return head.queued + self._slack_share * (latest - head.queued)
        if self._returning < 0.5:
            return now
        return self._closed_loop_wait(now)

    def _closed_loop_wait(self, now: float) -> float:
        """Callers that were just answered come back together: wait for them where that is faster for all.

        n rows wait, m are on their way back. Running now and then the others takes S(n) + S(m) for a round; waiting
        for them takes w + S(n + m). Where S(b) = t0 + a*b this is w < t0. Too short a wait makes it worse, so the wait
        covers the measured return time or there is none.
        """
        missing = int(self._returning * self._last_calls + 0.5) - self._returned
        wait = self._last_finish + self._return_time + 2.0 * self._return_spread - now
        if wait <= 0.0 or missing <= 0:
            return now
        predict, rows = self.latency.predict, self.rows
        missing = min(missing, self.cap - rows)
        if wait < predict(rows) + predict(missing) - predict(rows + missing):
            return now + wait
        return now

    def _learn_returns(self) -> None:
        """Who came since the last look: callers that were just answered, or others. Each moves what is believed a bit."""
        returns, pushed = self._returns, self._pushed
        self._pushed = 0
        back = len(returns)
        self._returning += (1.0 - (1.0 - RETURN_RATE) ** pushed) * (back / pushed - self._returning)
        if not back:
            return
        self._returned += back
        learn = 1.0 - (1.0 - RETURN_RATE) ** back
        before = self._return_time
        spread = sum([abs(seconds - before) for seconds in returns]) / back
        self._return_time = before + learn * (sum(returns) / back - before)
        self._return_spread += learn * (spread - self._return_spread)
        returns.clear()

    def state(self) -> dict[str, Any]:
        """What the batcher knows, for people."""
        return {
            "rows_queued": self.rows,
            "batch_rows": self.cap,
            "batch_ms": round(self.full_seconds * 1e3, 3),
            "gap_ms": round(self.gap * 1e3, 3),
            "curve_ms": [(rows, round(seconds * 1e3, 4)) for rows, seconds in self.latency.points()],
        }
