"""Real sockets: accepting while the loop is busy, limits, TLS, clients that leave, wait or do not read."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import errno
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

from pelton.server.wire.connection import Connection
from pelton.server.wire.listener import FULL_BODY, Listener, bind
from pelton.testing import EchoModel
from pelton.types import Array, Signature, TensorSpec

GET = b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n"
BODY = b'{"x": [1.0, 2.0, 3.0]}'
ROW = b"POST /predict/m HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
SIGNATURE = Signature((TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (3,)),))


class Door:
    """A server of the tests behind a listening socket on 127.0.0.1."""

    def __init__(self, server: Any, tls: ssl.SSLContext | None, sock: socket.socket | None) -> None:
        self.server = server
        self.made: list[Connection] = []
        self.sock = sock or bind("127.0.0.1", 0)
        self.port = self.sock.getsockname()[1]
        self.listener = Listener(self.sock, self.connection, self.full, tls)

    def connection(self) -> Connection:
        server = self.server
        self.made.append(Connection(server.dispatch, server.connections, server.limits, server.clock, server.heads))
        return self.made[-1]

    def full(self) -> bool:
        return len(self.server.connections) >= self.server.limits.connections

    async def open(self, tls: ssl.SSLContext | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=tls)


Opened = Callable[..., Any]


@pytest.fixture
def opened(make_server: Callable[..., Any]) -> Opened:
    """opened(test, model=..., tls=..., **limits): runs `await test(door)` on uvloop, then closes everything."""

    def run(
        test: Callable[[Door], Awaitable[None]],
        model: Any = None,
        tls: ssl.SSLContext | None = None,
        sock: socket.socket | None = None,
        curve: Sequence[tuple[int, float]] = ((1, 1e-5), (32, 1e-4)),
        **limits: Any,
    ) -> None:
        server = make_server(loop=uvloop.new_event_loop(), **limits)
        server.serve(model=model, curve=curve)

        async def main() -> None:
            door = Door(server, tls, sock)
            try:
                await asyncio.wait_for(test(door), 30)
            finally:
                door.listener.close()
                for connection in list(server.connections):
                    connection.abort()
                await asyncio.sleep(0.01)

        server.loop.run_until_complete(main())

    return run


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Status and JSON of the next answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def until(condition: Callable[[], bool]) -> None:
    """Returns as soon as `condition` holds; the time limit of the test is the only one."""
    while not condition():
        await asyncio.sleep(0.001)


def test_all_waiting_clients_are_accepted_within_a_few_turns_of_a_busy_loop(opened: Opened) -> None:
    """The trap: one accept per turn makes the 128th client wait 128 turns, and a model may run in each of them."""

    async def test(door: Door) -> None:
        loop = asyncio.get_running_loop()
        turns = 0
        busy = True

        def turn() -> None:
            nonlocal turns
            turns += 1
            time.sleep(0.001)  # a model on the loop
            if busy:
                loop.call_soon(turn)

        turn()
        await asyncio.sleep(0)
        begin = turns
        clients = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(128)]
        while len(door.server.connections) < 128:
            await asyncio.sleep(0)
        assert turns - begin <= 8
        busy = False
        for client in clients:
            client.close()

    opened(test)


def test_new_clients_are_answered_while_a_slow_model_runs_in_a_thread(opened: Opened) -> None:
    started, finish = threading.Event(), threading.Event()

    class Held(EchoModel):
        def run(self, inputs: Sequence[Array]) -> list[Array]:
            started.set()
            assert finish.wait(20)
            return super().run(inputs)

    async def test(door: Door) -> None:
        slow_reader, slow_writer = await door.open()
        slow_writer.write(ROW)
        await until(started.is_set)
        pairs = await asyncio.gather(*(door.open() for _ in range(128)))
        for _, writer in pairs:
            writer.write(GET)
        for reader, writer in pairs:
            assert (await read_answer(reader))[0] == 200
            writer.close()
        finish.set()  # the model has run all the time
        assert await read_answer(slow_reader) == (200, {"y": [1.0, 2.0, 3.0]})
        slow_writer.close()

    opened(test, model=Held(SIGNATURE), curve=((1, 0.01),))


def test_over_the_limit_a_client_is_told_and_turned_away(opened: Opened) -> None:
    async def test(door: Door) -> None:
        kept = [await door.open() for _ in range(3)]
        await until(lambda: len(door.server.connections) == 3)
        reader, writer = await door.open()
        assert await read_answer(reader) == (503, json.loads(FULL_BODY))
        assert await reader.read() == b""
        writer.close()
        kept.pop()[1].close()
        await until(lambda: len(door.server.connections) == 2)
        reader, writer = await door.open()
        writer.write(GET)
        assert (await read_answer(reader))[0] == 200
        for _, writer in [*kept, (reader, writer)]:
            writer.close()

    opened(test, connections=3)


class Poor(socket.socket):
    """A listening socket of a process that has no file descriptors left for a while."""

    errors: Sequence[int] = ()

    def accept(self) -> Any:
        if self.errors:
            code, *self.errors = self.errors
            raise OSError(code, "from the test")
        return super().accept()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.EPROTO, errno.ENOMEM])
def test_errors_of_accept_do_not_end_the_server(opened: Opened, code: int) -> None:
    sock = Poor(socket.AF_INET, socket.SOCK_STREAM)
    sock.bind(("127.0.0.1", 0))
    sock.listen(16)
    sock.errors = [code] * 2

    async def test(door: Door) -> None:
        reader, writer = await door.open()
        writer.write(GET)
        assert (await read_answer(reader))[0] == 200
        assert sock.errors == []
        writer.close()

    opened(test, sock=sock)


def test_a_closed_listener_takes_no_more_but_keeps_what_it_took(opened: Opened) -> None:
    async def test(door: Door) -> None:
        reader, writer = await door.open()
        await until(lambda: len(door.server.connections) == 1)
        door.listener.close()
        with pytest.raises(OSError):
            await door.open()
        writer.write(ROW)
        assert (await read_answer(reader))[0] == 200
        writer.close()

    opened(test)


def test_a_refusal_reaches_a_client_that_is_still_sending(opened: Opened) -> None:
    """A socket closed with unread bytes sends a reset, and the reset destroys the answer on its way."""

    async def test(door: Door) -> None:
        reader, writer = await door.open()
        size = 8 << 20
        writer.write(b"POST /predict/m HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            writer.write(b" " * 65536)
            await writer.drain()
        status, told = await read_answer(reader)
        assert status == 413
        assert "1000000" in told["error"]
        assert await reader.read() == b""
        writer.close()

    opened(test, body=1_000_000)


def test_a_client_that_never_reads_is_cut_off(opened: Opened) -> None:
    size, requests = 1 << 20, 50

    async def large(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(size)})

    async def test(door: Door) -> None:
        client = socket.create_connection(("127.0.0.1", door.port))
        client.sendall(GET * requests)
        await until(lambda: len(door.server.connections) == 1)
        (connection,) = door.server.connections
        while door.server.connections:
            await asyncio.sleep(0.01)
            door.server.clock.advance(door.server.limits.write_timeout + 1.0)
            connection.sweep(door.server.clock())
        client.setblocking(True)
        taken = 0
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(1 << 20):
                taken += len(data)
        assert taken < size * requests
        client.close()

    opened(test, app=large)


def test_a_client_that_leaves_is_forgotten(opened: Opened) -> None:
    async def test(door: Door) -> None:
        for data in (b"", b"GET", ROW, ROW * 20):
            client = socket.create_connection(("127.0.0.1", door.port))
            client.sendall(data)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an orderly end
            client.close()
        reader, writer = await door.open()
        writer.write(GET)
        assert (await read_answer(reader))[0] == 200
        writer.close()
        await until(lambda: not door.server.connections)
        await door.server.engine.idle()

    opened(test)


def test_an_address_that_is_taken_is_an_error() -> None:
    with bind("127.0.0.1", 0) as sock, pytest.raises(OSError):
        bind("127.0.0.1", sock.getsockname()[1])


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key, in one file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pelton test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture
def tls(certificate: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of the server and of a client that trusts it."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    return server, ssl.create_default_context(cafile=str(certificate))


def test_calls_pages_and_errors_go_over_tls(opened: Opened, tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def test(door: Door) -> None:
        reader, writer = await door.open(tls[1])
        big = b"POST /page HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n" + b"a" * 300_000
        writer.write(ROW + big + GET)
        assert await read_answer(reader) == (200, {"y": [1.0, 2.0, 3.0]})
        assert (await read_answer(reader))[1]["size"] == 300_000
        assert (await read_answer(reader))[0] == 200
        writer.write(b"nonsense\r\n\r\n")
        assert (await read_answer(reader))[0] == 400
        writer.close()
        await until(lambda: not door.server.connections)

    opened(test, tls=tls[0])


def test_clients_that_do_not_speak_tls_disturb_nobody(
    opened: Opened, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    async def test(door: Door) -> None:
        silent = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(20)]
        reader, writer = await door.open()
        writer.write(GET)
        assert b"200 OK" not in await reader.read()
        writer.close()
        reader, writer = await door.open(tls[1])
        writer.write(ROW)
        assert (await read_answer(reader))[0] == 200
        writer.close()
        for client in silent:
            client.close()
        await until(lambda: not door.server.connections)

    opened(test, tls=tls[0])
