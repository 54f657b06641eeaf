"""Accepting connections: on an own socket, as many as wait, each time one is announced.

Under uvloop a server made by `create_server` accepts one connection per turn of the loop. While a model runs for
20 ms per turn, the 128th of 128 new clients then waits 2.7 s; accepting until the queue is empty takes that away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

BACKLOG: Final = 4096
AT_ONCE: Final = 256  # connections accepted before the loop gets another turn
LATER: Final = 0.005  # seconds that other processes have to take a connection first
OUT_OF_FILES: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
RETRY: Final = 0.25  # seconds without accepting when the process has no file descriptors left
TELL_EVERY: Final = 10.0  # seconds between two lines about that in the log
SET_UP_AT_ONCE: Final = 1024  # connections between accept and the end of the TLS handshake
FULL_BODY: Final = b'{"error":"too many connections; try again in a few seconds"}'
FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"retry-after: 1\r\nconnection: close\r\n\r\n%b" % (len(FULL_BODY), FULL_BODY)
)


class Listener:
    """One listening socket. `full` says whether more connections are refused at the moment.

    `share` is given where other processes accept from the same socket: how many connections this one may take now,
    told how many it has accepted that are not set up yet. 0: others shall have them; what still waits LATER seconds
    later is taken all the same, so that a process that stands still keeps nobody out.
    """

    def __init__(
        self,
        sock: socket.socket,
        factory: Callable[[], asyncio.Protocol],
        full: Callable[[], bool],
        tls: ssl.SSLContext | None = None,
        share: Callable[[int], int] | None = None,
    ) -> None:
        self._share = share
        self._patience = 1  # connections taken after LATER: more each time that nobody else takes any
        self._socket = sock
        self._factory = factory
        self._full = full
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True
        self._resting = False
        self._yielding = False
        self._told = -TELL_EVERY
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        """Stops accepting. Connections that were accepted live on."""
        if self._open:
            self._open = False
            self._rest()
            self._socket.close()

    def _accept(self) -> None:
        if self._share is None:
            self._take(AT_ONCE)
            return
        most = self._share(len(self._tasks))
        if most > 0:
            self._patience = 1
            self._take(most)
        else:
            self._yielding = True
            self._rest()
            self._loop.call_later(LATER, self._late)

    def _late(self) -> None:
        self._yielding = False
        self._go_on()
        if self._open:
            self._take(self._patience)
            self._patience = min(2 * self._patience, AT_ONCE)

    def _take(self, most: int) -> None:
        for _ in range(most):
            if len(self._tasks) >= SET_UP_AT_ONCE:
                self._rest()  # the end of a handshake goes on
                return
            try:
                connection, _address = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in OUT_OF_FILES:
                    self._out_of_files(error)
                    return
                continue  # accept reports errors of the new connection, such as a client that has left again
            if self._full():
                self._turn_away(connection)
                continue
            task = self._loop.create_task(self._adopt(connection))
            self._tasks.add(task)
            task.add_done_callback(self._set_up)

    def _out_of_files(self, error: OSError) -> None:
        now = self._loop.time()
        if now - self._told >= TELL_EVERY:
            self._told = now
            log.error("cannot accept connections: %s; raise the limit of open files (ulimit -n)", error.strerror)
        self._rest()
        self._loop.call_later(RETRY, self._go_on)

    def _turn_away(self, connection: socket.socket) -> None:
        """More connections than the limit. Who speaks no TLS is told, if that costs no waiting."""
        with connection:
            if self._tls is None:
                connection.setblocking(False)
                with contextlib.suppress(OSError):
                    connection.send(FULL)

    def _rest(self) -> None:
        if not self._resting:
            self._resting = True
            self._loop.remove_reader(self._socket.fileno())

    def _go_on(self) -> None:
        if self._open and self._resting:
            self._resting = False
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def _set_up(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._resting and not self._yielding and len(self._tasks) < SET_UP_AT_ONCE:
            self._go_on()

    async def _adopt(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        timeout = 10.0 if self._tls is not None else None
        try:
            await self._loop.connect_accepted_socket(
                self._factory, connection, ssl=self._tls, ssl_handshake_timeout=timeout
            )
        except (OSError, ssl.SSLError) as error:
            log.debug("a connection failed while it was set up: %s", error)
            connection.close()


def bind(host: str, port: int, reuse_port: bool = False) -> socket.socket:
    """A listening TCP socket. Raises OSError with what to do when the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    sock.listen(BACKLOG)
    return sock
