"""A clock that moves only when told."""

from __future__ import annotations

import threading


class ManualClock:
    """Callable like `time.monotonic`: returns seconds. Safe to share between threads."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> float:
        """Moves on by `seconds` (0 or more) and returns the new time."""
        if not seconds >= 0:
            raise ValueError(f"time does not run backwards: cannot advance by {seconds}")
        with self._lock:
            self._now += seconds
            return self._now
