"""Accepting connections: on an own socket, as many as wait, each time one is announced.

Under uvloop a server made by `create_server` accepts one connection per turn of the loop. While a model runs for
20 ms per turn, the 128th of 128 new clients then waits 2.7 s; accepting until the queue is empty takes that away.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

BACKLOG: Final = 4096
AT_ONCE: Final = 256  # connections accepted before the loop gets another turn
OUT_OF_FILES: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
RETRY: Final = 0.25  # seconds without accepting when the process has no file descriptors left


class Listener:
    """One listening socket. `full` says whether more connections are refused at the moment."""

    def __init__(
        self,
        sock: socket.socket,
        factory: Callable[[], asyncio.Protocol],
        full: Callable[[], bool],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._socket = sock
        self._factory = factory
        self._full = full
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        """Stops accepting. Connections that were accepted live on."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in OUT_OF_FILES:
                    raise
                log.error("cannot accept connections: %s; raise the limit of open files (ulimit -n)", error.strerror)
                self._loop.remove_reader(self._socket.fileno())
                self._loop.call_later(RETRY, self._again)
                return
            if self._full():
                connection.close()
                continue
            task = self._loop.create_task(self._adopt(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _again(self) -> None:
        if self._open:
            self._loop.add_reader(self._socket.fileno(), self._accept)

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
