"""One request to llama.cpp's server on its Unix socket, read as it comes: HTTP/1.1, chunked, server-sent events."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final, NoReturn

import msgspec

READ_SIZE: Final = 64 * 1024
SEND_SECONDS: Final = 10.0  # the server reads requests in threads of its own, at once
_HEAD_END: Final = b"\r\n\r\n"


class Probability(msgspec.Struct):
    """Of one token. Before sampling: `logprob`."""

    id: int
    logprob: float = 0.0
    top_logprobs: list[Probability] = []


class Progress(msgspec.Struct):
    """Of the prompt, in tokens; `processed` includes `cache`."""

    total: int = 0
    cache: int = 0
    processed: int = 0


class Timings(msgspec.Struct):
    """Milliseconds and tokens, of the whole request."""

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0


class Chunk(msgspec.Struct):
    """What llama.cpp says at once: of a stream a token, or how far the prompt is; or a whole answer."""

    content: str = ""
    tokens: list[int] = []
    stop: bool = False
    stop_type: str = ""  # of the last one: "eos", "limit", "word", "none"
    tokens_predicted: int = 0  # so far in this request
    prompt_progress: Progress | None = None
    completion_probabilities: list[Probability] = []
    timings: Timings | None = None
    error: Any = None


_chunks: Final = msgspec.json.Decoder(Chunk)


class Refused(Exception):
    """llama.cpp answers with an error, or closes the connection without an answer."""


class Exchange:
    """Sends at once; `read` gives what has come. Not for several threads."""

    def __init__(self, path: str, key: str, asked: dict[str, Any], route: str = "/completion") -> None:
        """Raises Refused where the server is gone."""
        content = msgspec.json.encode(asked)
        head = (
            f"POST {route} HTTP/1.1\r\nHost: pelton\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        self.ended = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(SEND_SECONDS)
        try:
            self._socket.connect(path)
            self._socket.sendall(head.encode() + content)
        except OSError as error:
            self.close()
            raise Refused(f"llama.cpp takes no requests: {error}") from None
        self._raw = bytearray()  # not taken apart yet
        self._body = bytearray()  # without the framing of HTTP
        self._status = 0
        self._chunked = False
        self._events = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Ends the request: llama.cpp notices with the next token."""
        self.ended = True
        self._socket.close()

    def read(self, wait: bool = False) -> list[Chunk]:
        """What has come since. Sets `ended` at the end. Raises Refused."""
        flags = 0 if wait else socket.MSG_DONTWAIT
        try:
            data = self._socket.recv(READ_SIZE, flags)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self._raw += data
        if not self._status and not self._read_head():
            if not data:
                self._fail("it closed the connection without an answer")
            return []
        self._unframe()
        if not data:
            self.close()
        if self._status != 200:
            if not data:
                self._fail(_message(bytes(self._body)))
            return []
        return self._read_events() if self._events else self._read_whole()

    def whole(self) -> Chunk:
        """Waits for an answer that is no stream. Raises Refused."""
        self._socket.settimeout(None)
        chunks: list[Chunk] = []
        while not self.ended:
            chunks += self.read(wait=True)
        if not chunks:
            raise Refused("it gave no answer")
        return chunks[-1]

    def _read_head(self) -> bool:
        end = self._raw.find(_HEAD_END)
        if end < 0:
            return False
        first, *lines = bytes(self._raw[:end]).decode("latin-1").lower().split("\r\n")
        del self._raw[: end + len(_HEAD_END)]
        with contextlib.suppress(LookupError, ValueError):
            self._status = int(first.split(" ")[1])
        if not self._status:
            self._fail("its answer is no HTTP")
        self._chunked = "transfer-encoding: chunked" in lines
        self._events = any(line.startswith("content-type: text/event-stream") for line in lines)
        return True

    def _unframe(self) -> None:
        if not self._chunked:
            self._body += self._raw
            self._raw.clear()
            return
        while (line := self._raw.find(b"\r\n")) >= 0:
            try:
                size = int(self._raw[:line], 16)
            except ValueError:
                self._fail("its chunks cannot be read")
            if len(self._raw) < line + 2 + size + 2:
                return
            self._body += self._raw[line + 2 : line + 2 + size]
            del self._raw[: line + 2 + size + 2]

    def _read_events(self) -> list[Chunk]:
        chunks = []
        while (end := self._body.find(b"\n\n")) >= 0:
            event = bytes(self._body[:end]).strip()
            del self._body[: end + 2]
            name, _, data = event.partition(b": ")
            if name not in (b"data", b"error") or data == b"[DONE]":
                continue
            chunks.append(self._decoded(data))
        return chunks

    def _read_whole(self) -> list[Chunk]:
        return [self._decoded(bytes(self._body))] if self.ended and self._body else []

    def _decoded(self, data: bytes) -> Chunk:
        try:
            chunk = _chunks.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._fail(f"its answer cannot be read: {error}")
        if chunk.error is not None:
            self._fail(_message(data))
        return chunk

    def _fail(self, why: str) -> NoReturn:
        self.close()
        raise Refused(f"llama.cpp: {why}")


def _message(body: bytes) -> str:
    try:
        error = msgspec.json.decode(body)
        error = error.get("error", error)
        return str(error.get("message", error))
    except (msgspec.DecodeError, AttributeError):
        return body[:200].decode("utf-8", "backslashreplace") or "it failed without a word"
