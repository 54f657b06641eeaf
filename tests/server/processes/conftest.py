"""Real servers: `pelton serve` in processes of its own, real sockets, real signals, models whose pace the test decides."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pelton.control import Control
from pelton.packages import Golden, Manifest, Slo, golden, save
from pelton.packages.python_source import inspect_class
from pelton.registry import Registry
from pelton.types import Signature, TensorSpec

BOUND = 60.0  # seconds: generous, the machine may be busy; reached only by a failure
POLL = 0.01

GATE = """
import pathlib, time

class Model:
    inputs = {"x": "FP32[1]"}
    outputs = {"y": "FP32[1]"}

    def predict(self, x):
        time.sleep(0.003)  # too long for the event loop: batches run in a thread
        number = int(x[0])
        if number >= 1000:  # what the server measures with is small
            gate = pathlib.Path(GATE)
            (gate / f"began-{number}").touch()
            while not (gate / "open").exists():
                time.sleep(0.005)
        return x * 2
"""


# Its faults are the test's to decide: a share of calls with x of 1000 and more raise, or all answer otherwise.
FAULTY = """
import pathlib, random

class Model:
    inputs = {"x": "FP32[1]"}
    outputs = {"y": "FP32[1]"}

    def predict(self, x):
        gate = pathlib.Path(GATE)
        bad = gate / "bad-TAG"
        if x[0] >= 1000 and bad.exists() and random.random() < float(bad.read_text()):
            raise ValueError("this version is bad")
        return x * (3 if (gate / "differs-TAG").exists() else 2)
"""


def until(true: Callable[[], Any], what: str, seconds: float = BOUND) -> Any:
    """Waits for a condition and returns what made it true."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(POLL)
    return found


class Call:
    """A request that was sent. `answer` waits for the answer; ConnectionError where the connection broke."""

    def __init__(self, port: int, method: str, target: str, body: bytes, headers: dict[str, str]) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=BOUND)
        self.send(method, target, body, headers)

    def send(self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Call:
        self._method = method
        lines = [f"{method} {target} HTTP/1.1", "host: test", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return self

    def answer(self) -> tuple[int, Any, dict[str, str]]:
        """(status, JSON, headers)."""
        response = http.client.HTTPResponse(self.sock, method=self._method)
        try:
            response.begin()
            body = response.read()
        except http.client.IncompleteRead:
            raise ConnectionError("the answer was cut") from None
        told = json.loads(body) if body else None
        return response.status, told, {name.lower(): value for name, value in response.getheaders()}

    def close(self) -> None:
        self.sock.close()

    def hang_up(self) -> None:
        """Leaves without a doubt: a plain end of sending might be a client that still reads."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Running:
    """A server that was started."""

    def __init__(self, home: Path, models: tuple[str, ...], flags: dict[str, Any], log: Path, sock_home: Path) -> None:
        settings = {"home": home, "port": 0, "grace": 0, "trust": "*", **flags}
        command = [sys.executable, "-m", "pelton", "serve", *models]
        command += [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        self.log = log
        self.folder = sock_home
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stderr=file, stdout=file, process_group=0, env={**os.environ, "TMPDIR": str(sock_home)}
            )
        self._port = 0
        self._calls: list[Call] = []

    @property
    def port(self) -> int:
        if not self._port:
            found = until(
                lambda: re.search(r"listening on http://[^:]+:(\d+)", self.text()) or self.ended(), "the port"
            )
            assert found is not True, self.text()
            self._port = int(found[1])
        return self._port

    def text(self) -> str:
        return self.log.read_text()

    def ended(self) -> bool:
        return self.process.poll() is not None

    def call(self, model: str, x: float) -> Call:
        body = json.dumps({"x": [x]}).encode()
        call = Call(self.port, "POST", f"/predict/{model}", body, {"pelton-timeout-ms": "60000"})
        self._calls.append(call)
        return call

    def version(self, model: str, key: str = "", x: float = 1.0) -> str:
        """The short version that answers; "" where none does."""
        body, headers = json.dumps({"x": [x]}).encode(), {"connection": "close", **({"pelton-key": key} if key else {})}
        with contextlib.closing(Call(self.port, "POST", f"/predict/{model}", body, headers)) as call:
            status, _, told = call.answer()
        return told["pelton-version"] if status == 200 else ""

    def ask(self, model: str, x: float) -> tuple[int, Any, dict[str, str]]:
        """One call on its own connection."""
        with contextlib.closing(self.call(model, x)) as call:
            return call.answer()

    def get(self, target: str, method: str = "GET") -> tuple[int, Any, dict[str, str]]:
        with contextlib.closing(Call(self.port, method, target, b"", {"connection": "close"})) as call:
            return call.answer()

    def ready(self) -> bool:
        try:
            return self.get("/v2/health/ready")[0] == 200
        except OSError:
            return False

    def refuses(self) -> bool:
        """Whether nothing listens on the port."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=BOUND).close()
        except ConnectionRefusedError:
            return True
        except ConnectionError:
            return False
        return False

    def wait_ready(self) -> Running:
        until(lambda: self.ready() or self.ended(), "ready")
        assert not self.ended(), self.text()
        return self

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self, seconds: float = BOUND) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still alive after {seconds} s\n{self.text()}") from None

    def family(self) -> dict[int, str]:
        """Every process that descends from this server or once did: they share an environment variable's value."""
        mark = f"TMPDIR={self.folder}\0".encode()
        found = {}
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            with contextlib.suppress(OSError):
                if mark in Path(f"/proc/{pid}/environ").read_bytes() + b"\0":
                    found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def workers(self) -> list[int]:
        """Process numbers of the workers, oldest first."""
        return sorted(pid for pid, command in self.family().items() if "pelton.cli.worker" in command)

    def left_over(self) -> list[str]:
        """Folders of sockets that the server left."""
        return sorted(str(path) for path in self.folder.glob("pelton-*"))

    def end(self) -> None:
        for call in self._calls:
            call.close()
        if not self.ended():
            self.process.kill()
            self.process.wait()
        for pid in self.family():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


class Traffic:
    """Callers that ask one model as fast as it answers, each on a connection that it keeps."""

    def __init__(self, port: int, model: str, callers: int = 3, x: float = 1.0) -> None:
        self.answers: Counter[tuple[int, str]] = Counter()  # (status, version)
        self.broken: list[BaseException] = []
        self._target = port, f"/predict/{model}", json.dumps({"x": [x]}).encode()
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(callers)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(BOUND)

    def versions(self) -> set[str]:
        return {version for _, version in list(self.answers)} - {""}

    def failed(self) -> int:
        """Answers that were none, and connections that broke."""
        return sum(count for (status, _), count in self.answers.items() if status != 200) + len(self.broken)

    def answered(self, version: str) -> int:
        return self.answers[200, version[:12]]

    def _ask(self) -> None:
        port, path, body = self._target
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=BOUND)
        try:
            while not self._end.is_set():
                connection.request("POST", path, body)
                response = connection.getresponse()
                response.read()
                self.answers[response.status, response.getheader("pelton-version", "")] += 1
        except (OSError, http.client.HTTPException) as error:
            self.broken.append(error)
        finally:
            connection.close()


class Home:
    """A registry with models of the test, and the servers that were started on it."""

    def __init__(self, folder: Path, sockets: Callable[[str], Path], store: str = "") -> None:
        self.folder = folder
        self.store = store
        self.gate = folder / "gate"
        self.gate.mkdir()
        self.registry = Registry(folder / "home", store or None)
        self.servers: list[Running] = []
        self._sockets = sockets

    @property
    def control(self) -> Control:
        """What an operator uses."""
        return Control(self.registry.store, self.registry)

    def newest(self, name: str) -> str:
        """The full version that was added last."""
        return self.registry.versions(name)[0].version

    def add_faulty(self, name: str, tag: str) -> str:
        """A version whose faults the test decides: `spoil`."""
        self.add_class(name, FAULTY.replace("TAG", tag))
        return self.newest(name)

    def spoil(self, tag: str, share: float = 0.0, differs: bool = False) -> None:
        """From now on this share of its calls fail, or all its answers are others."""
        if share:
            temporary = self.gate / f"new-{tag}"
            temporary.write_text(str(share))
            temporary.rename(self.gate / f"bad-{tag}")
        if differs:
            (self.gate / f"differs-{tag}").touch()

    def add_class(self, name: str, source: str = GATE) -> None:
        """A Python class in a process of its own. GATE in its source is the folder with which the test decides."""
        folder = self._new(name)
        (folder / "model.py").write_text(textwrap.dedent(source).replace("GATE", repr(str(self.gate))))
        signature, _ = inspect_class(folder / "model.py")
        save(Manifest(name, "python", "model.py", signature, slo=Slo(60_000.0)), folder)
        self.registry.add(folder)

    def add_twice(self, name: str, times: int = 2, padding: int = 0, recorded: float | None = None) -> str:
        """y = times * x, in ONNX; `padding` bytes make its files heavier; `recorded`: what a golden request holds as the
        answer to 1. Returns the version."""
        folder = self._new(name)
        nodes = [helper.make_node("Sum", ["x"] * times, ["y"])]
        x, y = (helper.make_tensor_value_info(key, TensorProto.FLOAT, ["n", 1]) for key in "xy")
        opset = [helper.make_opsetid("", 17)]
        onnx.save(
            helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=opset, ir_version=9),
            folder / "m.onnx",
        )
        if padding:
            (folder / "padding.bin").write_bytes(bytes(padding))
        spec = Signature((TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),))
        told = None
        if recorded is not None:
            told = Golden()
            one = np.ones((1, 1), np.float32)
            golden.write(folder / told.file, [golden.Request({"x": one}, {"y": one * recorded})], spec)
        save(Manifest(name, "onnx", "m.onnx", spec, golden=told), folder)
        return self.registry.add(folder)

    def serve(self, *models: str, **flags: Any) -> Running:
        number = len(self.servers)
        if self.store:
            flags = {"store": self.store, **flags}
        running = Running(
            self.registry.home, models, flags, self.folder / f"log-{number}.txt", self._sockets(f"server{number}")
        )
        self.servers.append(running)
        return running

    def began(self, number: int) -> bool:
        """Whether the gate model is at work on this number."""
        return (self.gate / f"began-{number}").exists()

    def open_gate(self) -> None:
        (self.gate / "open").touch()

    def _new(self, name: str) -> Path:
        folder = self.folder / "sources" / f"{name}-{time.monotonic_ns()}"
        folder.mkdir(parents=True)
        return folder


@pytest.fixture
def home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path, tmp_path_factory.mktemp)
    yield home
    for server in home.servers:
        server.end()
    home.registry.close()


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Any]:
    return until


@pytest.fixture
def traffic() -> type[Traffic]:
    """`with traffic(port, model) as callers: ...`"""
    return Traffic


@pytest.fixture
def home_in(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Home]]:
    """home_in(address of a store) -> a home whose models and deployments stand there."""
    made: list[Home] = []

    def make(store: str) -> Home:
        made.append(Home(tmp_path, tmp_path_factory.mktemp, store))
        return made[-1]

    yield make
    for home in made:
        for server in home.servers:
            server.end()
        home.registry.close()
