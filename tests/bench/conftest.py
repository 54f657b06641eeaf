"""A small HTTP server with real sockets whose answers the test gives: at once, later, wrong, or never."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


class Exchange:
    """One request, until somebody answers it."""

    def __init__(self, connection: Connection, body: bytes, head: bytes) -> None:
        self.connection, self.body, self.head = connection, body, head

    def reply(self, status: int = 200, headers: str = "", body: bytes = b"{}") -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        self.raw(head.encode() + body)

    def raw(self, data: bytes) -> None:
        self.connection.transport.write(data)

    def hang_up(self) -> None:
        self.connection.transport.close()


class Connection(asyncio.Protocol):
    def __init__(self, server: FakeServer) -> None:
        self.server, self.buffer = server, b""

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.server.open.add(self)
        self.server.connections += 1
        self.server.most_open = max(self.server.most_open, len(self.server.open))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            exchange = Exchange(self, rest[:length], head)
            self.server.exchanges.append(exchange)
            self.server.on_request(exchange)

    def connection_lost(self, error) -> None:
        self.server.open.discard(self)


class FakeServer:
    """`on_request(exchange)` is called for each request, on the loop that the server runs on."""

    def __init__(self, on_request: Callable[[Exchange], None]) -> None:
        self.on_request = on_request
        self.exchanges: list[Exchange] = []
        self.open: set[Connection] = set()
        self.connections = self.most_open = self.port = 0

    async def __aenter__(self) -> FakeServer:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: Connection(self), "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        loop = asyncio.get_running_loop()
        for listener in self.server.sockets:
            loop.remove_reader(listener)
        for _ in range(2):  # turns of the loop: a connection that was accepted becomes a transport, then one of `open`;
            await asyncio.sleep(0)  # a server that is closed before has no place for it, and nobody closes its socket
        self.server.close()
        for connection in list(self.open):
            connection.transport.abort()
        await self.server.wait_closed()


@contextmanager
def serving_thread(on_request: Callable[[Exchange], None]) -> Iterator[FakeServer]:
    """The same server on a loop and thread of its own."""
    server, ready = FakeServer(on_request), threading.Event()
    stop: list[Callable[[], object]] = []

    async def main() -> None:
        async with server:
            loop, ended = asyncio.get_running_loop(), asyncio.Event()
            stop.append(lambda: loop.call_soon_threadsafe(ended.set))
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        stop[0]()
        thread.join()


@pytest.fixture
def fake_server() -> type[FakeServer]:
    return FakeServer


@pytest.fixture
def serving():
    return serving_thread
