"""A server from start to exit: listen, load, serve, drain.

SIGTERM: readiness turns 503 at once and calls are still taken for the grace period (load balancers need a moment);
then the port closes, what was accepted is answered, and the process exits within the stated bound. A second signal
ends it now. SIGINT (Ctrl-C) skips the grace. With several workers a supervisor does this for all of them together.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from pelton.deployments import Deployment
from pelton.errors import SettingInvalid
from pelton.packages import Package
from pelton.registry import Registry
from pelton.server import sinks
from pelton.server.control.plan import Scope
from pelton.server.control.start import read_desired
from pelton.server.wire.listener import bind
from pelton.settings import Settings

if TYPE_CHECKING:
    from pelton.server.process import Server

log = logging.getLogger(__name__)

SWITCH_SECONDS = 0.0005


def serve(
    settings: Settings,
    registry: Registry,
    packages: Sequence[Package],
    sock: socket.socket | None = None,
    scope: Scope | None = None,
) -> int:
    """Serves until it is told to stop; returns the exit code: 0 when everything that was accepted was answered.

    `scope`: for which models the deployments in the store are followed; by default for all that are served.
    Does not return, but ends the process, where threads are left that nothing can end: of calls that took too long.
    """
    sinks.check(settings)
    tls_context(settings)  # raises here what else every worker would say
    scope = scope or Scope(False, frozenset(package.name for package in packages))
    desired = read_desired(registry)
    sock = sock or listen(settings)
    log.info("listening on http%s://%s:%d", "s" if settings.tls_cert else "", settings.host, sock.getsockname()[1])
    if settings.workers > 1:
        from pelton.server.workers.supervisor import Supervisor

        return Supervisor(settings, registry, packages, sock, scope=scope, desired=desired).run()
    return run_loop(_serve_alone(settings, registry, packages, sock, scope, desired))


async def _serve_alone(
    settings: Settings,
    registry: Registry,
    packages: Sequence[Package],
    sock: socket.socket,
    scope: Scope,
    desired: Mapping[str, Deployment],
) -> int:
    from pelton.server.process import Server

    server = Server(settings, registry, sock, scope=scope)
    loop = asyncio.get_running_loop()
    for number, grace in ((signal.SIGTERM, settings.grace), (signal.SIGINT, 0.0)):
        loop.add_signal_handler(number, _signal, server, grace)
    return await _run(server, packages, desired)


async def _run(server: Server, packages: Sequence[Package], desired: Mapping[str, Deployment]) -> int:
    code = await server.run(packages, desired=desired)
    if server.stuck:
        end_now(code)
    return code


def _signal(server: Server, grace: float) -> None:
    if not server.stop(grace):
        log.warning("second signal: ending now")
        end_now(1)


def run_loop(main: object) -> int:
    """Runs a server's coroutine on uvloop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code: int = runner.run(main)  # type: ignore[arg-type]  # a coroutine
        return code


def end_now(code: int) -> NoReturn:
    """Ends the process without waiting for its threads."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def listen(settings: Settings) -> socket.socket:
    """The server's port. Raises SettingInvalid where it cannot be had."""
    try:
        return bind(settings.host, settings.port)
    except OSError as error:
        raise SettingInvalid(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another with --port or --host"
        ) from None


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
    # A batch that comes back from a thread waits for the interpreter lock while the loop is busy: by default 5 ms, and
    # several times per batch, which halves the throughput of a server under overload.
    sys.setswitchinterval(SWITCH_SECONDS)
