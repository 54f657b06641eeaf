"""The HTTP/1.1 that a load generator needs: one response at a time, its body counted but not kept.

A response carries, where the server is ours, `pelton-batch-rows: <int>` (rows of the batch that it ran in) and
`server-timing: queue;dur=<ms>, run;dur=<ms>[, prepare;dur=<ms>]`.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MAX_HEAD: Final = 65_536
MAX_CHUNK_LINE: Final = 4_096
UNTIL_CLOSE: Final = -1
CHUNKED: Final = -2

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)(?: |\r|$)")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*(?:\r|$)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked[ \t]*(?:\r|$)", re.IGNORECASE)
_CLOSE: Final = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*(?:\r|$)", re.IGNORECASE)
_ROWS: Final = re.compile(rb"\r\npelton-batch-rows:[ \t]*(\d{1,9})", re.IGNORECASE)
_TIMING: Final = re.compile(rb"\r\nserver-timing:([^\r]*)", re.IGNORECASE)
_DURATION: Final = re.compile(rb"(queue|run|prepare);dur=(\d{1,12}(?:\.\d{1,12})?)")
_SERVER: Final = re.compile(rb"\r\nserver:[ \t]*([^\r]{1,100})", re.IGNORECASE)


class BadResponse(Exception):
    """What came back is not HTTP/1.1; the connection cannot be used further."""


class Stages(NamedTuple):
    """Rows of the batch (0: unknown) and the seconds that the server names (0.0: not named)."""

    rows: int = 0
    queue: float = 0.0
    run: float = 0.0
    prepare: float = 0.0
    known: bool = False


_NO_STAGES: Final = Stages()


class Response:
    """Reads one response after another from the bytes of one connection.

    After `feed` answers True, `status`, `head` and `close` describe the response; `restart` makes ready for the next.
    """

    __slots__ = ("_left", "_mode", "_pending", "_trailers", "close", "head", "keep_body", "status", "text")

    def __init__(self, *, keep_body: bool = False) -> None:
        self.keep_body = keep_body
        self.restart()

    def restart(self) -> None:
        self.status = 0
        self.head = b""
        self.text = b""  # the start of the body, only where `keep_body`
        self.close = False
        self._pending = b""
        self._mode = 0
        self._left = 0
        self._trailers = False

    @property
    def started(self) -> bool:
        """Whether any byte of a response has come."""
        return bool(self.status or self._pending)

    def feed(self, data: bytes) -> bool:
        """Takes what arrived; True when the response is complete."""
        while not self.status:  # more than once where an interim 1xx comes first
            if self._pending:
                data = self._pending + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MAX_HEAD:
                    raise BadResponse(f"the response head is longer than {MAX_HEAD:,} bytes")
                self._pending = data
                return False
            self._pending = b""
            self._read_head(data[:end])
            data = data[end + 4 :]
        return self._read_body(data)

    def ended(self) -> bool:
        """The server closed: whether that completes the response."""
        return bool(self.status) and self._mode == UNTIL_CLOSE

    def _read_head(self, head: bytes) -> None:
        match = _STATUS.match(head)
        if match is None:
            raise BadResponse(f"not an HTTP/1.1 response: it starts with {head[:40]!r}")
        status = int(match[1])
        if status < 200:
            return
        self.status, self.head = status, head
        self.close = _CLOSE.search(head) is not None or head.startswith(b"HTTP/1.0")
        length = _LENGTH.search(head)
        if status in (204, 304):
            self._mode = self._left = 0
        elif length is not None:
            self._mode = self._left = int(length[1])
        else:
            self._mode = CHUNKED if _CHUNKED.search(head) else UNTIL_CLOSE

    def _read_body(self, data: bytes) -> bool:
        if self.keep_body and len(self.text) < 2_000:
            self.text += data[:2_000]
        if self._mode == CHUNKED:
            return self._read_chunks(data)
        if self._mode == UNTIL_CLOSE:
            return False
        self._left -= len(data)
        if self._left < 0:
            raise BadResponse("bytes follow the response that nobody asked for")
        return self._left == 0

    def _read_chunks(self, data: bytes) -> bool:
        data = self._pending + data
        while True:
            skipped = min(self._left, len(data))
            data, self._left = data[skipped:], self._left - skipped
            end = data.find(b"\r\n")
            if self._left or end < 0:
                if len(data) > MAX_CHUNK_LINE:
                    raise BadResponse("a chunk has no size line")
                self._pending = data
                return False
            line, data = data[:end], data[end + 2 :]
            if not self._trailers:
                self._left = _chunk_bytes(line)
                self._trailers = self._left == 0
            elif not line:
                if data:
                    raise BadResponse("bytes follow the response that nobody asked for")
                return True


def _chunk_bytes(line: bytes) -> int:
    """Bytes to skip after a size line: the chunk and its line end; 0 for the last chunk."""
    try:
        size = int(line.partition(b";")[0], 16)
    except ValueError:
        raise BadResponse(f"not a chunk size: {line[:40]!r}") from None
    if size < 0:
        raise BadResponse(f"not a chunk size: {line[:40]!r}")
    return size + 2 if size else 0


def read_stages(head: bytes) -> Stages:
    """Batch rows and stage times out of a response head; nothing that is missing is guessed."""
    rows = _ROWS.search(head)
    timing = _TIMING.search(head)
    if timing is None:
        return _NO_STAGES if rows is None else Stages(rows=int(rows[1]))
    queue = run = prepare = 0.0
    known = False
    for name, milliseconds in _DURATION.findall(timing[1]):
        known = True
        if name == b"queue":
            queue = float(milliseconds) / 1e3
        elif name == b"run":
            run = float(milliseconds) / 1e3
        else:
            prepare = float(milliseconds) / 1e3
    return Stages(int(rows[1]) if rows else 0, queue, run, prepare, known)


def read_server(head: bytes) -> str:
    """The `server` header, or nothing."""
    match = _SERVER.search(head)
    return match[1].decode("latin-1").strip() if match else ""
