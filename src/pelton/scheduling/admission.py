"""Whether a call can still be answered in time. Pure functions of what is queued now.

The caller's own batch is counted FULL: later arrivals join it and make all of it late. Counted with its current size,
goodput at twice the capacity falls from 100 % to 5 % (simulated; see docs/batching.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

REFUSED_ALIKE: Final = 0.02  # seconds that a refusal stands for other calls: the queue may move faster than predicted


def predicted_finish(
    now: float, free: Sequence[float], rows_ahead: int, rows: int, full_rows: int, full_seconds: float
) -> float:
    """When a call of `rows` rows, queued now behind `rows_ahead`, is answered at the latest, in seconds of the clock.

    `free`: when each slot is free, ascending; `full_rows`, `full_seconds`: a full batch and S of it, with what passes
    between two batches. Rows of less urgent calls are not ahead.
    """
    rounds, slot = divmod((rows_ahead + rows - 1) // full_rows, len(free))
    return max(free[slot], now) + (rounds + 1) * full_seconds


def retry_after(now: float, finish: float, deadline: float) -> float:
    """Seconds until the queue has shrunk enough for the same call to be taken."""
    return max(0.001, min(finish - deadline, 60.0))


def refused_until(now: float, finish: float, target: float) -> float:
    """Until when calls that come behind the same rows are late as well, each with `target` seconds from its coming.

    `finish`: when one that is queued now would be answered."""
    return min(finish - target, now + REFUSED_ALIKE)
