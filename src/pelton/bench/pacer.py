"""Wakes an event loop at a time of the monotonic clock, finer than its own timers.

Timers of uvloop and of epoll count whole milliseconds, a large part of a 2 ms answer. A Linux timerfd does not, and
does not spin on a core that the server may need. Elsewhere the loop's own timers have to do.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable
from typing import Final

_MONOTONIC: Final = 1  # CLOCK_MONOTONIC, the clock of time.perf_counter and time.monotonic on Linux
_ABSOLUTE: Final = 1  # TFD_TIMER_ABSTIME


class _Itimerspec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


class Pacer:
    """Calls `wake` once for each `arm(when)`, at or soon after `when` (seconds of time.perf_counter)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None], clock: Callable[[], float]) -> None:
        self._loop, self._wake, self._clock = loop, wake, clock
        self._timer: asyncio.TimerHandle | None = None
        self._fd = _timerfd()
        if self._fd >= 0:
            loop.add_reader(self._fd, self._fired)

    def arm(self, when: float) -> None:
        if _LIBC is None or self._fd < 0:
            self._timer = self._loop.call_later(max(0.0, when - self._clock()), self._wake)
            return
        seconds = int(when)
        spec = _Itimerspec(0, 0, seconds, max(1, int((when - seconds) * 1e9)))  # all zero would disarm it
        _LIBC.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(spec), None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # re-armed between the wake-up and here
            return
        self._wake()


_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" and sys.maxsize > 2**32 else None


def _timerfd() -> int:
    """A new non-blocking timer descriptor, or -1 where the system has none."""
    if _LIBC is None:
        return -1
    return int(_LIBC.timerfd_create(_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
