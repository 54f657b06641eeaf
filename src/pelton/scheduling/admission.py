"""Whether a call can still be answered in time. Pure functions of what is queued now.

The caller's own batch is counted FULL: later arrivals join it and make all of it late. Counted with its current size,
goodput at twice the capacity falls from 100 % to 5 % (simulated; see docs/batching.md).
"""

from __future__ import annotations


def predicted_finish(
    now: float, free_at: float, rows_ahead: int, rows: int, cap: int, full_seconds: float, slots: int
) -> float:
    """When a call of `rows` rows, queued now behind `rows_ahead`, is answered at the latest, in seconds of the clock.

    `free_at`: when the first slot is free; `cap`: rows of a full batch; `full_seconds`: S(cap).
    """
    batches_ahead = (rows_ahead + rows - 1) // cap
    start = free_at if free_at > now else now
    return start + (batches_ahead / slots + 1.0) * full_seconds


def retry_after(now: float, finish: float, deadline: float) -> float:
    """Seconds until the queue has shrunk enough for the same call to be taken."""
    return max(0.001, min(finish - deadline, 60.0))
