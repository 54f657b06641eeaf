"""The other way in: everything that is not an inference is an ASGI application behind the same connection.

Specification: https://asgi.readthedocs.io (HTTP & WebSocket message format 2.3; HTTP only).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import unquote

from pelton.server.protocols.status import PHRASES, error_body
from pelton.server.wire.answer_head import date
from pelton.server.wire.connection import Connection
from pelton.server.wire.request import Request

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

NO_BODY: Final = frozenset((204, 304))
BREAKS: Final = frozenset(b"\r\n\0")
FRAMING: Final = frozenset((b"content-length", b"transfer-encoding", b"connection"))  # decided here, not by the app


class AsgiExchange:
    """One request that an ASGI application answers."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._over = asyncio.Event()  # answered, or the client left
        self._body_given = False
        self._started: Message | None = None
        self._head_sent = False
        self._chunked = False
        self._promised: int | None = None  # bytes of body that the head announced
        self._sent = 0

    def left(self) -> None:
        self._over.set()

    async def run(self, app: App) -> None:
        """Answers; a fault of the application becomes a 500, or cuts an answer that already began."""
        try:
            await app(self._scope(), self._receive, self._send)
        except Exception:
            log.exception("answering %s failed", self._request.target[:200])
        if not self._over.is_set():
            self._give_up()

    def _give_up(self) -> None:
        if self._head_sent:
            self._connection.abort()
            return
        self._over.set()
        body = error_body("internal error; the log of the server has the details")
        self._connection.reply(self._head(500, [(b"content-type", b"application/json")], len(body)), body)

    def _scope(self) -> Message:
        request = self._request
        path, _, query = request.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.version,
            "method": request.method.decode("latin-1"),
            "scheme": "http",
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": request.headers,
            "client": self._connection.peer,
            "server": None,
        }

    async def _receive(self) -> Message:
        if not self._body_given:
            self._body_given = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._over.is_set():
            return
        if message["type"] == "http.response.start":
            self._started = message
            return
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            await self._send_part(body)
        else:
            self._send_last(body)

    async def _send_part(self, body: bytes) -> None:
        if not self._head_sent:
            self._begin(None)
        self._write(body)
        await self._connection.drained()

    def _send_last(self, body: bytes) -> None:
        if not self._head_sent:
            self._begin(len(body))
        self._write(body)
        self._over.set()
        if self._chunked:
            self._connection.write(b"0\r\n\r\n")
        elif self._promised is None:
            self._request.keep_alive = False  # the end of the connection is the end of the body
        elif self._sent < self._promised:
            self._connection.abort()
            return
        self._connection.done()

    def _write(self, body: bytes) -> None:
        if self._promised is not None:
            body = body[: self._promised - self._sent]
            self._sent += len(body)
        if body:
            self._connection.write(b"%x\r\n%b\r\n" % (len(body), body) if self._chunked else body)

    def _begin(self, length: int | None) -> None:
        """Writes the head. `length`: of the body, where all of it is there."""
        started = self._started or {"status": 500, "headers": []}
        status, headers = started["status"], [(name.lower(), value) for name, value in started.get("headers", [])]
        given = dict(headers).get(b"content-length")
        if self._request.method == b"HEAD" or status in NO_BODY:
            self._promised = 0
            length = int(given) if given else length if status not in NO_BODY else None
        elif length is None and given is not None:
            length = self._promised = int(given)
        else:
            self._promised = length
        self._chunked = self._promised is None and self._request.version == "1.1"
        self._connection.write(self._head(status, headers, length))
        self._head_sent = True

    def _head(self, status: int, headers: Any, length: int | None) -> bytes:
        lines = [b"HTTP/1.1 %d %b\r\ndate: %b\r\n" % (status, PHRASES.get(status, "Status").encode(), date())]
        for name, value in headers:
            if not BREAKS.isdisjoint(name + value):
                raise ValueError(f"the header {name!r} holds a line break: {value[:100]!r}")
            if name not in FRAMING:
                lines.append(b"%b: %b\r\n" % (name, value))
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        elif length is not None:
            lines.append(b"content-length: %d\r\n" % length)
        if not self._request.keep_alive or (length is None and not self._chunked and status not in NO_BODY):
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)
