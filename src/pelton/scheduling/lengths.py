"""Which of the calls that wait should run together where rows differ in length: every row is filled up to the longest.

A batch costs S(rows x longest): what fills shorter rows up is computed and thrown away. Sorted by length, the cheapest
way to serve all that waits is a partition into neighbours, each of which costs t0 + a * rows * longest; dynamic
programming finds it. The part that holds the most urgent call leaves now. A call is passed over only while it can still
be answered in time. Pure: numbers in, positions out.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """A call that waits: tokens of its longest row, its rows, and when it must be answered (seconds of the clock)."""

    length: int
    rows: int
    deadline: float

    @property
    def load(self) -> int:
        """Tokens that it costs alone."""
        return self.length * self.rows


class Limits(msgspec.Struct, frozen=True, gc=False):
    """Bounds of a batch: padded tokens (one call may be more) and rows."""

    tokens: int
    rows: int


class Cost(msgspec.Struct, frozen=True, gc=False):
    """S(tokens) ~ start + each * tokens, seconds; `gap`: what passes between two batches."""

    start: float
    each: float
    gap: float = 0.0

    def seconds(self, tokens: int) -> float:
        return self.start + self.each * tokens


def choose(waiting: Sequence[Waiting], now: float, limits: Limits, cost: Cost) -> list[int]:
    """Positions of the calls that leave now, ascending. `waiting`: the most urgent first; that one always leaves.

    What is passed over must still be in time: else only the more urgent half is looked at, and so on, down to those that
    would leave if nobody was passed over."""
    limits = _in_time(waiting[0], now, limits, cost)
    least = _first(waiting, limits)
    count = len(waiting)
    while True:
        chosen = _cheapest(waiting, range(count), limits, cost)
        if count <= least or _all_in_time(waiting, chosen, now, limits, cost):
            return chosen
        count = max(least, count // 2)


def _in_time(urgent: Waiting, now: float, limits: Limits, cost: Cost) -> Limits:
    """The batch may be no larger than the most urgent call can bear, where that can still be in time at all."""
    bears = int((urgent.deadline - now - cost.start) / cost.each) if urgent.deadline < now + 3600.0 else limits.tokens
    return limits if bears < urgent.load else Limits(max(urgent.load, min(limits.tokens, bears)), limits.rows)


def _first(waiting: Sequence[Waiting], limits: Limits) -> int:
    """How many fit one batch if they leave in order."""
    rows, longest = 0, 0
    for count, call in enumerate(waiting):
        rows, longest = rows + call.rows, max(longest, call.length)
        if count and (rows > limits.rows or rows * longest > limits.tokens):
            return count
    return len(waiting)


def _all_in_time(waiting: Sequence[Waiting], chosen: Sequence[int], now: float, limits: Limits, cost: Cost) -> bool:
    """Whether those who stay are answered in time, one after the other in batches that are half full; who would be late in
    any case does not count."""
    taken = set(chosen)
    rows = sum([waiting[i].rows for i in chosen])
    later = now + cost.seconds(rows * max([waiting[i].length for i in chosen])) + cost.gap
    each = cost.each + 2.0 * (cost.start + cost.gap) / limits.tokens
    in_order = now
    for i, call in enumerate(waiting):
        in_order += each * call.load
        if i in taken:
            continue
        later += each * call.load
        if later > call.deadline >= in_order:
            return False
    return True


def _cheapest(waiting: Sequence[Waiting], among: Sequence[int], limits: Limits, cost: Cost) -> list[int]:
    """The part with the first call of `among` in the cheapest partition; among calls of equal length the first go."""
    order = sorted(among, key=lambda i: waiting[i].length)
    lengths = [waiting[i].length for i in order]
    rows = [waiting[i].rows for i in order]
    start, each = cost.start, cost.each
    total = [0.0]  # the cheapest way to serve the shortest 0, 1, 2, ...
    first = [0]  # and where its last part begins
    for end in range(1, len(order) + 1):
        longest = lengths[end - 1]
        count, best, begin = 0, float("inf"), end - 1
        for low in range(end - 1, -1, -1):
            count += rows[low]
            if low < end - 1 and (count > limits.rows or count * longest > limits.tokens):
                break
            seconds = total[low] + start + each * count * longest
            if seconds < best:
                best, begin = seconds, low
        total.append(best)
        first.append(begin)
    place = order.index(among[0])
    end = len(order)
    while first[end] > place:
        end = first[end]
    return _oldest(waiting, order, first[end], end)


def _oldest(waiting: Sequence[Waiting], order: Sequence[int], begin: int, end: int) -> list[int]:
    """The part as positions; calls of equal length and rows are exchanged for those that wait longer."""
    part = [order[i] for i in range(begin, end)]
    kinds: dict[tuple[int, int], int] = {}
    for i in part:
        kind = waiting[i].length, waiting[i].rows
        kinds[kind] = kinds.get(kind, 0) + 1
    chosen = []
    for i in sorted(order):
        kind = waiting[i].length, waiting[i].rows
        if kinds.get(kind, 0):
            kinds[kind] -= 1
            chosen.append(i)
    return chosen


def split(lengths: Sequence[int], limits: Limits, step: int) -> list[tuple[list[int], int]]:
    """The rows of one call -> pieces of (row numbers, width): rows that are filled up to the same multiple of `step`,
    as many as one batch may hold. Pieces that are short are joined again by `choose` where that is cheaper."""
    rows = sorted(range(len(lengths)), key=lengths.__getitem__)
    pieces: list[tuple[list[int], int]] = []
    for row in rows:
        width = -(-max(1, lengths[row]) // step) * step
        if pieces and pieces[-1][1] == width:
            piece = pieces[-1][0]
            if len(piece) < limits.rows and (len(piece) + 1) * width <= limits.tokens:
                piece.append(row)
                continue
        pieces.append(([row], width))
    return pieces
