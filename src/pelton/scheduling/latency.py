"""S(b): the seconds that a batch of b rows holds its slot, learned from every batch that ran.

Often S(b) is close to t0 + a*b, but not always: a tree ensemble in ONNX Runtime takes twice as long per row from 24
rows up. So the shape of the curve is kept as points (one per batch size seen), and the speed of the machine at this
moment as one factor over all of them: the points learn slowly, the factor fast.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

SHAPE_RATE: Final = 0.03  # how fast a point follows what is measured
SPEED_RATE: Final = 0.08  # how fast the machine's speed is followed
SPREAD_RATE: Final = 0.05
OUTLIER: Final = 4.0  # a batch that took longer than this many times its prediction counts as this many times
DEFAULT_SECONDS: Final = 0.001  # per row, before anything was measured
BATCH_OVERHEAD: Final = 30e-6  # seconds that forming, starting and settling a batch cost beside the model
NEAR_BEST: Final = 0.95  # a smaller batch is preferred while its rate is at least this share of the best


class LatencyModel:
    """Predicts S(b). Pure: the same observations give the same predictions."""

    def __init__(self, points: Iterable[tuple[int, float]] = ()) -> None:
        """`points`: (rows, seconds) measured beforehand."""
        self._seconds: dict[int, float] = {}
        self._sizes: list[int] = []
        self._speed = 1.0
        self._spread = 0.1
        self.observed = 0
        for rows, seconds in points:
            self._add_point(rows, seconds)

    def observe(self, rows: int, seconds: float) -> None:
        """A batch of `rows` rows held its slot for `seconds`."""
        self.observed += 1
        size = _cell(rows)
        expected = self.predict(size)
        if self._sizes and seconds > OUTLIER * expected:
            seconds = OUTLIER * expected
        known = self._seconds.get(size)
        if known is None:
            self._add_point(size, seconds / self._speed)
            return
        ratio = seconds / expected
        self._spread += SPREAD_RATE * (abs(ratio - 1.0) - self._spread)
        self._speed *= 1.0 + SPEED_RATE * (ratio - 1.0)
        self._seconds[size] = known + SHAPE_RATE * (seconds / self._speed - known)

    def predict(self, rows: int) -> float:
        """The expected S(rows)."""
        known = self._seconds.get(rows)
        if known is not None:
            return known * self._speed
        return self._between(rows) * self._speed

    def predict_high(self, rows: int) -> float:
        """S(rows) with room for its spread: two mean deviations above the expectation."""
        return self.predict(rows) * (1.0 + 2.0 * self._spread)

    def best_rows(self, max_rows: int, max_seconds: float) -> int:
        """The smallest batch whose rate b/(S(b) + overhead) is close to the best, within both bounds.

        Where the largest size tried is the best so far, twice that is allowed: load finds out whether it pays.
        """
        fitting = [b for b in self._sizes if b <= max_rows and self.predict(b) <= max_seconds]
        if not fitting:
            return 1
        rates = {b: b / (self.predict(b) + BATCH_OVERHEAD) for b in fitting}
        best = max(rates.values())
        chosen = next(b for b in fitting if rates[b] >= NEAR_BEST * best)
        if chosen == self._sizes[-1]:
            larger = min(2 * chosen, max_rows)
            while larger > chosen and self.predict(larger) > max_seconds:
                larger -= max(1, (larger - chosen) // 4)
            return larger
        return chosen

    def fixed_share(self) -> float:
        """t0/S(1), the share of a lone row's time that does not depend on the number of rows; 0 when unknown."""
        if len(self._sizes) < 2:
            return 0.0
        first, last = self._sizes[0], self._sizes[-1]
        slope = (self._seconds[last] - self._seconds[first]) / (last - first)
        alone = self.predict(1) / self._speed
        return min(1.0, max(0.0, 1.0 - slope / alone))

    def points(self) -> list[tuple[int, float]]:
        """The curve as it is now: (rows, seconds), ascending."""
        return [(b, self.predict(b)) for b in self._sizes]

    def _add_point(self, rows: int, seconds: float) -> None:
        if rows not in self._seconds:
            self._sizes.insert(bisect_left(self._sizes, rows), rows)
        self._seconds[rows] = max(seconds, 1e-9)

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
    """Large sizes share a point with their neighbours: three significant bits."""
    if rows <= 64:
        return rows
    step = 1 << (rows.bit_length() - 4)
    return (rows + step // 2) // step * step
