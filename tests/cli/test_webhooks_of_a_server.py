"""A running server tells webhooks of what people order on its store."""

from __future__ import annotations

import http.server
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class Told(http.server.ThreadingHTTPServer):
    """Keeps what it was told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.bodies: list[Any] = []
        self.changed = threading.Condition()

    def wait_for(self, count: int) -> list[Any]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.bodies) >= count, 60), self.bodies
            return list(self.bodies)


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Told)
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(204)
        self.end_headers()
        with self.server.changed:
            self.server.bodies.append(body)
            self.server.changed.notify_all()

    def log_message(self, *args: Any) -> None:
        """Keeps the output of the tests clean."""


@pytest.fixture
def told() -> Iterator[Told]:
    with Told() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_orders_are_told_in_order_while_the_server_runs(
    pelton: Callable[..., Any], process: Any, finish: Any, full_home: Path, told: Told
) -> None:
    running = process("serve", "linear", "--home", full_home, "--port", "0", "--grace", "0")
    for line in running.stderr:
        if re.search(r"model linear:\w+ serves", line):
            break
    url = f"http://127.0.0.1:{told.server_port}/hook"
    assert pelton("webhook", "add", url, "--actions", "deploy,undeploy", "--home", full_home).code == 0
    assert pelton("deploy", "linear", "--home", full_home).code == 0
    assert pelton("undeploy", "linear", "--home", full_home).code == 0
    bodies = told.wait_for(2)
    assert [(one["action"], one["name"]) for one in bodies] == [("deploy", "linear"), ("undeploy", "linear")]
    assert bodies[0]["id"] < bodies[1]["id"]
    running.send_signal(signal.SIGINT)
    assert finish(running).code == 0
