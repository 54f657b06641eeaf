"""Stores of both kinds, and a receiver of webhooks whose answers the test decides."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest

from pelton.events import Events, append
from pelton.store import Store

BOUND = 30.0  # seconds: generous, the machine may be busy; reached only by a failure


def until(true: Callable[[], Any], what: str) -> Any:
    """Waits for a condition and returns what made it true."""
    end = time.monotonic() + BOUND
    while not (found := true()):
        assert time.monotonic() < end, f"not within {BOUND} s: {what}"
        time.sleep(0.005)
    return found


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Any]:
    return until


@pytest.fixture
def address(store_url: str) -> str:
    """The address of an empty store, of either kind."""
    return store_url


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    store = Store.open(address)
    yield store
    store.close()


@pytest.fixture
def events(store: Store) -> Events:
    return Events(store, chance=lambda: 0.0)


@pytest.fixture
def tell(store: Store) -> Callable[..., int]:
    """Appends one event in a transaction of its own; returns its id."""

    def tell(action: str = "deploy", name: str = "fraud", **details: Any) -> int:
        with store.write() as connection:
            return append(connection, action, name, "ana", details)

    return tell


class Post(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """A real HTTP server. `statuses` are given in turn, then 200; while `gate` is closed, nothing is answered."""

    def __init__(self) -> None:
        self.posts: list[Post] = []
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.together = 0  # at the same time, now and at most
        self.most_together = 0
        self._guard = threading.Lock()
        receiver = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._answer(self)

            def log_message(self, *args: Any) -> None:
                """Keeps the output of the tests clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that leaves is expected
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hooks/secret-path?key=secret-query"

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["content-length"]))
        headers = {name.lower(): value for name, value in request.headers.items()}
        with self._guard:
            self.together += 1
            self.most_together = max(self.most_together, self.together)
            self.posts.append(Post(request.path, headers, body, time.time()))
            status = self.statuses.pop(0) if self.statuses else 200
        self.gate.wait(BOUND)
        with self._guard:
            self.together -= 1
        try:
            request.send_response(status)
            for name, value in {"content-length": "2", **self.headers}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(b"ok")
        except OSError:  # the other side was killed
            request.close_connection = True

    @property
    def ids(self) -> list[int]:
        with self._guard:
            return [post.json["id"] for post in self.posts]

    def secure(self, context: ssl.SSLContext) -> None:
        """From now on it speaks TLS. The handshake is made in the thread of a request, not in the one that accepts."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = self.url.replace("http:", "https:")

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def make_receiver() -> Iterator[Callable[[], Receiver]]:
    made: list[Receiver] = []

    def make() -> Receiver:
        made.append(Receiver())
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


@pytest.fixture
def receiver(make_receiver: Callable[[], Receiver]) -> Receiver:
    return make_receiver()
