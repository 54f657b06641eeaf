"""`pelton serve` in a process of its own, and a client that reads what it sends as it is."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BOUND = 40.0
PYTHON = os.environ.get("SERVER_PYTHON", sys.executable)  # that has Pelton


class Reply:
    """A whole answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body, parse_constant=_no_constant)

    @property
    def error(self) -> dict[str, Any]:
        """The error, whose form is OpenAI's."""
        told = self.json
        assert list(told) == ["error"], told
        assert list(told["error"]) == ["message", "type", "param", "code"], told
        assert self.headers["content-type"] == "application/json"
        assert told["error"]["message"]
        return told["error"]


class Api:
    """One server."""

    def __init__(self, port: int, pid: int, log: Path) -> None:
        self.port = port
        self.pid = pid
        self.log = log

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPResponse:
        """The answer's head has come; its body is still to be read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=BOUND)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {"connection": "close", **told})  # the answer then owns the socket
        return connection.getresponse()

    def ask(self, path: str, body: Any, **headers: str) -> Reply:
        with contextlib.closing(self.send("POST", path, body, **headers)) as response:
            return Reply(response)

    def get(self, path: str, **headers: str) -> Reply:
        with contextlib.closing(self.send("GET", path, **headers)) as response:
            return Reply(response)

    def events(self, path: str, body: Any, **headers: str) -> list[dict[str, Any]]:
        """The JSON of every event of a stream, which ends as it should."""
        with contextlib.closing(self.send("POST", path, {**body, "stream": True}, **headers)) as response:
            text = response.read().decode()
            assert response.status == 200, text
            assert response.headers["content-type"].startswith("text/event-stream")
        return read_events(text)

    def chat(self, text: str = "hello", **more: Any) -> Reply:
        return self.ask("/v1/chat/completions", {"model": "echo", "messages": user(text), **more})

    def chat_events(self, text: str = "hello", **more: Any) -> list[dict[str, Any]]:
        body = {"model": "echo", "messages": user(text), **more}
        return self.events("/v1/chat/completions", body)

    def complete(self, prompt: Any = "hello", **more: Any) -> Reply:
        return self.ask("/v1/completions", {"model": "echo", "prompt": prompt, **more})


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def read_events(text: str) -> list[dict[str, Any]]:
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def _no_constant(token: str) -> None:
    raise AssertionError(f"{token} is not JSON")


def until(true: Callable[[], Any], what: str, seconds: float = BOUND) -> Any:
    """Waits for a condition and returns what made it true."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def serving(home: Path, *models: str, **settings: Any) -> Iterator[Api]:
    """`pelton serve` in a process of its own."""
    log = home / "server.log"
    told = {"home": home, "port": 0, "grace": 0, **settings}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in told.items()]
    with log.open("w") as file:
        process = subprocess.Popen(
            [PYTHON, "-m", "pelton", "serve", *models, *flags], stdout=file, stderr=file, process_group=0
        )
    try:

        def port() -> Any:
            assert process.poll() is None, log.read_text()
            return re.search(r"listening on http://[^:]+:(\d+)", log.read_text())

        api = Api(int(until(port, "the port")[1]), process.pid, log)

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            return api.get("/v2/health/ready").status == 200

        until(ready, "readiness")
        yield api
        process.send_signal(signal.SIGTERM)
        assert process.wait(BOUND) == 0, log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
