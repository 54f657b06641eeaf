"""Calls to models that live in another worker: the request goes there as it came, the answer comes back as it was made.

Each worker listens on a Unix socket in a folder that only its user may enter. Connections to it are kept and carry one
request at a time; whatever goes wrong on one ends it, so an answer can never reach another request. Nothing is sent
twice: whether a worker that died had run the call, nobody knows.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

import httptools

from pelton.errors import NotReady, PeltonError
from pelton.server.routes import Route
from pelton.server.wire.answer_head import head
from pelton.server.wire.connection import JSON_TYPE, Connection
from pelton.server.wire.request import Request
from pelton.server.workers.named_model import is_openai, keeper_of, named_in

log = logging.getLogger(__name__)

IDLE_KEPT: Final = 64  # connections to one sibling that wait for the next call
HOP_BY_HOP: Final = frozenset(  # RFC 9110 section 7.6.1: these are between the client and us
    (
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"expect", b"content-length",
    )
)  # fmt: skip
MODEL_PAGE: Final = re.compile(rb"/(?:v[12]/)?models/([A-Za-z0-9_.\-]{1,100})(?=[/:?]|$)")

Reject = Callable[[Connection, Request, str, str, PeltonError], None]


class Receiver(Protocol):
    """Who waits for an answer. `in_parts`: it takes them as they come, and then an empty one from `answered`."""

    in_parts: bool

    def part(self, data: bytes) -> None:
        """More of the answer, head included."""

    def answered(self, answer: bytes) -> None:
        """Head and body, as the sibling sent them."""

    def failed(self) -> None:
        """The sibling, or the connection to it, ended before the answer was whole."""


class Link(asyncio.Protocol):
    """One connection to a sibling."""

    def __init__(self, released: Callable[[Link], None], lost: Callable[[Link], None]) -> None:
        self._released = released
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._receiver: Receiver | None = None
        self._parts: list[bytes] = []
        self._complete = False
        self._keep = False

    def send(self, request: bytes, body: bytes, receiver: Receiver) -> None:
        """Sends one request; the receiver hears exactly once, unless the link is aborted."""
        transport = self._transport
        assert transport is not None
        self._receiver = receiver
        transport.writelines((request, body)) if body else transport.write(request)

    def abort(self) -> None:
        """Nobody waits any more: the sibling sees its caller leave."""
        self._receiver = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's transport

    def data_received(self, data: bytes) -> None:
        if self._receiver is None or self._complete:  # an answer that nobody asked for
            self._break()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            log.error("a worker's answer cannot be read: %s", error)
            self._break()
            return
        if self._receiver.in_parts:
            self._receiver.part(data)
        else:
            self._parts.append(data)
        if self._complete:
            self._answered()

    def pause(self) -> None:
        """Nothing more is read for now."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("two answers to one request")

    def on_message_complete(self) -> None:
        self._complete = True
        self._keep = self._parser.should_keep_alive()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(self)
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.failed()

    def _answered(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is None:  # it left while it took the last part
            self._break()
            return
        answer = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._complete = False
        if self._keep:
            self._released(self)
        elif self._transport is not None:
            self._transport.close()
        receiver.answered(answer)

    def _break(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Sibling:
    """The connections to one worker."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._loop = asyncio.get_running_loop()
        self._idle: list[Link] = []
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, request: bytes, body: bytes, receiver: Receiver, taken: Callable[[Link], bool]) -> None:
        """`taken` is told the link before anything is sent; False: nobody wants the answer any more."""
        if self._idle:
            link = self._idle.pop()
            if taken(link):
                link.send(request, body, receiver)
            return
        task = self._loop.create_task(self._connect(request, body, receiver, taken))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, request: bytes, body: bytes, receiver: Receiver, taken: Callable[[Link], bool]) -> None:
        try:
            _, link = await self._loop.create_unix_connection(lambda: Link(self._released, self._lost), self.path)
        except OSError:
            receiver.failed()
            return
        self._links.add(link)
        if taken(link):
            link.send(request, body, receiver)
        else:
            self._released(link)

    def close(self) -> None:
        """Ends all connections."""
        for link in list(self._links):
            link.abort()

    def _released(self, link: Link) -> None:
        if len(self._idle) < IDLE_KEPT:
            self._idle.append(link)
        else:
            link.abort()

    def _lost(self, link: Link) -> None:
        self._links.discard(link)
        if link in self._idle:
            self._idle.remove(link)


class Forwarded:
    """One request that another worker answers, as the client's connection sees it (`http.Exchange`)."""

    in_parts = False

    def __init__(self, connection: Connection, request: Request, name: str, protocol: str, reject: Reject) -> None:
        self._connection = connection
        self._request = request
        self._name = name
        self._protocol = protocol
        self._reject = reject
        self._link: Link | None = None
        self._left = False

    def taken(self, link: Link) -> bool:
        self._link = link
        return not self._left

    def left(self) -> None:
        self._left = True
        if self._link is not None:
            self._link.abort()

    def give_up(self, error: PeltonError) -> None:
        """The process does not wait for the answer."""
        self.left()
        self._refuse(error)

    def part(self, data: bytes) -> None:
        """Whole answers only."""

    def answered(self, answer: bytes) -> None:
        if self._left:
            return
        if self._request.method == b"HEAD":  # was sent as GET: the end of a HEAD's answer cannot be told
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self._connection.reply(answer, b"")

    def failed(self) -> None:
        if self._left:
            return
        message = f"model {self._name!r}: the worker that holds it ended and is started again"
        self._refuse(NotReady(message, retry_after=1.0, reason="worker_lost"))

    def _refuse(self, error: PeltonError) -> None:
        self._reject(self._connection, self._request, self._name, self._protocol, error)


class Streamed(Forwarded):
    """... and that goes to the client in the parts in which it comes."""

    in_parts = True

    def __init__(self, connection: Connection, request: Request, name: str, protocol: str, reject: Reject) -> None:
        super().__init__(connection, request, name, protocol, reject)
        self._begun = False
        self._waiting: asyncio.Task[None] | None = None

    def give_up(self, error: PeltonError) -> None:
        """Its own worker ends it, in the form of its protocol."""

    def part(self, data: bytes) -> None:
        if self._left:
            return
        self._begun = True
        if not self._connection.write(data) and self._waiting is None and self._link is not None:
            self._link.pause()
            self._waiting = asyncio.get_running_loop().create_task(self._resume(self._link))

    def answered(self, answer: bytes) -> None:
        if not self._left:
            self._connection.done()

    def failed(self) -> None:
        if self._begun and not self._left:
            self._connection.abort()  # the client must see that the answer is not whole
        else:
            super().failed()

    async def _resume(self, link: Link) -> None:
        await self._connection.drained()
        self._waiting = None
        if not self._left:
            link.resume()

    def _refuse(self, error: PeltonError) -> None:
        from pelton.server.openai.errors import of  # only where it is needed: it loads the framework of the pages

        told = of(error)
        body = told.body()
        lines = "".join(f"{name}: {value}\r\n" for name, value in told.headers.items()).encode()
        if not self._request.keep_alive:
            lines += b"connection: close\r\n"
        self._connection.reply(head(told.status, JSON_TYPE, len(body), lines), body)


class Forward:
    """Hands requests on. `places`: model -> number of the worker that holds it, of models that are not here.

    `limit`: bytes of a body after decompression, where it is read to know its model."""

    def __init__(
        self,
        siblings: Mapping[int, Sibling],
        places: Mapping[str, int],
        reject: Reject,
        limit: int = 64 * 1024 * 1024,
    ) -> None:
        self._siblings = siblings
        self._places = places
        self._reject = reject
        self._limit = limit

    def __call__(self, connection: Connection, request: Request, route: Route | None) -> bool:
        """Whether the request is for a model of another worker, and was sent there. `route`: None for a page."""
        made = Forwarded
        if route is not None:
            name, protocol = route.name, route.protocol
            place = self._places.get(name)
        else:
            name, protocol = model_of(request.target), ""
            place = self._places.get(name)
            if place is None and not name:
                made, name, place = Streamed, *self._by_body(request)
            elif b"generate" in request.target:
                made = Streamed
        if place is None:
            return False
        exchange = made(connection, request, name, protocol, self._reject)
        connection.exchange = exchange
        # An answer in parts has no length, and an old client knows no chunks: the end of the connection is its end.
        version = request.version if made is Streamed else "1.1"
        self._siblings[place].send(head_of(request, version), request.body, exchange, exchange.taken)
        return True

    def _by_body(self, request: Request) -> tuple[str, int | None]:
        """Of requests of the OpenAI API: the model that the body names, or the worker that an id names."""
        if request.method == b"POST" and is_openai(request.target):
            name = named_in(request, self._limit) if self._places else ""
            return name, self._places.get(name)
        keeper = keeper_of(request.target)
        return "", keeper if keeper in self._siblings else None


def model_of(target: bytes) -> str:
    """The model that a page is about (`/v2/models/NAME...`), or nothing."""
    path = target.partition(b"?")[0]
    match = MODEL_PAGE.match(unquote_to_bytes(path) if b"%" in path else path)
    return match[1].decode() if match else ""


def head_of(request: Request, version: str = "1.1") -> bytes:
    """The request's head for the sibling: as it came, but for what concerns the client's connection only."""
    method = b"GET" if request.method == b"HEAD" else request.method
    lines = [b"%b %b HTTP/%b" % (method, request.target, version.encode())]
    lines += [b"%b: %b" % header for header in request.headers if header[0] not in HOP_BY_HOP]
    if request.version == "1.0":
        lines = [line for line in lines if not line.startswith(b"host:")] + [b"host: worker"]
    if request.body:
        lines.append(b"content-length: %d" % len(request.body))
    elif request.method == b"POST":
        lines.append(b"content-length: 0")
    if not request.keep_alive:
        lines.append(b"connection: close")  # its answer then says so to the client
    return b"\r\n".join(lines) + b"\r\n\r\n"
