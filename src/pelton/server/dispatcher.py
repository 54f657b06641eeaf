"""Where every request goes: inference routes to the engine, all others to the ASGI application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from pelton.engine import Engine, Pick, Served
from pelton.errors import ModelFailed, Overloaded, PeltonError
from pelton.scheduling.admission import refused_until
from pelton.server.call_headers import ID_NUMBER, ID_PREFIX, KEY, request_id
from pelton.server.inference import Inference, answer, decoded, reply_error
from pelton.server.protocols.codec import Codec
from pelton.server.protocols.status import error_body, error_headers
from pelton.server.routes import Route, Routes
from pelton.server.wire.answer_head import date, head
from pelton.server.wire.asgi import App, AsgiExchange
from pelton.server.wire.connection import JSON_TYPE, Connection
from pelton.server.wire.doors import Door
from pelton.server.wire.inbox import Inbox
from pelton.server.wire.limits import Limits
from pelton.server.wire.request import Request
from pelton.types import Call

log = logging.getLogger(__name__)

BUSY: Final = "the queue of this model is full: an answer would come later than its target; try again"

Forward = Callable[[Connection, Request, Route | None], bool]  # None: a page; whether another worker answers it


class Lot:
    """Calls in their plainest form, of one version, that came in the same turn, and after how many seconds each caller
    came back."""

    __slots__ = ("calls", "returned", "served")

    def __init__(self) -> None:
        self.served: Served | None = None
        self.calls: list[Call] = []
        self.returned: list[float] = []


class Dispatcher:
    """Called by connections with each request."""

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
        self._current = engine.directory.answering
        self._routes = routes
        self._known = routes.known
        self._lot = Lot()
        self._app = app
        self._limits = limits
        self._forward = forward
        self._inbox = inbox or Inbox(lambda _: None, engine.clock, lambda: None)  # one that nobody waits in
        self._busy_date = b""
        self._busy = b""  # the answer to calls that are turned away, made once a second
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, connection: Connection, request: Request) -> None:
        """Answers now or later; never raises."""
        route = self._known(request.target)
        if (
            route is None
            or (quick := route.quick) is None
            or request.special
            or (served := self._current(route.name)) is not route.served
            or served is None
            or served.split is not None
            or served.mirror is not None
            or request.method != b"POST"
            or self._engine.draining
        ):
            self._any(connection, request, route or self._routes.find(request.target))
            return
        lot = self._lot
        if lot.served is not served:
            self.submit()
            lot.served = served
        batcher = served.scheduler.batcher
        if batcher.rows + len(lot.calls) >= batcher.full_rows or self._inbox.waited > served.target:
            self.submit()
            if until := self._busy_until(request, served):
                self._turn_away(connection, request, route, served, None, until)
                return
            lot.served = served
        inputs = quick.take(request.body)
        if inputs is None:
            self._any(connection, request, route)
            return
        received = request.received
        call = Inference(
            inputs, 1, answer, received, received + served.target, protocol=route.protocol,
            request_id=f"{ID_PREFIX}{next(ID_NUMBER):x}", connection=connection, request=request,
            codec=route.compiled, served=served, engine=self._engine, give=quick.give,
        )  # fmt: skip
        connection.exchange = call
        last = connection.last_reply
        lot.calls.append(call)
        lot.returned.append(received - last if last else 0.0)
        if not self._inbox.handling:
            self.submit()

    def submit(self) -> None:
        """Hands the calls of a lot to the engine: all that was read in this turn has been looked at."""
        lot = self._lot
        served, calls, returned = lot.served, lot.calls, lot.returned
        if served is not None and calls:
            lot.calls, lot.returned = [], []
            self._engine.submit_all(served, calls, returned)
        lot.served = None

    def _any(self, connection: Connection, request: Request, route: Route | None) -> None:
        """Any request: also those that are no inference, or none in its plainest form."""
        if route is None or request.method != b"POST":
            self._page(connection, request)
            return
        try:
            served = None if route.version else self._current(route.name)
            if served is None or self._engine.draining:
                served = self._engine.resolve(route.name, route.version)
            pick = None
            if served.split is not None and not route.version:
                pick = served.split.pick(request.header(KEY) if request.special else None)
                served = pick.served
            batcher = served.scheduler.batcher
            if (batcher.rows >= batcher.full_rows or self._inbox.waited > served.target) and (
                until := self._busy_until(request, served)
            ):
                self._turn_away(connection, request, route, served, pick, until)
            else:
                self._begin(connection, request, served, route.codec(served), pick)
        except PeltonError as error:
            if self._forward is None or not self._forward(connection, request, route):
                self._engine.reject(route.name, route.protocol, error, request.received)
                reply_error(connection, request, error, request_id(request))
        except Exception:
            log.exception("decoding a request for %s failed", route.name)
            failure = ModelFailed("internal error; the log of the server has the details")
            self._engine.reject(route.name, route.protocol, failure, request.received)
            reply_error(connection, request, failure, "")

    def _begin(self, connection: Connection, request: Request, served: Served, codec: Codec, pick: Pick | None) -> None:
        """Decodes and submits. Raises PeltonError for a body that cannot be a call."""
        call = decoded(self._engine, connection, request, served, codec, self._limits)
        if pick is not None:
            call.route, call.key = pick.route, pick.key
        if served.mirror is not None:
            served.mirror.watch(call)
        connection.exchange = call
        last = connection.last_reply
        self._engine.submit(served, call, request.received - last if last else 0.0)

    def _page(self, connection: Connection, request: Request) -> None:
        if self._forward is not None and self._forward(connection, request, None):
            return
        exchange = AsgiExchange(connection, request)
        connection.exchange = exchange
        task = asyncio.get_running_loop().create_task(exchange.run(self._app))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _busy_until(self, request: Request, served: Served) -> float:
        """Until when a call like this must come to be refused for being late; 0: this one is in time. Asked before its
        body is decoded."""
        if request.special and request.header(b"pelton-timeout-ms") is not None:
            return 0.0
        if self._inbox.waited > served.target:
            return request.received
        if not served.scheduler.behind():
            return 0.0
        now = self._engine.clock()
        until = refused_until(now, served.scheduler.one_more(now), served.target)
        return until if until > request.received else 0.0

    def _turn_away(
        self, connection: Connection, request: Request, route: Route, served: Served, pick: Pick | None, until: float
    ) -> None:
        """Refuses as cheaply as can be: under overload most of the work would be refusing. Calls of the same target that
        come until `until` are refused at its door."""
        self._inbox.refused = True
        _, lane, key = pick or (served, 0, 0)
        self._engine.turn_away(served, route.protocol, request.received, lane, key)
        if not request.keep_alive or (request.special and request.header(b"x-request-id") is not None):
            reply_error(connection, request, Overloaded(BUSY, retry_after=served.target), request_id(request))
            return
        if self._busy_date is not date():
            self._busy_date = date()
            body = error_body(BUSY)
            extra = error_headers(Overloaded(BUSY))
            self._busy = head(503, JSON_TYPE, len(body), extra) + body
        if pick is None:
            account = partial(self._engine.turn_away, served, route.protocol)
            self._inbox.doors.close(request.target, Door(until, served.scheduler.batcher, self._busy, account))
        connection.reply(self._busy, b"")
