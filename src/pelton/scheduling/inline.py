"""Whether a batch is short enough for the event loop itself.

Judged by what batches took alone: the curve measured while the model loaded, and batches that ran on the loop. Batches
in a thread also wait for the interpreter lock and for the hop back; learning from those would keep a short model in
threads for ever.
"""

from __future__ import annotations

from typing import Final

from pelton.scheduling.latency import LatencyModel

INLINE_BELOW: Final = 0.0007  # seconds: below, a hop to a thread and back costs more than it frees the loop
RETRY_AFTER: Final = 1000  # batches in threads, then one on the loop again


class InlineGate:
    """Pure: batches in, yes or no out."""

    def __init__(self, points: list[tuple[int, float]]) -> None:
        """`points`: (rows, seconds) measured alone. None: never on the loop."""
        self._measured = LatencyModel(points)
        self._alone = LatencyModel(points)
        self._possible = bool(points)
        self._in_threads = 0

    def largest(self, cap: int) -> int:
        """The largest batch, up to `cap` rows, that should run on the loop; 0: none."""
        if not self._possible:
            return 0
        rows = cap
        while rows and self._alone.predict(rows) >= INLINE_BELOW:
            rows -= 1
        return rows

    def ran_inline(self, rows: int, seconds: float) -> None:
        self._alone.observe(rows, seconds)

    def ran_in_thread(self) -> None:
        """After many batches in threads the measured curve counts again: the machine may have been busy for a while."""
        self._in_threads += 1
        if self._in_threads >= RETRY_AFTER:
            self._in_threads = 0
            self._alone = LatencyModel(self._measured.points())
