"""How many client connections each worker has: one number each, in memory that all workers of a server share.

With several processes waiting on one socket the kernel wakes all, and who runs first wins: 32 connections that are
opened one after the other end up 31 to 1. A worker that has more than another lets that one go first.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

from pelton.server.wire.connection import Connection

AWAY: Final = 2**31 - 1  # of a worker that takes none: it is not up
BOARD: Final = "connections"  # the file's name
BYTES: Final = 4


class Board:
    """`counts[i]` is worker i's; each writes its own, and the supervisor that of a dead one."""

    def __init__(self, folder: str, workers: int) -> None:
        file = os.open(os.path.join(folder, BOARD), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            new = os.fstat(file).st_size == 0
            if new:
                os.truncate(file, BYTES * workers)
            self._memory = mmap.mmap(file, BYTES * workers)
        finally:
            os.close(file)
        self.counts = memoryview(self._memory).cast("i")
        if new:
            for worker in range(workers):
                self.counts[worker] = AWAY

    def close(self) -> None:
        self.counts.release()
        self._memory.close()


class Counted(set[Connection]):
    """Open connections; their number stands on the board."""

    def __init__(self, counts: memoryview, worker: int) -> None:
        super().__init__()
        self._counts = counts
        self._worker = worker
        counts[worker] = 0

    def add(self, connection: Connection) -> None:
        super().add(connection)
        self._counts[self._worker] = len(self)

    def discard(self, connection: object) -> None:
        super().discard(connection)
        self._counts[self._worker] = len(self)
