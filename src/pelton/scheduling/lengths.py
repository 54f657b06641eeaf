"""Which of the calls that wait should run together where rows differ in length: every row is filled up to the longest.

A batch costs S(rows x longest): what fills shorter rows up is computed and thrown away. Sorted by length, the cheapest
way to serve all that waits is a partition into neighbours, each of which costs t0 + a * rows * longest; dynamic
programming finds it. The part that holds the most urgent call leaves now. A call is passed over only while it can still
be answered in time by the batch after this one. Pure: numbers in, positions out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

ALIKE: Final = 0.75  # of the longest: rows at least so long join a batch that must leave anyway


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
    """Positions of the calls that leave now, ascending. `waiting`: the most urgent first; that one always leaves."""
    if len(waiting) == 1:
        return [0]
    chosen = _cheapest(waiting, range(len(waiting)), limits, cost)
    taken = set(chosen)
    ends = now + cost.seconds(_padded([waiting[i] for i in chosen])) + cost.gap
    unsafe = [i for i, call in enumerate(waiting) if i not in taken and call.deadline < ends + cost.seconds(call.load)]
    if not unsafe:
        return chosen
    forced = [0, *unsafe]
    if _fits([waiting[i] for i in forced], limits):
        return _filled(waiting, forced, limits)
    return _cheapest(waiting, forced, limits, cost)  # not all of them can be in time: as many as can be


def _padded(calls: Sequence[Waiting]) -> int:
    return sum([call.rows for call in calls]) * max([call.length for call in calls])


def _fits(calls: Sequence[Waiting], limits: Limits) -> bool:
    rows = sum([call.rows for call in calls])
    return rows <= limits.rows and rows * max([call.length for call in calls]) <= limits.tokens


def _filled(waiting: Sequence[Waiting], forced: Sequence[int], limits: Limits) -> list[int]:
    """What must leave, and what is about as long."""
    longest = max([waiting[i].length for i in forced])
    rows = sum([waiting[i].rows for i in forced])
    chosen = set(forced)
    for i, call in enumerate(waiting):
        if i in chosen or not ALIKE * longest <= call.length <= longest:
            continue
        if rows + call.rows > limits.rows or (rows + call.rows) * longest > limits.tokens:
            break
        rows += call.rows
        chosen.add(i)
    return sorted(chosen)


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
