"""The queue of a model whose rows differ in length (texts): everything that `Batcher` counts in rows counts tokens here.

The load of a call is rows x longest row, and S is a function of the padded tokens of a batch (MiniLM on one core: 3 ms +
0.32 ms a token, the same for 1 x 256 and 32 x 8 within a fifth; how long rows are moves it a little, and that is learned
too). The bound 2 * S <= target, admission, and whether a batch is short enough for the loop follow from it. Which calls
run together is decided in `lengths`. Pure, as the batcher is.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from msgspec.structs import replace

from pelton.errors import Overloaded
from pelton.scheduling.admission import predicted_finish, retry_after
from pelton.scheduling.batcher import Batcher, BatchPolicy, Take
from pelton.scheduling.executor import runs_inline
from pelton.scheduling.inline import INLINE_BELOW, InlineGate
from pelton.scheduling.latency import BATCH_OVERHEAD, LatencyModel
from pelton.scheduling.lengths import Cost, Limits, Waiting, choose
from pelton.scheduling.scheduler import Scheduler
from pelton.types import QUEUED, RUNNING, Batch, Call

LOOK: Final = 64  # calls that are compared for one batch: the oldest of the most urgent level
STEP: Final = 8  # tokens: widths are multiples of it
FULL_RATE: Final = 0.03  # how fast it is learned what a batch takes off the queue: batches differ by ten times
LENGTH_RATE: Final = 0.03  # how fast it is learned what long rows cost more than short ones
LENGTH_RANGE: Final = 2.0  # at most, and at least one part of it


def load_of(call: Call) -> int:
    """Tokens that a call costs alone, filled up to its longest row; of one that will be split, what its pieces cost."""
    if call.lengths is not None and call.rows > 1:
        return sum([-(-length // STEP) * STEP for length in call.lengths])
    return call.rows * (call.length or 1)


class ByLength:
    """How much more, or less, a padded token costs in rows of some length: attention grows with its square."""

    def __init__(self) -> None:
        self._factors: dict[int, float] = {}

    def of(self, length: int) -> float:
        """Seconds of a batch of such rows / seconds by its padded tokens alone."""
        return self._factors.get(length.bit_length(), 1.0)

    def observe(self, length: int, ratio: float) -> None:
        """`ratio`: measured seconds / predicted ones, this factor in them."""
        kind = length.bit_length()
        known = self._factors.get(kind, 1.0)
        ratio = min(max(ratio, 0.5), 2.0)  # one outlier moves it by three hundredths
        factor = known * (1.0 + LENGTH_RATE * (ratio - 1.0))
        self._factors[kind] = min(max(factor, 1.0 / LENGTH_RANGE), LENGTH_RANGE)


class LengthGate(InlineGate):
    """The gate in padded tokens. `tokens`: of the batch that `take` gave out last; one on the loop runs at once."""

    tokens = 0

    def largest(self, cap: int) -> int:
        """As in the parent, in a few steps: the cap may be many thousands."""
        if not self._possible:
            return 0
        low, high = 0, cap
        while low < high:
            middle = (low + high + 1) // 2
            if self._alone.predict(middle) < INLINE_BELOW:
                low = middle
            else:
                high = middle - 1
        return low

    def ran_inline(self, rows: int, seconds: float) -> None:
        super().ran_inline(self.tokens, seconds)


class LengthBatcher(Batcher):
    """Calls in, batches of similar length out. `rows`, `cap` and `full_rows` are tokens; `most_rows` are rows."""

    def __init__(self, policy: BatchPolicy, latency: LatencyModel, longest: int) -> None:
        """`latency`: S by padded tokens. `longest`: tokens that one row may have at most."""
        self.most_rows = policy.max_rows
        self.real_tokens = 0  # of all batches so far...
        self.padded_tokens = 0  # ... and what was computed for them
        self.queued_rows = 0
        self._by_length = ByLength()
        self._cost = Cost(0.0, 1.0)
        self._full_padded = 1.0
        self._inline_tokens = 0
        super().__init__(replace(policy, max_rows=policy.max_rows * longest), latency)

    def _gate(self, points: list[tuple[int, float]]) -> InlineGate:
        return LengthGate(points)

    def refresh(self) -> None:
        super().refresh()
        self._inline_tokens = self.inline_rows
        self._watch_inline()
        low, high = max(1, self.cap // 4), max(2, self.cap)
        each = (self.latency.predict(high) - self.latency.predict(low)) / (high - low)
        each = max(each, self.latency.predict(high) / high / 8)
        start = max(0.0, self.latency.predict(high) - each * high) + BATCH_OVERHEAD
        self._cost = Cost(start, each, self.gap)

    def push(self, call: Call, returned_after: float = 0.0) -> None:
        rows, load = self.rows, load_of(call)
        super().push(call, returned_after)
        self.rows = rows + load
        self.queued_rows += call.rows
        if call.priority:
            self._level(call.priority).rows += load - call.rows
        if load > self._inline_tokens:
            self.inline_rows = 0  # a long call does not run on the loop

    def remove(self, call: Call) -> None:
        load = load_of(call)
        self.rows -= load
        self.queued_rows -= call.rows
        if call.priority:
            self._level(call.priority).rows -= load

    def take(self, now: float) -> Take:
        head = self.head()
        if head is None:
            return Take()
        wait_until = self._wait(head, now)
        if wait_until > now:
            self._waited = True
            return Take(wait_until=wait_until)
        self._learn_gap(head, now)
        late: list[Call] = []
        calls = self._collected(late, now)
        if not self.rows:
            self._earliest = float("inf")
        self._watch_inline()
        return Take(batch=self._batch(calls, now) if calls else None, late=late)

    def finished(self, batch: Batch, seconds: float, now: float) -> None:
        factor = self._by_length.of(batch.length)
        expected = self.latency.predict(batch.load) * factor
        self.latency.observe(batch.load, seconds / factor)
        self._by_length.observe(batch.length, seconds / expected)
        self._last_finish = now
        self._pushed = 0
        self._returns.clear()
        self._until_recompute -= 1
        if self._until_recompute <= 0:
            self.refresh()
        else:
            self._refill()

    def expected(self, batch: Batch) -> float:
        return self.latency.predict(batch.load) * self._by_length.of(batch.length)

    def state(self) -> dict[str, Any]:
        known = super().state()
        tokens = {"tokens_queued": known.pop("rows_queued"), "batch_tokens": known.pop("batch_rows")}
        return {**tokens, "real_tokens": self.real_tokens, "padded_tokens": self.padded_tokens, **known}

    def _collected(self, late: list[Call], now: float) -> list[Call]:
        """Takes the calls that leave together out of the queue: of the most urgent level that has any in time."""
        for priority in self._order:
            level = self._levels[priority]
            looked = self._looked_at(level.calls, late, now)
            if not looked:
                continue
            waiting = sorted(looked, key=_deadline)
            seen = [Waiting(call.length or 1, call.rows, call.deadline) for call in waiting]
            limits = Limits(max(self.cap, seen[0].load), self.most_rows)
            chosen = [waiting[i] for i in choose(seen, now, limits, self._cost)]
            for call in chosen:
                self.remove(call)
                call.state = RUNNING
            level.calls.extendleft([call for call in reversed(looked) if call.state == QUEUED])
            return chosen
        return []

    def _looked_at(self, calls: deque[Call], late: list[Call], now: float) -> list[Call]:
        """Takes the oldest calls that can still be in time from a queue, and puts the others into `late`."""
        looked: list[Call] = []
        close = now + self.full_seconds
        while calls and len(looked) < LOOK:
            call = calls.popleft()
            if call.state != QUEUED:
                continue
            if call.deadline <= close and self._hopeless(call, now):
                self.remove(call)
                call.state = RUNNING  # it is out of the queue: nobody takes it out again
                late.append(call)
            else:
                looked.append(call)
        return looked

    def _batch(self, calls: list[Call], now: float) -> Batch:
        own = sum([load_of(call) for call in calls])
        rows, length = sum([call.rows for call in calls]), max([call.length or 1 for call in calls])
        tokens = sum([call.tokens or call.rows * (call.length or 1) for call in calls])
        reason = "idle"
        if self.rows:
            reason = "full" if 2 * rows * length > self.cap or rows >= self.most_rows else "shape"
            self._left_behind = True
            if 2 * self.rows >= self.cap:  # else the batch might have been fuller if more had waited
                self._fill += FULL_RATE * (own - self._fill)
                self._full_padded += FULL_RATE * (rows * length - self._full_padded)
                self._refill()
        self.real_tokens += tokens
        self.padded_tokens += rows * length
        gate = self.inline
        if isinstance(gate, LengthGate):
            gate.tokens = rows * length
        return Batch(calls, rows, reason, started=now, tokens=tokens, load=rows * length, length=length)

    def _hopeless(self, call: Call, now: float) -> bool:
        if call.own_deadline:
            waited = now >= call.deadline or call.queued < self._last_finish
        else:
            waited = now > call.received + self.policy.target / 2
        return waited and now + self.latency.predict(load_of(call)) > call.deadline

    def _refill(self) -> None:
        """`full_rows`: what a batch takes off the queue; its time is that of the padded tokens."""
        self.full_rows = max(1, min(self.cap, int(self._fill + 0.5)))
        self._full_padded = min(max(self._full_padded, self.full_rows), 4.0 * self.full_rows)
        self.full_seconds = self.latency.predict_high(int(self._full_padded))

    def _closed_loop_wait(self, now: float) -> float:
        """Never: a token costs about the same in any company, so there is nothing to wait for."""
        return now

    def _watch_inline(self) -> None:
        """The loop runs batches again once no long call waits."""
        most = self._inline_tokens
        if self.inline_rows != most:
            long = any(
                load_of(call) > most for level in self._levels.values() for call in level.calls if call.state == QUEUED
            )
            self.inline_rows = 0 if long else most


class LengthScheduler(Scheduler):
    """The lane of such a model: admission by tokens."""

    def submit(self, call: Call, now: float, returned_after: float = 0.0) -> None:
        batcher = self.batcher
        if self.running or batcher.rows + load_of(call) > batcher.cap or self._executor.full:
            self.admit(call, now)
        call.queued = now
        batcher.push(call, returned_after)
        if not self.ready:
            self._executor.wake(self)

    def admit(self, call: Call, now: float) -> None:
        finish = self._finish(load_of(call), call.priority, now)
        if finish > call.deadline:
            wait = retry_after(now, finish, call.deadline)
            raise Overloaded(
                f"the queue of this model is full: an answer would take {(finish - now) * 1e3:.0f} ms, "
                f"its target is {(call.deadline - call.received) * 1e3:.0f} ms; try again in {wait * 1e3:.0f} ms",
                retry_after=wait,
            )

    def _finish(self, rows: int, priority: int, now: float) -> float:
        """What is ahead leaves in full batches, then comes the call's own. One batch may be formed before it of calls that
        pass it over."""
        batcher = self.batcher
        free = (now,) if runs_inline(batcher) else self.free(now)
        cycle = batcher.full_seconds + batcher.gap
        own = max(cycle, batcher.latency.predict(rows) + batcher.gap)
        return predicted_finish(now, free, batcher.rows_ahead(priority), 1, batcher.full_rows, cycle) + own


def _deadline(call: Call) -> float:
    return call.deadline
