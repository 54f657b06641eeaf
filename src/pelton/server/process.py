"""One serving process: its collaborators, and how it comes to an end."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol, runtime_checkable

from pelton.deployments import Deployment
from pelton.engine import Engine
from pelton.errors import Draining, PeltonError
from pelton.packages import Package
from pelton.records import Ledger
from pelton.registry import Registry
from pelton.scheduling import Executor
from pelton.server.control.converger import Places
from pelton.server.control.evidence import Evidence
from pelton.server.control.following import Following
from pelton.server.control.plan import Scope
from pelton.server.dispatcher import Dispatcher, Forward
from pelton.server.fleet import Fleet
from pelton.server.inference import hand_on
from pelton.server.lifecycle import cores, settle_garbage, tls_context
from pelton.server.routes import Routes
from pelton.server.sinks import sinks_of
from pelton.server.site import Site, lazy_app
from pelton.server.wire.connection import Connection
from pelton.server.wire.inbox import Inbox
from pelton.server.wire.known_heads import Heads
from pelton.server.wire.limits import Limits
from pelton.server.wire.listener import Listener
from pelton.settings import Settings

log = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 1.0
CLOSE_SECONDS: Final = 4.0  # for giving models back at the end
LAST_SECONDS: Final = 0.5  # for telling callers that their answers will not come
POLL_SECONDS: Final = 0.01
MEGABYTE: Final = 1024 * 1024


@runtime_checkable
class Answerable(Protocol):
    """A request in progress whose caller can be told an error instead of its answer."""

    def give_up(self, error: PeltonError) -> None: ...


class Server:
    """One serving process. All collaborators are made here.

    `forward` hands on requests for models of other workers; `share` says how many connections are for this process
    now, of those that wait (see `Listener`); `connections` will hold those that are open. `scope`: for which models the
    store is followed; None: for none. `places` says which models this process holds, where it has siblings.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        sock: socket.socket,
        forward: Forward | None = None,
        share: Callable[[int], int] | None = None,
        connections: set[Connection] | None = None,
        scope: Scope | None = None,
        places: Places | None = None,
    ) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self.limits = limits_of(settings)
        clock = time.perf_counter
        self.clock = clock
        evidence = Evidence()
        self._sinks = [*sinks_of(settings, clock, self._loop.call_later), evidence]
        self.ledger = Ledger(clock, self._sinks)
        self._executor = Executor(self._loop, settings.slots or cores(), clock)
        weights = settings.weights()
        self.engine = Engine(
            self._loop, self._executor, self.ledger, clock, hand_on, lambda tenant: weights.get(tenant, 1.0)
        )
        self.fleet = Fleet(self.engine, registry, settings)
        self.site = Site(self.engine, self.fleet, settings, self.limits)
        self.following: Following | None = None
        if scope is not None:
            port = sock.getsockname()[1]
            self.following = Following(self.engine, self.fleet, settings, scope, evidence, port, places)
            self.site.converger = self.following.converger
        self.app = lazy_app(self.site)
        self.routes = Routes(self.limits)
        self._connections: set[Connection] = set() if connections is None else connections
        self.inside: set[Connection] = set()  # of siblings, who hand on what is answered there
        self._heads = Heads()
        self._inbox = Inbox(self._loop.call_soon, clock, self._lot_is_read, self._executor.rest)
        self._dispatch = Dispatcher(self.engine, self.routes, self.app, self.limits, forward, self._inbox)
        self._listener = Listener(sock, self._connection, self._full, tls_context(settings), share)
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        self._stop: asyncio.Future[float] = self._loop.create_future()
        self._loading: asyncio.Task[None] | None = None
        self.stuck = False  # threads are left that cannot be ended

    def _lot_is_read(self) -> None:
        self._dispatch.submit()
        self._executor.pump()

    def _connection(self) -> Connection:
        return Connection(self._dispatch, self._connections, self.limits, self.clock, self._heads, self._inbox)

    def _full(self) -> bool:
        return len(self._connections) >= self.limits.connections

    async def run(
        self,
        packages: Sequence[Package],
        loaded: Callable[[], None] | None = None,
        last: Callable[[], Awaitable[None]] | None = None,
        desired: Mapping[str, Deployment] | None = None,
    ) -> int:
        """Serves until `stop`; returns the exit code: 0 when everything that was accepted was answered.

        `loaded` is called when loading every model was tried. `last` is awaited once the process's own clients are
        answered: what it still owes to others. `desired`: what the store says at the start; where it decides about one
        of the `packages`, that one is not loaded.
        """
        self._loading = self._loop.create_task(self._load(packages, desired or {}, loaded))
        grace = await self._stop
        return await self._drain(grace, last)

    def stop(self, grace: float) -> bool:
        """Takes new calls for `grace` more seconds and then ends; False: it was told so before."""
        if self._stop.done():
            return False
        self.site.stopping = True
        self._stop.set_result(grace)
        return True

    async def _load(
        self, packages: Sequence[Package], desired: Mapping[str, Deployment], loaded: Callable[[], None] | None
    ) -> None:
        following = self.following
        if following is None:
            await self.fleet.start(packages)
        else:
            following.begin(desired)
            free = [package for package in packages if not following.converger.follows(package.name)]
            await asyncio.gather(self.fleet.start(free), following.settled())
        settle_garbage()
        if loaded is not None:
            loaded()

    async def _drain(self, grace: float, last: Callable[[], Awaitable[None]] | None) -> int:
        log.info("stopping: new calls are taken for %.1f s more, then accepted ones are answered", grace)
        await asyncio.sleep(grace)
        self._listener.close()
        self.engine.draining = last is None  # others may still send calls on
        code = 0
        try:
            async with asyncio.timeout(self._settings.stop_timeout):
                await self._connections_closed()
                if last is not None:
                    await last()
                await self.engine.idle()
        except TimeoutError:
            left = max(self.engine.in_flight, len(self._connections))
            log.error("%d calls were not answered within %.0f s", left, self._settings.stop_timeout)
            code = 1
            await self._last_words(alone=last is None)
        loading = self.following is not None and self.following.converger.busy()
        self.stuck = bool(code) or loading or not (self._loading and self._loading.done())
        self._last_records()
        if not self.stuck:
            await self._close()
        return code

    async def _last_words(self, alone: bool) -> None:
        """Callers are told that their answers, or the rest of them, will not come. Not `alone`: siblings hand that on,
        whenever it is."""
        self.engine.give_up()
        error = Draining(
            f"this server is stopping, and had no answer within {self._settings.stop_timeout:g} s; ask another one"
        )
        for connection in (*self._connections, *self.inside):
            connection.finish()
            if isinstance(connection.exchange, Answerable):
                connection.exchange.give_up(error)
        end = self.clock() + LAST_SECONDS
        while self.clock() < end and (self._connections or not alone):
            for connection in list(self._connections):
                connection.finish()
            await asyncio.sleep(POLL_SECONDS)

    async def _connections_closed(self) -> None:
        """A connection closes when the answer in progress is written; one without a request closes now."""
        while self._connections:
            for connection in list(self._connections):
                connection.finish()
            await asyncio.sleep(POLL_SECONDS)

    def _last_records(self) -> None:
        """Also of the calls that were cut off: whoever is stuck, the log and the traces have them."""
        self._sweeper.cancel()
        self.ledger.fold()
        for sink in self._sinks:
            sink.close()

    async def _close(self) -> None:
        """Gives models and threads back."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if self.following is not None:
                    await self.following.close()
                await self.fleet.close()
        except TimeoutError:
            self.stuck = True
        self.engine.close()

    def _sweep(self) -> None:
        now = self.clock()
        for connection in list(self._connections):
            connection.sweep(now)
        self.ledger.fold()
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)


def limits_of(settings: Settings) -> Limits:
    """The HTTP side's bounds."""
    return Limits(
        body=int(settings.max_body * MEGABYTE),
        json=int(settings.max_json * MEGABYTE),
        read_timeout=settings.read_timeout,
        idle_timeout=settings.idle_timeout,
        connections=settings.max_connections,
    )
