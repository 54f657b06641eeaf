"""A whole server without sockets: connections that write into a list, an engine with models whose answers are known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httptools
import pytest

from pelton.engine import Engine, Served
from pelton.packages import Manifest, Package
from pelton.records import Ledger, Record
from pelton.replicas import Replica
from pelton.runtimes.contract import LoadedModel
from pelton.scheduling import Executor, LatencyModel
from pelton.server.dispatcher import Dispatcher
from pelton.server.routes import Routes
from pelton.server.wire.connection import Connection
from pelton.server.wire.known_heads import Heads
from pelton.server.wire.limits import Limits
from pelton.testing import EchoModel, ManualClock
from pelton.types import Signature, TensorSpec


class Answer:
    """One HTTP answer as a client reads it."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.complete = False

    @property
    def json(self) -> Any:
        return json.loads(self.body, parse_constant=_no_constant)

    @property
    def error(self) -> str:
        told = self.json
        assert list(told) == ["error"], told
        assert self.headers["content-type"] == "application/json"
        assert isinstance(told["error"], str)
        assert told["error"]
        return told["error"]


def _no_constant(token: str) -> None:
    raise AssertionError(f"{token} is not JSON")


class _Reader:
    """What httptools' response parser reports, as answers; a 100 is one of them."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        self.answers.append(Answer())

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode().lower()
        assert key not in self.answers[-1].headers, f"{key} stands twice"
        self.answers[-1].headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.answers[-1].status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.answers[-1].body += body

    def on_message_complete(self) -> None:
        self.answers[-1].complete = True


def read_answers(data: bytes) -> list[Answer]:
    """Every answer in what a server sent. Fails where the bytes are not HTTP/1.1."""
    reader = _Reader()
    if data:
        reader.parser.feed_data(data)
    return reader.answers


class Transport:
    """What asyncio gives a protocol, without a socket. `full` makes it report a client that does not read."""

    def __init__(self) -> None:
        self.protocol: Connection | None = None
        self.out = bytearray()
        self.events: list[str] = []
        self.closed = False
        self.aborted = False
        self.reading = True
        self.unread = 0  # bytes in the write buffer, as far as asyncio knows

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after close"
        self.out += data

    def writelines(self, parts: Sequence[bytes]) -> None:
        self.write(b"".join(parts))

    def get_extra_info(self, name: str) -> object:
        return ("127.0.0.1", 50_000) if name == "peername" else None

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.events.append("eof")

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return self.unread


class Client:
    """One connection to the server in the same process."""

    def __init__(self, server: InProcess) -> None:
        self._server = server
        self.transport = Transport()
        self.connection = Connection(server.dispatch, server.connections, server.limits, server.clock, server.heads)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def send(self, *parts: bytes) -> Client:
        """Each part is one read of the server."""
        for part in parts:
            if not self.transport.closed:
                self.do(self.connection.data_received, part)
        return self

    def send_and(self, data: bytes, *methods: Callable[[], Any]) -> list[Any]:
        """One read, and calls of the connection's methods before the loop turns."""

        def together() -> list[Any]:
            self.connection.data_received(data)
            return [method() for method in methods]

        return self.do(together)

    def hang_up(self) -> None:
        self.transport.closed = True
        self.do(self.connection.connection_lost, None)

    def do(self, method: Callable[..., Any], *args: Any) -> Any:
        """Calls a method as the event loop would."""

        async def call() -> Any:
            return method(*args)

        return self._server.loop.run_until_complete(call())

    @property
    def answers(self) -> list[Answer]:
        """All answers, after everything that can run has run."""
        self._server.settle()
        return read_answers(bytes(self.transport.out))

    @property
    def answer(self) -> Answer:
        answers = self.answers
        assert len(answers) == 1, [a.status for a in answers]
        assert answers[0].complete
        return answers[0]

    def ask(self, path: str, body: bytes | object, headers: str = "") -> Answer:
        """One POST, and its answer."""
        before = len(self.answers)
        self.send(post(path, body, headers))
        answers = self.answers
        assert len(answers) == before + 1, [a.status for a in answers[before:]]
        assert answers[-1].complete
        return answers[-1]


class InProcess:
    """Engine, routes and dispatcher on a loop of their own; `app` answers what is no inference."""

    def __init__(self, folder: Path, app: Any, limits: Limits, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop = loop or asyncio.new_event_loop()
        self.clock = ManualClock(1000.0)
        self.records: list[Record] = []
        self.ledger = Ledger(self.clock, [self.records.extend])
        self.engine = Engine(self.loop, Executor(self.loop, 2, self.clock), self.ledger, self.clock)
        self.limits = limits
        self.heads = Heads()
        self.connections: set[Connection] = set()
        self.clients: list[Client] = []
        self.dispatch = Dispatcher(self.engine, Routes(limits), app, limits)
        self._folder = folder

    def serve(
        self,
        signature: Signature | None = None,
        model: LoadedModel | None = None,
        curve: Sequence[tuple[int, float]] = ((1, 1e-5), (32, 1e-4)),
        **manifest: Any,
    ) -> Served:
        """`model` under the name "m" (or `name`); an echo of its inputs where none is given."""
        made = model or EchoModel(signature or Signature((X,), (Y,)))
        settings = {"name": "m", "runtime": "onnx", "file": "m.onnx", "signature": made.signature, **manifest}
        package = Package(self._folder, Manifest(**settings), "a" * 64)
        return self.engine.serve(Replica(package, made, self.clock), LatencyModel(curve))

    def connect(self) -> Client:
        self.clients.append(Client(self))
        return self.clients[-1]

    def settle(self) -> None:
        """Runs the loop until nothing is in progress."""

        async def quiet() -> None:
            seen = -1
            while seen != (seen := sum(len(client.transport.out) for client in self.clients)):
                for _ in range(10):
                    await asyncio.sleep(0)
                await asyncio.wait_for(self.engine.idle(), 20)
                for _ in range(10):
                    await asyncio.sleep(0)

        self.loop.run_until_complete(quiet())

    def turns(self, count: int) -> None:
        """Lets the loop turn some times, whatever is in progress."""

        async def wait() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.loop.run_until_complete(wait())

    def folded(self) -> list[Record]:
        self.ledger.fold()
        return self.records

    def close(self) -> None:
        self.engine.close()
        self.turns(3)
        self.loop.close()


X = TensorSpec("x", "FP32", (3,))
Y = TensorSpec("y", "FP32", (3,))


def post(path: str, body: bytes | object, headers: str = "") -> bytes:
    """A POST with a Content-Length; a body that is no bytes becomes JSON. `headers`: whole lines."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    return lines.encode("latin-1") + data


async def hello_app(scope: Any, receive: Any, send: Any) -> None:
    """The pages of the tests: tells what it was asked."""
    message = await receive()
    told = json.dumps({"method": scope["method"], "path": scope["path"], "size": len(message["body"])}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": told})


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., InProcess]]:
    """make_server(app=..., **limits) -> a server in this process."""
    made: list[InProcess] = []

    def make(app: Any = hello_app, loop: Any = None, **limits: Any) -> InProcess:
        made.append(InProcess(tmp_path, app, Limits(**limits), loop))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def server(make_server: Callable[..., InProcess]) -> InProcess:
    """A server with the model "m": an echo of x FP32[3] as y."""
    made = make_server()
    made.serve()
    return made
