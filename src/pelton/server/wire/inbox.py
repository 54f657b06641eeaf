"""Bytes that were read wait here until all sockets of this turn of the loop are read, then they are handled in lots.

Two reasons. Reading and handling in turn costs the processor its caches at every system call. And batches leave after
each lot: under overload the first requests of a turn are answered before the last ones are looked at, and what has
waited too long by then is refused before any work is spent on it. Everything that was read is handled before the loop
reads again, so no more waits here than one turn reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from pelton.server.wire.doors import Doors

LOT: Final = 64  # requests handled before batches leave
IDLE: Final = 0.0005  # seconds; a loop that was idle for longer has left nothing waiting in the kernel


class Reader(Protocol):
    """A connection."""

    def take(self, data: bytes, received: float) -> None:
        """Handles bytes that were read at `received`."""


class Inbox:
    """What was read in this turn. `then` runs after each lot: batches leave at once."""

    def __init__(
        self,
        later: Callable[[Callable[[], None]], object],
        clock: Callable[[], float],
        then: Callable[[], None],
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        """`later`: the loop's `call_soon`. `rest` follows a turn in which calls were refused."""
        self._rest = rest
        self.refused = False  # set by who refuses
        self.doors = Doors()  # which targets take no calls for the moment
        self.handling = False  # a lot is being handled: `then` runs when all of it has been looked at
        self._later = later
        self._clock = clock
        self._then = then
        self.waiting: list[tuple[Reader, bytes]] = []  # who comes behind another may append itself
        self._since = 0.0
        self.waited = 0.0  # seconds that the requests of the lot at hand have waited, at most
        self._busy = 0.0  # seconds that the last turn took
        self._ended = 0.0

    def put(self, reader: Reader, data: bytes) -> None:
        """Called by a connection that has read `data`."""
        waiting = self.waiting
        if not waiting:
            self._since = self._clock()
            self._later(self._flush)
        waiting.append((reader, data))

    def _flush(self) -> None:
        waiting, self.waiting = self.waiting, []
        since = self._since
        begin = self._clock()
        # the loop was busy just before: they may have waited in the kernel all that time
        unseen = self._busy if since - self._ended < IDLE else 0.0
        for start in range(0, len(waiting), LOT):
            self.waited = (self._clock() if start else begin) - since + unseen
            self.handling = True
            try:
                for reader, data in waiting[start : start + LOT]:
                    reader.take(data, since)
            finally:
                self.handling = False
            self._then()
        self.waited = 0.0
        self._ended = self._clock()
        self._busy = self._ended - begin
        if self.refused:
            self.refused = False
            self._rest()
