"""Work that comes back every so often, in one thread beside the event loop. What fails is tried again, later and later."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from pelton.errors import PeltonError

log = logging.getLogger(__name__)

LONGEST_PAUSE: Final = 4.0  # seconds; short enough to be back within a moment once the store is


class Chore:
    """`work` is called every `every` seconds. One that fails says so once, and once more when it goes on again."""

    def __init__(self, what: str, every: float, work: Callable[[], None], first: float = 0.0) -> None:
        self.what = what
        self.every = every
        self.due = first  # seconds after the start, then of the monotonic clock
        self._work = work
        self._failures = 0

    def run(self) -> None:
        """Does it, and decides when it is due again."""
        try:
            self._work()
        except Exception as error:  # the other chores go on
            self._failures += 1
            if self._failures == 1:
                known = isinstance(error, PeltonError)
                log.error("%s failed, serving goes on as it is: %s", self.what, error, exc_info=not known)
        else:
            if self._failures:
                log.info("%s works again", self.what)
            self._failures = 0
        self.due = time.monotonic() + min(self.every * 2.0 ** min(self._failures, 10), max(LONGEST_PAUSE, self.every))


class Chores:
    """The thread. `hurry` makes a chore due now; `close` ends the thread once the present chore is done."""

    def __init__(self, name: str, chores: Sequence[Chore]) -> None:
        self._chores = chores
        self._wake = threading.Event()
        self._closed = False
        # a daemon: a database that does not answer must not keep the process from its end
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        now = time.monotonic()
        for chore in self._chores:
            chore.due += now
        self._thread.start()

    def hurry(self, chore: Chore) -> None:
        """Safe from any thread."""
        chore.due = 0.0
        self._wake.set()

    def close(self, seconds: float) -> bool:
        """Waits at most so long; returns whether the thread has ended."""
        self._closed = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._closed:
            first = min(self._chores, key=lambda chore: chore.due)
            wait = first.due - time.monotonic()
            if wait > 0:
                self._wake.wait(wait)
                self._wake.clear()
            else:
                first.run()
