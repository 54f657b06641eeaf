"""A server process from start to exit: listen, load, serve, drain.

SIGTERM: readiness turns 503 at once and calls are still taken for the grace period (load balancers need a moment);
then the port closes, what was accepted is answered, and the process exits within the stated bound. A second signal
ends it now. SIGINT (Ctrl-C) skips the grace.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Final

from pelton.engine import Engine
from pelton.errors import SettingInvalid
from pelton.packages import Package
from pelton.records import Ledger
from pelton.registry import Registry
from pelton.scheduling import Executor
from pelton.server.app import Site, lazy_app
from pelton.server.fleet import Fleet
from pelton.server.heads import Heads
from pelton.server.http import Connection
from pelton.server.inference import Dispatcher
from pelton.server.limits import Limits
from pelton.server.listener import Listener, bind
from pelton.server.routes import Routes
from pelton.settings import Settings

log = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 1.0
MEGABYTE: Final = 1024 * 1024


class Server:
    """One serving process. All collaborators are made here."""

    def __init__(self, settings: Settings, registry: Registry, sock: socket.socket) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._limits = limits_of(settings)
        clock = time.perf_counter
        self._clock = clock
        self.ledger = Ledger(clock)
        self._executor = Executor(self._loop, settings.slots or cores(), clock)
        self.engine = Engine(self._loop, self._executor, self.ledger, clock)
        self.fleet = Fleet(self.engine, registry, settings)
        self.site = Site(self.engine, self.fleet, settings, self._limits)
        self._connections: set[Connection] = set()
        self._heads = Heads()
        self._dispatch = Dispatcher(self.engine, Routes(self._limits), lazy_app(self.site), self._limits)
        self._listener = Listener(sock, self._connection, self._full, tls_context(settings))
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        self._stop: asyncio.Future[float] = self._loop.create_future()

    def _connection(self) -> Connection:
        return Connection(self._dispatch, self._connections, self._limits, self._clock, self._heads)

    def _full(self) -> bool:
        return len(self._connections) >= self._limits.connections

    async def run(self, packages: Sequence[Package]) -> int:
        """Serves until a signal; returns the exit code: 0 when everything that was accepted was answered."""
        for number, grace in ((signal.SIGTERM, self._settings.grace), (signal.SIGINT, 0.0)):
            self._loop.add_signal_handler(number, self._signal, grace)
        await self.fleet.start(packages)
        settle_garbage()
        grace = await self._stop
        return await self._drain(grace)

    def _signal(self, grace: float) -> None:
        if self._stop.done():
            log.warning("second signal: ending now")
            os._exit(1)
        self.site.stopping = True
        self._stop.set_result(grace)

    async def _drain(self, grace: float) -> int:
        log.info("stopping: new calls are taken for %.1f s more, then accepted ones are answered", grace)
        await asyncio.sleep(grace)
        self._listener.close()
        self.engine.draining = True
        for connection in list(self._connections):
            connection.finish()
        code = 0
        try:
            async with asyncio.timeout(self._settings.stop_timeout):
                await self.engine.idle()
                await self._connections_closed()
        except TimeoutError:
            log.error("%d calls were not answered within %.0f s", self.engine.in_flight, self._settings.stop_timeout)
            code = 1
        await self.close()
        return code

    async def _connections_closed(self) -> None:
        """Answers are on their way to the sockets: connections close when theirs is written."""
        while self._connections:
            for connection in list(self._connections):
                connection.finish()
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Gives models, threads and the port back."""
        self._sweeper.cancel()
        self._listener.close()
        self.ledger.fold()
        await self.fleet.close()
        self.engine.close()

    def _sweep(self) -> None:
        now = self._clock()
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


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with the given certificate; None without one."""
    if not settings.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingInvalid(f"tls_cert {settings.tls_cert!r} with tls_key {settings.tls_key!r}: {error}") from None
    return context


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settle_garbage() -> None:
    """What is loaded stays: the collector need not look at it again, and looks at the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def serve(
    settings: Settings, registry: Registry, packages: Sequence[Package], sock: socket.socket | None = None
) -> int:
    """Runs one server process until it is told to stop; returns the exit code."""
    import uvloop

    if sock is None:
        try:
            sock = bind(settings.host, settings.port)
        except OSError as error:
            raise SettingInvalid(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another with --port"
            ) from None

    async def main() -> int:
        server = Server(settings, registry, sock)
        log.info("listening on http://%s:%d", settings.host, sock.getsockname()[1])
        return await server.run(packages)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())
