"""The thin HTTP/1.1 layer: one protocol object per connection, parsed by httptools (llhttp), no task per request.

A complete request goes to `dispatch`; its answer comes back through `Connection.reply`, on the same connection, in
order. Pipelined requests wait here, so a connection has one request in progress. llhttp is strict about what makes
request smuggling possible (both lengths, bad chunk sizes, bare line feeds); the rest of it (a repeated Host, other
transfer-encodings, trailers), sizes and times are bounded here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import httptools

from pelton.server.protocols.status import HttpError, error_body
from pelton.server.wire.answer_head import head
from pelton.server.wire.framing import METHODS, SLASH, check_fields, checked_target, head_too_large, without_upgrade
from pelton.server.wire.inbox import Inbox
from pelton.server.wire.known_heads import Heads
from pelton.server.wire.limits import Limits
from pelton.server.wire.request import SPECIAL, Request

log = logging.getLogger(__name__)

JSON_TYPE: Final = b"application/json"


class Exchange(Protocol):
    """A request in progress, as its connection sees it."""

    def left(self) -> None:
        """The client closed the connection before the answer."""


Dispatch = Callable[["Connection", Request], None]


class Connection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_blocked_size", "_body", "_body_size", "_clock", "_deadline", "_dispatch", "_doors", "_drained", "_expects",
        "_failure", "_fields", "_head_size", "_headers", "_heads", "_inbox", "_known", "_limits", "_maybe_old", "_message_since",
        "_parser", "_paused", "_pending", "_plain_head", "_raw", "_raw_head", "_registry", "_request", "_special",
        "_starting", "_target", "_transport", "_write_blocked_since", "exchange", "last_reply", "received",
    )  # fmt: skip

    def __init__(
        self,
        dispatch: Dispatch,
        registry: set[Connection],
        limits: Limits,
        clock: Callable[[], float],
        heads: Heads | None = None,
        inbox: Inbox | None = None,
    ) -> None:
        self._dispatch = dispatch
        self._registry = registry
        self._limits = limits
        self._clock = clock
        self._heads = heads or Heads()
        self._known = self._heads.get
        self._inbox = inbox  # None: bytes are handled as they are read
        self._doors = inbox.doors.shut if inbox is not None else {}
        self._raw_head = b""  # of the message that begins in the bytes at hand
        self._transport: Any = None
        # None: nothing more is taken from this connection; what arrives is thrown away
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._plain_head = b""  # of a request that asked for an upgrade, without that
        self._pending: deque[Request] = deque()
        self._request: Request | None = None  # in progress
        self._starting = False
        self._message_since = 0.0  # when the message that is being read began; 0 between messages
        self._raw = 0  # bytes read of that message, less those of its first read
        self._write_blocked_since = 0.0
        self._blocked_size = 0
        self._deadline = 0.0  # of the closing that has begun; 0 before
        self._paused = False
        self._failure: HttpError | None = None  # answered when everything before it is
        self._drained: asyncio.Future[None] | None = None
        self.exchange: Exchange | None = None
        self.received = 0.0  # when bytes were last read
        self.last_reply = 0.0  # when the last answer was written; 0 before the first
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._fields: list[tuple[bytes, bytes]] | None = None  # the headers, once they are complete
        self._special = False
        self._expects = False
        self._head_size = 0
        self._body: list[bytes] = []
        self._body_size = 0

    # ---- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._registry.add(self)
        self.received = self._clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.discard(self)
        self._pending.clear()
        self._failure = None
        self._write_blocked_since = 0.0
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.left()
        self._parser = None  # breaks the reference cycle

    def data_received(self, data: bytes) -> None:
        inbox = self._inbox
        if inbox is None:
            self.take(data, self._clock())
        elif inbox.waiting:
            inbox.waiting.append((self, data))
        else:
            inbox.put(self, data)

    def take(self, data: bytes, received: float) -> None:
        """Handles bytes that were read at `received`."""
        parser = self._parser
        if parser is None:
            return
        self.received = received
        raw = b""
        if self._request is None and not (self._message_since or self._pending or self._write_blocked_since):
            end = data.find(b"\r\n\r\n") + 4
            raw = data[:end]
            head = self._known(raw)
            if head is not None and len(data) == end + head.length:
                if self._doors and head.usual and self._turned_away(head.target, received):
                    return
                self._request = Request(
                    b"POST", head.target, head.headers, head.special, data[end:], received, True, "1.1"
                )
                self._dispatch(self, self._request)
                return
        self._raw_head = raw
        self._parse(parser, data)

    def _turned_away(self, target: bytes, received: float) -> bool:
        """Whether the call is refused at a door, and that was answered."""
        inbox = self._inbox
        if inbox is None or (door := inbox.doors.at(target, received)) is None:
            return False
        inbox.refused = True
        self._transport.write(door.answer)
        self.last_reply = self._clock()
        door.account(received)
        return True

    def _parse(self, parser: httptools.HttpRequestParser, data: bytes | memoryview) -> None:
        head = b""
        while True:
            try:
                if head:
                    parser.feed_data(head)
                if len(data):
                    parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # h2c, websocket: not taken up (RFC 9110, 7.8). llhttp leaves the body of such a request unread, so
                # the head is read again without what made it one.
                head, data = self._plain_head, memoryview(data)[upgrade.args[0] :]
                self._reset()
                self._parser = parser = httptools.HttpRequestParser(self)
                continue
            except httptools.HttpParserError as error:
                self._unparsable(error)
            break
        if self._message_since and self._parser is not None:
            self._check_framing(len(data))

    def eof_received(self) -> bool:
        # A caller that hangs up looks the same as one that only closes its sending side; the first is common, and its
        # calls must not keep a model busy. So both have left (Go's net/http and uvicorn read it so, too).
        self._parser = None
        return False

    def pause_writing(self) -> None:
        self._write_blocked_since = self._clock()
        self._blocked_size = self._transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        self._write_blocked_since = 0.0
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._next()

    # ---- httptools' side

    def on_message_begin(self) -> None:
        self._message_since = self.received
        self._raw = -1

    def on_url(self, target: bytes) -> None:
        self._target += target
        if len(self._target) > self._limits.path:
            raise HttpError(414, f"the request target is longer than {self._limits.path} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        headers = self._headers
        headers.append((name, value))
        if name in SPECIAL:
            self._special = True
        self._head_size += len(name) + len(value)
        if self._head_size > self._limits.head or len(headers) > self._limits.headers:
            raise head_too_large(self._limits)

    def on_headers_complete(self) -> None:
        headers = self._headers
        self._fields, self._headers = headers, []  # what still comes are trailers: counted, then dropped
        names = dict(headers)
        self._maybe_old = b"connection" in names
        length = names.get(b"content-length")
        if length is not None and int(length) > self._limits.body:
            raise HttpError(413, f"the body has {int(length)} bytes; this server takes {self._limits.body}")
        if (
            len(names) != len(headers)
            or b"host" not in names
            or b"transfer-encoding" in names
            or b"expect" in names
            or b"upgrade" in names
        ):
            self._check_unusual(names)

    def on_body(self, body: bytes) -> None:
        self._body_size += len(body)
        if self._body_size > self._limits.body:
            raise HttpError(413, f"the body is larger than {self._limits.body} bytes")
        self._body.append(body)

    def on_message_complete(self) -> None:
        parser, body, fields = self._parser, self._body, self._fields
        assert parser is not None
        method, target, version, keep_alive = parser.get_method(), self._target, "1.1", parser.should_keep_alive()
        if self._maybe_old or not keep_alive:  # only HTTP/1.1 stays without saying so
            version = parser.get_http_version()
            keep_alive = keep_alive and version == "1.1"
        if version != "1.1" or method not in METHODS or target[0] != SLASH:
            target = checked_target(method, target, version)
        if fields is None:  # an upgrade: comes again
            return
        whole = body[0] if len(body) == 1 else b"".join(body)
        request = Request(method, target, fields, self._special, whole, self.received, keep_alive, version)
        self._message_since = 0.0
        if self._raw_head and keep_alive:
            self._heads.learn(self._raw_head, target, request.headers, len(request.body), request.special)
        self._raw_head = b""
        self._reset()
        if not keep_alive:
            self._parser = None
        if self._request is not None or self._write_blocked_since or self._pending:
            self._wait(request)
        else:
            self._request = request
            self._dispatch(self, request)
        if not keep_alive:
            raise HttpError(400, "bytes behind the last request")  # stops the parser; nobody reads this

    def _check_unusual(self, names: dict[bytes, bytes]) -> None:
        """Headers that most requests do not have, or have once."""
        parser, fields = self._parser, self._fields
        assert parser is not None
        assert fields is not None
        version = parser.get_http_version()
        check_fields(names, fields, version)
        if parser.should_upgrade():
            self._plain_head = without_upgrade(parser.get_method(), self._target, version, fields)
            self._fields = None
            return
        if b"expect" in names and version == "1.1":
            length = names.get(b"content-length", b"0")
            self._expects = b"transfer-encoding" in names or length.strip(b"0 \t") != b""
            if self._request is None and not self._pending:
                self._continue()

    def _continue(self) -> None:
        """Tells a client that waits before it sends its body to go on."""
        if self._expects:
            self._expects = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _check_framing(self, size: int) -> None:
        """Bounds what the parser collects or skips without telling: one endless header, chunks of one byte."""
        if self._raw < 0:  # the message began in the middle of this read
            self._raw = 0
            return
        self._raw += size
        limits = self._limits
        if self._fields is None:
            if self._raw > limits.head + limits.path:
                self.fail(head_too_large(self._limits))
        elif self._raw > limits.head + limits.path + 17 * self._body_size:
            self.fail(HttpError(400, "the body comes in too small chunks, or with too large chunk extensions"))

    def _unparsable(self, error: httptools.HttpParserError) -> None:
        if self._parser is None:  # the bytes are behind the last request
            return
        cause = error.__context__
        if isinstance(cause, HttpError):
            self.fail(cause)
        elif isinstance(error, httptools.HttpParserCallbackError):
            log.error("a request could not be started", exc_info=cause)
            self.fail(HttpError(500, "internal error; the log of the server has the details"))
        else:
            self.fail(HttpError(400, f"not a valid HTTP/1.1 request: {error}"))

    # ---- requests and replies

    def _wait(self, request: Request) -> None:
        self._pending.append(request)
        if len(self._pending) >= self._limits.pipelined and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _next(self) -> None:
        """Starts pipelined requests, until one is not answered at once. Reading goes on when none waits any more."""
        if self._starting:  # called by an answer given inside the loop below
            return
        self._starting = True
        turns = self._limits.pipelined
        while self._pending and self._request is None and not self._write_blocked_since:
            if turns == 0:  # others want their turn
                asyncio.get_running_loop().call_soon(self._next)
                break
            turns -= 1
            self._request = self._pending.popleft()
            self._dispatch(self, self._request)
        self._starting = False
        if not self._pending:
            if self._paused:
                self._paused = False
                self._message_since = self._message_since and self._clock()  # it was not the client who waited
                self._transport.resume_reading()
            if self._request is None:
                self._quiet()

    def _quiet(self) -> None:
        """All that was asked is answered."""
        if self._parser is not None:
            self._continue()
        elif self._failure is not None:
            self._answer_failure(self._failure)
        elif not self._deadline:
            self._close()

    def write(self, data: bytes) -> bool:
        """Part of an answer. False: the client takes less than is written; `drained` waits for it."""
        self._transport.write(data)
        return not self._write_blocked_since

    def send(self, answer: bytes) -> None:
        """The whole answer of the request in progress, which stays open for more."""
        self._transport.write(answer)
        self._request = None
        self.exchange = None
        self.last_reply = self._clock()
        if self._pending:
            self._next()
        elif self._parser is None or self._expects:
            self._quiet()

    def reply(self, head: bytes, body: bytes) -> None:
        """The whole answer of the request in progress: head up to and with the empty line, and the body."""
        if len(body) < 65_536:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        self.done()

    @property
    def peer(self) -> tuple[str, int] | None:
        """Address and port of the other end; None: it has none."""
        found = self._transport.get_extra_info("peername") if self._transport is not None else None
        return (str(found[0]), int(found[1])) if isinstance(found, tuple) and len(found) >= 2 else None

    def done(self) -> None:
        """The answer of the request in progress is written."""
        request = self._request
        self._request = None
        self.exchange = None
        self.last_reply = self._clock()
        if request is None or not request.keep_alive:
            self._close()
        elif self._pending:
            self._next()
        elif self._parser is None or self._expects:
            self._quiet()

    def abort(self) -> None:
        """Cuts the connection: an answer broke off in the middle, and the client must see that."""
        self._transport.abort()

    def fail(self, error: HttpError) -> None:
        """A request is wrong as HTTP: answered when those before it are, then closed, as no byte behind it counts."""
        self._parser = None
        self._message_since = 0.0
        self._failure = error
        if self._request is None and not self._pending:
            self._answer_failure(error)

    def _answer_failure(self, error: HttpError) -> None:
        """Writes the answer, and reads on for a while: closing at once could destroy it before the client reads it."""
        self._failure = None
        transport = self._transport
        body = error_body(str(error))
        transport.write(head(error.status, JSON_TYPE, len(body), b"connection: close\r\n") + body)
        self._deadline = self._clock() + self._limits.linger
        if self._paused:
            self._paused = False
            transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()

    def _close(self) -> None:
        self._parser = None
        self._deadline = self._clock() + self._limits.write_timeout
        self._transport.close()

    async def drained(self) -> None:
        """Returns when the client has taken what was written, or has left."""
        if self._write_blocked_since:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    # ---- the sweep

    def sweep(self, now: float) -> None:
        """Called about once a second: ends what takes too long."""
        limits = self._limits
        if self._deadline:
            self._end_closing(now)
        elif self._write_blocked_since:
            if self._reader_stuck(now):
                self._transport.abort()
        elif self._request is not None or self._pending:
            return
        elif self._message_since and now - self._message_since > limits.read_timeout:
            self.fail(HttpError(408, f"the request was not complete within {limits.read_timeout:.0f} s"))
        elif not self._message_since and now - max(self.received, self.last_reply) > limits.idle_timeout:
            self._close()

    def _end_closing(self, now: float) -> None:
        if now <= self._deadline:
            return
        if self._transport.is_closing():  # what is left to write does not get through
            self._transport.abort()
        else:
            self._close()

    def _reader_stuck(self, now: float) -> bool:
        """Whether the client has taken nothing for the whole of the write timeout."""
        size = self._transport.get_write_buffer_size()
        if size < self._blocked_size:
            self._write_blocked_since = now
        self._blocked_size = size
        return now - self._write_blocked_since > self._limits.write_timeout

    def finish(self) -> None:
        """The server stops: closes after the last answer that is due; a request that is half here is refused."""
        last = self._pending[-1] if self._pending else self._request
        if last is not None:
            last.keep_alive = False
            self._parser = None
        elif self._message_since and self._parser is not None:
            self.fail(HttpError(503, "this server is stopping; ask another one"))
        elif not self._transport.is_closing():
            self._close()
