"""The thin HTTP/1.1 layer: one protocol object per connection, parsed by httptools (llhttp), no task per request.

A complete request goes to `dispatch`; its answer comes back through `Connection.reply`, on the same connection, in
order. Pipelined requests wait here, so a connection has one request in progress. llhttp is strict about what makes
request smuggling possible (both lengths, bad chunk sizes, bare line feeds); sizes and times are bounded here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import time
from typing import Any, Final, Protocol

import httptools
import msgspec

from pelton.server.heads import Heads
from pelton.server.limits import Limits
from pelton.server.status import PHRASES, HttpError, error_body

# Headers that change how an inference is answered; without one of them the hot path looks at no header at all.
SPECIAL: Final = frozenset(
    (
        b"content-encoding",
        b"accept-encoding",
        b"inference-header-content-length",
        b"x-request-id",
        b"traceparent",
        b"tracestate",
        b"pelton-timeout-ms",
        b"pelton-priority",
        b"authorization",
        b"x-api-key",
    )
)
METHODS: Final = frozenset((b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"))
JSON_TYPE: Final = b"application/json"


class Request(msgspec.Struct, gc=False):
    """One parsed request. Header names are lower case. `received` is when its last byte was read."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    special: bool
    body: bytes
    received: float
    keep_alive: bool
    version: str

    def header(self, name: bytes) -> bytes | None:
        """The value of a header that may stand once."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class Exchange(Protocol):
    """A request in progress, as its connection sees it."""

    def left(self) -> None:
        """The client closed the connection before the answer."""


Dispatch = Callable[["Connection", Request], None]


class Connection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_body",
        "_body_size",
        "_clock",
        "_dispatch",
        "_drained",
        "_failed",
        "_head_size",
        "_headers",
        "_heads",
        "_limits",
        "_message_since",
        "_method",
        "_parser",
        "_paused",
        "_pending",
        "_raw_head",
        "_registry",
        "_request",
        "_special",
        "_target",
        "_transport",
        "_write_blocked_since",
        "exchange",
        "last_reply",
        "received",
    )  # fmt: skip

    def __init__(
        self,
        dispatch: Dispatch,
        registry: set[Connection],
        limits: Limits,
        clock: Callable[[], float],
        heads: Heads | None = None,
    ) -> None:
        self._dispatch = dispatch
        self._registry = registry
        self._limits = limits
        self._clock = clock
        self._heads = heads or Heads()
        self._raw_head = b""  # of the message that begins in the bytes at hand
        self._transport: Any = None
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._pending: deque[Request] = deque()
        self._request: Request | None = None  # in progress
        self._message_since = 0.0  # when the message that is being read began; 0 between messages
        self._write_blocked_since = 0.0
        self._paused = False
        self._failed: HttpError | None = None
        self._drained: asyncio.Future[None] | None = None
        self.exchange: Exchange | None = None
        self.received = 0.0  # when bytes were last read
        self.last_reply = 0.0  # when the last answer was written; 0 before the first
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._special = False
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
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.left()
        self._parser = None  # breaks the reference cycle

    def data_received(self, data: bytes) -> None:
        if self._failed is not None or self._parser is None:
            return
        self.received = self._clock()
        self._raw_head = b""
        if not self._message_since and self._request is None and not self._write_blocked_since:
            end = data.find(b"\r\n\r\n") + 4
            raw = data[:end]
            head = self._heads.get(raw)
            if head is not None and len(data) == end + head.length:
                self._start(Request(b"POST", head.target, head.headers, False, data[end:], self.received, True, "1.1"))
                return
            self._raw_head = raw
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(HttpError(400, "protocol upgrades are not supported: send plain HTTP/1.1"))
        except httptools.HttpParserError as error:
            self.fail(self._failed or HttpError(400, f"not a valid HTTP/1.1 request: {error}"))

    def eof_received(self) -> bool:
        # A client that closes its sending side may still read the answer in progress; nothing else will come.
        return self._request is not None

    def pause_writing(self) -> None:
        self._write_blocked_since = self._clock()

    def resume_writing(self) -> None:
        self._write_blocked_since = 0.0
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._next()

    # ---- httptools' side

    def on_message_begin(self) -> None:
        self._message_since = self.received

    def on_url(self, target: bytes) -> None:
        self._target += target
        if len(self._target) > self._limits.path:
            self._refuse(414, f"the request target is longer than {self._limits.path} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        headers = self._headers
        headers.append((name, value))
        if name in SPECIAL:
            self._special = True
        self._head_size += len(name) + len(value)
        if self._head_size > self._limits.head or len(headers) > self._limits.headers:
            self._refuse(431, f"more than {self._limits.headers} header fields or {self._limits.head} bytes of them")

    def on_headers_complete(self) -> None:
        names = dict(self._headers)
        length = names.get(b"content-length")
        if length is not None and int(length) > self._limits.body:
            self._refuse(413, f"the body has {int(length)} bytes; this server takes {self._limits.body}")
        if b"host" not in names and self._parser is not None and self._parser.get_http_version() == "1.1":
            self._refuse(400, "HTTP/1.1 needs a Host header")
        expect = names.get(b"expect")
        if expect is not None and not self._request:
            if expect.lower() != b"100-continue":
                self._refuse(417, "the only expectation that is met here is 100-continue")
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_size += len(body)
        if self._body_size > self._limits.body:
            self._refuse(413, f"the body is larger than {self._limits.body} bytes")
        self._body.append(body)

    def on_message_complete(self) -> None:
        parser, body = self._parser, self._body
        assert parser is not None
        request = Request(
            parser.get_method(),
            self._target,
            self._headers,
            self._special,
            body[0] if len(body) == 1 else b"".join(body),
            self.received,
            parser.should_keep_alive(),
            parser.get_http_version(),
        )
        self._message_since = 0.0
        if self._raw_head and not request.special and request.keep_alive and request.version == "1.1":
            self._heads.learn(self._raw_head, request.target, request.headers, len(request.body))
        self._raw_head = b""
        self._reset()
        if self._request is not None or self._write_blocked_since:
            self._wait(request)
        else:
            self._start(request)

    def _refuse(self, status: int, message: str) -> None:
        self._failed = HttpError(status, message)
        raise self._failed  # httptools stops parsing; data_received answers

    # ---- requests and replies

    def _start(self, request: Request) -> None:
        self._request = request
        self._dispatch(self, request)

    def _wait(self, request: Request) -> None:
        self._pending.append(request)
        if len(self._pending) >= self._limits.pipelined and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _next(self) -> None:
        """Starts the next pipelined request."""
        if self._request is None and self._pending and not self._write_blocked_since:
            request = self._pending.popleft()
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._start(request)

    def write(self, data: bytes) -> None:
        """Part of an answer."""
        self._transport.write(data)

    def reply(self, head: bytes, body: bytes) -> None:
        """The whole answer of the request in progress: head up to and with the empty line, and the body."""
        if len(body) < 65_536:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        self.done()

    def done(self) -> None:
        """The answer of the request in progress is written."""
        request = self._request
        self._request = None
        self.exchange = None
        self.last_reply = self._clock()
        if request is None or not request.keep_alive:
            self._transport.close()
        elif self._pending:
            self._next()

    def abort(self) -> None:
        """Cuts the connection: an answer broke off in the middle, and the client must see that."""
        self._transport.abort()

    def fail(self, error: HttpError) -> None:
        """Answers a request that is wrong as HTTP and closes: what follows on the connection cannot be trusted."""
        self._failed = error
        if self._request is not None:  # an earlier answer is still due: it is given up with the connection
            self._transport.close()
            return
        body = error_body(str(error))
        self._transport.write(head(error.status, JSON_TYPE, len(body), b"connection: close\r\n") + body)
        self._transport.close()

    async def drained(self) -> None:
        """Returns when the client has taken what was written, or has left."""
        if self._write_blocked_since and self._parser is not None:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    # ---- the sweep

    def sweep(self, now: float) -> None:
        """Called about once a second: ends what takes too long."""
        limits = self._limits
        if self._write_blocked_since and now - self._write_blocked_since > limits.write_timeout:
            self._transport.abort()
        elif self._request is not None:
            return
        elif self._message_since and now - self._message_since > limits.read_timeout:
            self.fail(HttpError(408, f"the request was not complete within {limits.read_timeout:.0f} s"))
        elif not self._message_since and now - max(self.received, self.last_reply) > limits.idle_timeout:
            self._transport.close()

    def finish(self) -> None:
        """The server stops: closes now if nothing is in progress, else after the answer."""
        if self._request is None and not self._pending:
            self._transport.close()
        elif self._request is not None:
            self._request.keep_alive = False


_date: tuple[int, bytes] = (0, b"")
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def date() -> bytes:
    """The Date header's value (RFC 9110), made once a second."""
    global _date  # noqa: PLW0603 - a cache of one value
    now = int(time())
    if _date[0] != now:
        from time import gmtime

        t = gmtime(now)
        text = f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year} "
        text += f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT"
        _date = (now, text.encode())
    return _date[1]


def head(status: int, content_type: bytes, length: int, extra: bytes = b"") -> bytes:
    """The head of an answer; `extra` are whole header lines."""
    return b"HTTP/1.1 %d %b\r\ndate: %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n" % (
        status,
        PHRASES.get(status, "Status").encode(),
        date(),
        content_type,
        length,
        extra,
    )
