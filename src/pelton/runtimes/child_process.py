"""What both sides of a process that serves one model need: how it ended, what it prints, when its server is gone."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import sys
from collections import deque
from io import TextIOWrapper
from typing import IO, Final

LINE_LIMIT: Final = 8192
LAST_LINES: Final = 20
PARENT_DEATH_SIGNAL: Final = 1  # of linux/prctl.h


class LogPipe:
    """What a process prints, line by line into the server's log; the last lines are kept."""

    def __init__(self, log: logging.Logger, model: str, pipe: IO[bytes] | None) -> None:
        assert pipe is not None
        self._log = log
        self._model = model
        self._pipe = pipe
        self.fd = pipe.fileno()
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.ended = False  # nobody holds its other end
        self._line = b""
        os.set_blocking(self.fd, False)

    def read(self) -> int:
        """Bytes read; 0 at the end. Nothing there counts as one."""
        try:
            data = os.read(self.fd, 64 * 1024)
        except BlockingIOError:
            return 1
        self.ended = not data
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._write(line)
        while len(self._line) > LINE_LIMIT:
            self._write(self._line[:LINE_LIMIT])
            self._line = self._line[LINE_LIMIT:]
        return len(data)

    def _write(self, line: bytes) -> None:
        text = line[:LINE_LIMIT].decode("utf-8", "backslashreplace")
        self.last.append(text)
        self._log.info("[%s] %s", self._model, text)

    def rest(self) -> None:
        """What was left in the pipe; a helper that survived may hold its other end, so this never waits."""
        for _ in range(64):
            ready, _, _ = select.select([self.fd], [], [], 0)
            if not ready or not self.read():
                break
        if self._line:
            self._write(self._line)
        self._pipe.close()


def process_file(pid: int) -> int:
    """A file that becomes readable when the process ends; -1 where the system has none."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return -1


def fate(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (" (out of memory, or somebody's kill -9)" if code == -signal.SIGKILL else "")


def print_line_by_line() -> None:
    """A pipe would buffer 8 KB: lines would come late, and be lost in a crash."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")


def die_first() -> None:
    """Where the machine runs out of memory, Linux shall end this process before the server."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


def die_with_server() -> None:
    """Linux kills this process when the thread that started it ends, so that thread must live as long as this process
    may. It needs no interpreter lock, which native code may hold for as long as it hangs."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)


def end_with_server(channel: int) -> None:
    """Ends this process group when the server's end of the channel closes, whatever the main thread is doing."""
    poll = select.poll()
    poll.register(channel, 0)  # hang-ups and errors are always reported
    poll.poll()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)
