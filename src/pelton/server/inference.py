"""The hot way in: a parsed request becomes a call, the call's outcome becomes the answer."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Callable
from typing import Any, Final

from pelton.engine import Engine, Pick, Served
from pelton.errors import Cancelled, InvalidInput, ModelFailed, Overloaded, PeltonError
from pelton.server.protocols.codec import Answer, Codec, decompress
from pelton.server.protocols.status import error_body, error_headers, status_of
from pelton.server.routes import Route, Routes
from pelton.server.wire.answer_head import date, head
from pelton.server.wire.asgi import App, AsgiExchange
from pelton.server.wire.connection import JSON_TYPE, Connection, Request
from pelton.server.wire.inbox import Inbox
from pelton.server.wire.limits import Limits
from pelton.types import Call

log = logging.getLogger(__name__)

# The head of an answer: what all calls of a batch share, made once a batch, and the call's own.
BATCH_HEAD: Final = b"HTTP/1.1 200 OK\r\ndate: %b\r\npelton-version: %b\r\npelton-batch-rows: %d\r\nserver-timing: run;dur=%.3f, queue;dur="
CALL_HEAD: Final = b"%b%.3f%b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%bx-request-id: %b\r\n%b\r\n"
BUSY: Final = "the queue of this model is full: an answer would come later than its target; try again"
CLOSE: Final = b"connection: close\r\n"
KEY: Final = b"pelton-key"  # calls with the same key go to the same version while a canary runs
MAX_ID: Final = 128
COMPRESS_FROM: Final = 8 * 1024


class Inference:
    """One inference on one connection."""

    __slots__ = ("_codec", "_connection", "_context", "_engine", "_pick", "_request", "_served", "call")

    def __init__(
        self,
        engine: Engine,
        connection: Connection,
        request: Request,
        served: Served,
        codec: Codec,
        pick: Pick | None = None,
    ) -> None:
        self._engine = engine
        self._connection = connection
        self._request = request
        self._served = served
        self._codec = codec
        self._pick = pick
        self._context: Any = None
        self.call: Call | None = None

    def begin(self, limits: Limits) -> None:
        """Decodes and submits. Raises PeltonError for a body that cannot be a call."""
        request, served = self._request, self._served
        special = request.special
        body = request.body
        if special:
            encoding = request.header(b"content-encoding")
            if encoding is not None:
                body = decompress(body, encoding, limits.body)
        asked = self._codec.decode(request, body)
        self._context = asked.context
        timeout, priority, trace = asked.timeout, asked.priority, ""
        if special:
            timeout = _timeout(request) or timeout
            priority = _priority(request) or priority
            trace = _trace(request)
        call = self.call = Call(
            inputs=asked.inputs,
            rows=asked.rows,
            done=self._done,
            received=request.received,
            deadline=request.received + (timeout or served.target),
            fields=asked.fields,
            own_deadline=timeout > 0.0,
            priority=priority,
            protocol=self._codec.protocol,
            request_id=request_id(request),
            trace=trace,
        )
        pick = self._pick
        if pick is not None:
            call.route, call.key = pick.route, pick.key
        if served.mirror is not None:
            served.mirror.watch(call)
        connection = self._connection
        connection.exchange = self
        last = connection.last_reply
        self._engine.submit(served, call, request.received - last if last else 0.0)

    def left(self) -> None:
        if self.call is not None:
            self._engine.cancel(self._served, self.call)

    def _done(self, call: Call) -> None:
        self.call = None  # no cycle: the call holds this exchange through `done`
        outcome = call.outcome
        if isinstance(outcome, list):
            try:
                answer = self._codec.encode(call, outcome, self._context)
            except PeltonError as error:
                outcome = error
            except Exception as error:
                log.exception("model %s: the answer cannot be encoded", self._served.name)
                outcome = ModelFailed(f"the answer of model {self._served.name!r} cannot be encoded: {error}")
            else:
                self._reply(call, answer)
                return
        reply_error(self._connection, self._request, outcome or Cancelled("no outcome"), call.request_id)

    def _reply(self, call: Call, answer: Answer) -> None:
        batch = call.batch
        assert batch is not None
        request = self._request
        headers, body = answer.headers, answer.body
        if request.special and len(body) >= COMPRESS_FROM:
            headers, body = _compressed(request, answer)
        if not batch.head:
            batch.head = BATCH_HEAD % (date(), self._served.wire_version, batch.rows, batch.run_seconds * 1e3)
        self._connection.reply(
            CALL_HEAD
            % (
                batch.head,
                (batch.started - call.queued) * 1e3,
                b", prepare;dur=%.3f" % (call.prepared * 1e3) if call.prepared else b"",
                answer.content_type,
                len(body),
                headers,
                call.request_id.encode(),
                b"" if request.keep_alive else CLOSE,
            ),
            body,
        )


Forward = Callable[[Connection, Request, Route | None], bool]  # None: a page; whether another worker answers it


class Dispatcher:
    """Where every request goes: inference routes to the engine, all others to the ASGI application."""

    def __init__(
        self,
        engine: Engine,
        routes: Routes,
        app: App,
        limits: Limits,
        forward: Forward | None = None,
        inbox: Inbox | None = None,
    ) -> None:
        self._engine = engine
        self._routes = routes
        self._app = app
        self._limits = limits
        self._forward = forward
        self._inbox = inbox
        self._busy_date = b""
        self._busy = (b"", b"")  # the answer to calls that are turned away, made once a second
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, connection: Connection, request: Request) -> None:
        if request.method == b"POST":
            route = self._routes.find(request.target)
            if route is not None:
                self._infer(connection, request, route)
                return
        if self._forward is not None and self._forward(connection, request, None):
            return
        exchange = AsgiExchange(connection, request)
        connection.exchange = exchange
        task = asyncio.get_running_loop().create_task(exchange.run(self._app))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _too_busy(self, request: Request, served: Served) -> bool:
        """Whether a call would be refused for being late: asked before its body is decoded."""
        if request.special and request.header(b"pelton-timeout-ms") is not None:
            return False
        inbox = self._inbox
        if inbox is not None and inbox.late(request.received, served.target):
            return True
        scheduler = served.scheduler
        return scheduler.behind() and scheduler.one_more(self._engine.clock()) > request.received + served.target

    def _turn_away(
        self, connection: Connection, request: Request, route: Route, served: Served, pick: Pick | None
    ) -> None:
        """Refuses as cheaply as can be: under overload most of the work would be refusing."""
        _, lane, key = pick or (served, 0, 0)
        self._engine.turn_away(served, route.protocol, request.received, lane, key)
        if request.special or not request.keep_alive:
            reply_error(connection, request, Overloaded(BUSY, retry_after=served.target), request_id(request))
            return
        if self._busy_date is not date():
            self._busy_date = date()
            body = error_body(BUSY)
            extra = error_headers(Overloaded(BUSY))
            self._busy = (head(503, JSON_TYPE, len(body), extra), body)
        connection.reply(*self._busy)

    def _infer(self, connection: Connection, request: Request, route: Route) -> None:
        try:
            served = self._engine.resolve(route.name, route.version)
            pick = None
            if served.split is not None and not route.version:
                pick = served.split.pick(request.header(KEY) if request.special else None)
                served = pick.served
            if self._too_busy(request, served):
                self._turn_away(connection, request, route, served, pick)
                return
            Inference(self._engine, connection, request, served, route.codec(served), pick).begin(self._limits)
        except PeltonError as error:
            if self._forward is not None and self._forward(connection, request, route):
                return
            self._engine.reject(route.name, route.protocol, error, request.received)
            reply_error(connection, request, error, request_id(request))
        except Exception:
            log.exception("decoding a request for %s failed", route.name)
            failure = ModelFailed("internal error; the log of the server has the details")
            self._engine.reject(route.name, route.protocol, failure, request.received)
            reply_error(connection, request, failure, "")


def reply_error(connection: Connection, request: Request, error: PeltonError, request_id: str) -> None:
    """Answers with an error. Never compressed: clients do not decompress errors."""
    body = error_body(str(error))
    extra = error_headers(error)
    if request_id:
        extra += b"x-request-id: %b\r\n" % request_id.encode()
    if not request.keep_alive:
        extra += CLOSE
    connection.reply(head(status_of(error), JSON_TYPE, len(body), extra), body)


_prefix: Final = f"{os.getpid():x}{int.from_bytes(os.urandom(4)):08x}-"
_counter: Final = itertools.count()


def request_id(request: Request) -> str:
    """The client's own id where it sent a usable one, else a new one, unique in the fleet."""
    if request.special:
        given = request.header(b"x-request-id")
        if given and len(given) <= MAX_ID and given.isascii() and given.decode().isprintable():
            return given.decode()
    return f"{_prefix}{next(_counter):x}"


def _timeout(request: Request) -> float:
    """The caller's own deadline in seconds, 0 for none."""
    given = request.header(b"pelton-timeout-ms")
    if given is None:
        return 0.0
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 < value <= 86_400_000:
        raise InvalidInput("the header pelton-timeout-ms must be a number of milliseconds above 0")
    return value / 1e3


def _priority(request: Request) -> int:
    """The caller's urgency: larger goes first, 0 is the default."""
    given = request.header(b"pelton-priority")
    if given is None:
        return 0
    try:
        value = int(given)
    except ValueError:
        value = 99
    if not -8 <= value <= 8:
        raise InvalidInput("the header pelton-priority must be a whole number from -8 to 8; larger is more urgent")
    return value


def _trace(request: Request) -> str:
    """The W3C trace context's `traceparent` (version 00), or nothing where it is malformed."""
    given = request.header(b"traceparent")
    if given is None or len(given) != 55 or given.count(b"-") != 3:
        return ""
    return given.decode("latin-1")


def _compressed(request: Request, answer: Answer) -> tuple[bytes, bytes]:
    """gzip or deflate, where the client asks for it by name and the body is worth it."""
    accepted = request.header(b"accept-encoding")
    if accepted is None:
        return answer.headers, answer.body
    import zlib

    names = [part.split(b";")[0].strip().lower() for part in accepted.split(b",")]
    for name, bits in ((b"gzip", 31), (b"deflate", 15)):
        if name in names:
            deflater = zlib.compressobj(1, zlib.DEFLATED, bits)
            body = deflater.compress(answer.body) + deflater.flush()
            return answer.headers + b"content-encoding: %b\r\nvary: accept-encoding\r\n" % name, body
    return answer.headers, answer.body
