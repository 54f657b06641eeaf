"""S(b): the seconds that a batch of b rows holds its slot, learned from every batch that ran.

Often S(b) is close to t0 + a*b, but not always: a tree ensemble in ONNX Runtime takes twice as long per row from 24
rows up. So the shape of the curve is kept as points (one per batch size, coarser above 16 rows), and the speed of the
machine at this moment as one factor over all of them: the points learn slowly, the factor fast.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

SHAPE_RATE: Final = 0.02  # how fast a point that is well known follows what is measured...
KNOWN_RATE: Final = 0.08  # ... and one that was seen a few times, at most; a new one takes the mean
SPEED_RATE: Final = 0.1  # how fast the machine's speed is followed
SPREAD_RATE: Final = 0.05
SUSPECT: Final = 2.0  # a batch that took longer than this many times its prediction counts as this many times...
OUTLIER: Final = 4.0  # ... and as this many when the one before it was slow as well: then it is the machine
PROFILED: Final = 10  # observations that a point measured beforehand counts for
KNOWN: Final = 3  # observations from which a point is trusted to tell the machine's speed
DEFAULT_SECONDS: Final = 0.001  # per row, before anything was measured
BATCH_OVERHEAD: Final = 30e-6  # seconds that forming, starting and settling a batch cost beside the model
NEAR_BEST: Final = 0.97  # the smallest batch whose rate is at least this share of the best is chosen...
STILL_GOOD: Final = 0.94  # ... and kept while its rate is at least this share,
SURELY_BEST: Final = 0.99  # and no smaller one reaches this: noise does not make the size jump where rates are equal


class LatencyModel:
    """Predicts S(b). Pure: the same observations give the same predictions."""

    def __init__(self, points: Iterable[tuple[int, float]] = ()) -> None:
        """`points`: (rows, seconds) measured beforehand."""
        self._seconds: dict[int, float] = {}
        self._seen: dict[int, int] = {}  # observations of each point, as far as they matter
        self._sizes: list[int] = []
        self._speed = 1.0
        self._spread = 0.1
        self._slow = False  # the batch before was suspiciously slow
        self.observed = 0
        for rows, seconds in points:
            self._add_point(rows, seconds, PROFILED)

    def observe(self, rows: int, seconds: float) -> None:
        """A batch of `rows` rows held its slot for `seconds`."""
        self.observed += 1
        size = rows if rows <= 16 else _cell(rows)
        if not self._sizes:
            self._add_point(size, seconds * size / rows, 1)
            return
        ratio = seconds / self.predict(rows)
        slow = ratio > SUSPECT
        if slow:
            ratio = min(ratio, OUTLIER) if self._slow else SUSPECT
        self._slow = slow
        known = self._seconds.get(size)
        if known is None:
            self._add_point(size, self._between(size), 0)
            known = self._seconds[size]
        seen = self._seen[size]
        rate = 1.0 / (seen + 2)
        if seen >= KNOWN:  # else the shape may be what is wrong, not the speed
            self._spread += SPREAD_RATE * (abs(ratio - 1.0) - self._spread)
            step = 1.0 + SPEED_RATE * (ratio - 1.0)
            self._speed *= step
            ratio /= step
            rate = min(rate, KNOWN_RATE)
        if rate > SHAPE_RATE:
            self._seen[size] = seen + 1
        else:
            rate = SHAPE_RATE
        self._seconds[size] = known * (1.0 + rate * (ratio - 1.0))

    def predict(self, rows: int) -> float:
        """The expected S(rows)."""
        known = self._seconds.get(rows)
        if known is not None:
            return known * self._speed
        return self._between(rows) * self._speed

    def predict_high(self, rows: int) -> float:
        """S(rows) with room for its spread: two mean deviations above the expectation."""
        return self.predict(rows) * (1.0 + 2.0 * self._spread)

    def best_rows(self, max_rows: int, max_seconds: float, current: int = 0) -> int:
        """The smallest batch whose rate b/(S(b) + overhead) is close to the best, within both bounds.

        `current` is kept while it is about as good. Where the largest size tried within the bounds is the best so far,
        up to twice that is allowed: load finds out whether it pays.
        """
        rates = [(b, self.rate(b)) for b in self._sizes if b <= max_rows and (b == 1 or self.predict(b) <= max_seconds)]
        if not rates:
            return 1
        best = max([rate for _, rate in rates])
        chosen = next(b for b, rate in rates if rate >= NEAR_BEST * best)
        if 0 < current <= rates[-1][0] and self.rate(current) >= STILL_GOOD * best:
            surely = next(b for b, rate in rates if rate >= SURELY_BEST * best)
            if current <= surely:
                chosen = current
        return self.larger(chosen, max_rows, max_seconds) if chosen == rates[-1][0] else chosen

    def rate(self, rows: int) -> float:
        """Rows per second of batches of this size, with what a batch costs beside the model."""
        return rows / (self.predict(rows) + BATCH_OVERHEAD)

    def larger(self, rows: int, max_rows: int, max_seconds: float) -> int:
        """Up to twice as many rows, as far as the bounds allow."""
        larger = min(2 * rows, max_rows)
        while larger > rows and self.predict(larger) > max_seconds:
            larger -= max(1, (larger - rows) // 4)
        return max(larger, rows)

    def points(self) -> list[tuple[int, float]]:
        """The curve as it is now: (rows, seconds), ascending."""
        return [(b, self.predict(b)) for b in self._sizes]

    def _add_point(self, rows: int, seconds: float, seen: int) -> None:
        if rows not in self._seconds:
            self._sizes.insert(bisect_left(self._sizes, rows), rows)
        self._seconds[rows] = max(seconds, 1e-9)
        self._seen[rows] = seen

    def _between(self, rows: int) -> float:
        """Interpolates between neighbours; beyond the ends it follows the nearest two points, never falling."""
        sizes, seconds = self._sizes, self._seconds
        if not sizes:
            return DEFAULT_SECONDS * rows
        if len(sizes) == 1:
            return seconds[sizes[0]] * max(1.0, rows / sizes[0])
        i = min(max(bisect_left(sizes, rows), 1), len(sizes) - 1)
        low, high = sizes[i - 1], sizes[i]
        slope = (seconds[high] - seconds[low]) / (high - low)
        if rows > high:
            return seconds[high] + max(slope, seconds[high] / high / 4) * (rows - high)
        if rows < low:
            return max(seconds[low] - max(slope, 0.0) * (low - rows), seconds[low] / 4)
        return seconds[low] + slope * (rows - low)


def _cell(rows: int) -> int:
    """Sizes above 16 share a point with their neighbours: four significant bits."""
    step = 1 << (rows.bit_length() - 4)
    return (rows + step // 2) // step * step
