"""A histogram of durations with fixed geometric buckets: exact counts, mergeable across processes and machines.

Eight buckets per doubling from one microsecond up: a quantile read from it is off by at most 4.5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from pelton.types import Array

SMALLEST: Final = 1e-6  # seconds
PER_DOUBLING: Final = 8
BUCKETS: Final = 31 * PER_DOUBLING  # up to about 1,960 s; what took longer is counted in the last one


class Histogram:
    """Counts of durations in seconds."""

    def __init__(self) -> None:
        self.counts: Array = np.zeros(BUCKETS, np.int64)
        self.sum = 0.0

    def add(self, seconds: Sequence[float]) -> None:
        """Adds many durations at once."""
        values = np.array(seconds, np.float64)
        index = np.ceil(np.log2(np.maximum(values, SMALLEST) / SMALLEST) * PER_DOUBLING).astype(np.int64)
        self.counts += np.bincount(np.minimum(index, BUCKETS - 1), minlength=BUCKETS)
        self.sum += float(values.sum())

    def merge(self, other: Histogram) -> None:
        self.counts += other.counts
        self.sum += other.sum

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def quantile(self, q: float) -> float:
        """The geometric middle of the bucket that holds quantile `q`, in seconds; 0 when empty."""
        total = self.count
        if not total:
            return 0.0
        index = int(np.searchsorted(np.cumsum(self.counts), q * total))
        return float(SMALLEST * 2.0 ** ((min(index, BUCKETS - 1) - 0.5) / PER_DOUBLING))

    def cumulative(self) -> list[tuple[float, int]]:
        """(upper edge in seconds, count at or below it) at every doubling: the buckets that Prometheus sees."""
        sums = np.cumsum(self.counts)
        return [(upper_edge(i), int(sums[i])) for i in range(4 * PER_DOUBLING, 27 * PER_DOUBLING, PER_DOUBLING)]


def upper_edge(index: int) -> float:
    """The largest duration that bucket `index` holds, in seconds."""
    return float(SMALLEST * 2.0 ** (index / PER_DOUBLING))
