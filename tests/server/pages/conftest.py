"""Packages whose answers are easy to foretell, an engine with its pages in this process, and a real server process."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pelton import packages
from pelton.engine import Engine
from pelton.packages import Manifest
from pelton.packages import preprocess as pre
from pelton.records import Ledger
from pelton.registry import Registry
from pelton.scheduling import Executor
from pelton.server.fleet import Fleet
from pelton.server.pages.application import make_app
from pelton.server.site import Site
from pelton.server.wire.asgi import App
from pelton.server.wire.limits import Limits
from pelton.settings import Settings
from pelton.types import Signature, TensorSpec

WEIGHTS = np.array([[1, 0], [0, 1], [1, 1]], np.float32)


def _graph(nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: list[Any], file: Path) -> None:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, file)


def _linear(folder: Path) -> Manifest:
    """y = x @ WEIGHTS."""
    _graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(WEIGHTS, "w")],
        folder / "model.onnx",
    )
    signature = Signature((TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (2,)),))
    return Manifest("linear", "onnx", "model.onnx", signature, description="Two sums.", license="MIT")


def _words(folder: Path) -> Manifest:
    """Texts as they came, and a number beside."""
    _graph(
        [helper.make_node("Identity", ["text"], ["same"]), helper.make_node("Neg", ["a"], ["minus"])],
        [
            helper.make_tensor_value_info("text", TensorProto.STRING, ["n", 1]),
            helper.make_tensor_value_info("a", TensorProto.INT64, ["n", 1]),
        ],
        [
            helper.make_tensor_value_info("same", TensorProto.STRING, ["n", 1]),
            helper.make_tensor_value_info("minus", TensorProto.INT64, ["n", 1]),
        ],
        [],
        folder / "model.onnx",
    )
    signature = Signature(
        (TensorSpec("text", "BYTES", (1,)), TensorSpec("a", "INT64", (1,))),
        (TensorSpec("same", "BYTES", (1,)), TensorSpec("minus", "INT64", (1,))),
    )
    return Manifest("words", "onnx", "model.onnx", signature)


def _people(folder: Path) -> Manifest:
    """A table row of every type of column -> two labels."""
    weights = np.array([[0, 1], [0, 1], [0, 1], [0, 1]], np.float32)
    _graph(
        [helper.make_node("MatMul", ["row", "w"], ["scores"])],
        [helper.make_tensor_value_info("row", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weights, "w")],
        folder / "model.onnx",
    )
    columns = (
        pre.Column("age", minimum=0, maximum=150, description="in years"),
        pre.Column("children", "integer", default=0.0),
        pre.Column("member", "boolean"),
        pre.Column("country", "string", ("AT", "PT"), unknown=-1.0),
    )
    return Manifest(
        "people",
        "onnx",
        "model.onnx",
        Signature((TensorSpec("row", "FP32", (4,)),), (TensorSpec("scores", "FP32", (2,)),)),
        slo=packages.manifest.Slo(250.0),
        preprocess=(pre.Table(columns, "row"),),
        postprocess=(pre.Labels("scores", labels=("no", "yes"), softmax=True),),
        example={"age": 41.5, "children": 2, "member": True, "country": "PT"},
    )


def _grey(folder: Path) -> Manifest:
    """A picture -> its mean brightness."""
    _graph(
        [helper.make_node("ReduceMean", ["p"], ["mean"], axes=[1, 2, 3], keepdims=0)],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["n"])],
        [],
        folder / "model.onnx",
    )
    return Manifest(
        "grey",
        "onnx",
        "model.onnx",
        Signature((TensorSpec("p", "FP32", (1, 8, 8)),), (TensorSpec("mean", "FP32", ()),)),
        preprocess=(pre.Image("picture", "p", mode="L", resize=pre.Resize(8, 8)),),
    )


def _add(registry: Registry, make: Callable[[Path], Manifest], folder: Path, **changes: Any) -> str:
    folder.mkdir(parents=True)
    packages.save(msgspec.structs.replace(make(folder), **changes), folder)
    return registry.add(folder)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with all models; tests that change it take `own_home`."""
    return fill(tmp_path_factory.mktemp("home"))


@pytest.fixture
def own_home(tmp_path: Path) -> Path:
    return fill(tmp_path / "home")


def fill(home: Path) -> Path:
    registry = Registry(home)
    for make in (_linear, _words, _people, _grey):
        _add(registry, make, home / "made" / make.__name__)
    return home


@pytest.fixture
def add_linear() -> Callable[[Path, str], str]:
    """Adds another version of `linear`; returns the version."""

    def add(home: Path, description: str) -> str:
        return _add(Registry(home), _linear, home / "made" / description, description=description)

    return add


class Answered:
    """What an application answered."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class House:
    """An engine with a fleet and the pages, all in this process."""

    def __init__(self, home: Path) -> None:
        loop = asyncio.get_running_loop()
        settings = Settings(home=str(home))
        executor = Executor(loop, 1, time.perf_counter)
        self.engine = Engine(loop, executor, Ledger(time.perf_counter), time.perf_counter)
        self.registry = Registry(home)
        self.fleet = Fleet(self.engine, self.registry, settings)
        self.site = Site(self.engine, self.fleet, settings, Limits())
        self.app: App = make_app(self.site)
        self.fault: Exception | None = None  # what the application raised behind its last answer

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answered:
        """One request to the application, as the connection would hand it over."""
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": None, "server": None,
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        messages: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        self.fault = None
        try:
            await self.app(scope, receive, send)
        except Exception as fault:  # the connection would log it; the answer was sent before
            self.fault = fault
            if not messages:
                raise
        told = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
        return Answered(messages[0]["status"], told, b"".join(one.get("body", b"") for one in messages[1:]))


@asynccontextmanager
async def opened(home: Path, *names: str) -> AsyncIterator[House]:
    house = House(home)
    try:
        for name in names:
            await house.fleet.load(name)
        yield house
    finally:
        await house.fleet.close()
        house.engine.close()


@pytest.fixture
def open_house() -> Callable[..., Any]:
    """A further house: `async with open_house(home, *names) as house`."""
    return opened


@pytest.fixture
def visit(home: Path) -> Callable[..., Any]:
    """Runs `test(house)` in a house that serves the named models."""

    def run(test: Callable[[House], Awaitable[None]], *names: str, at: Path = home) -> None:
        async def main() -> None:
            async with opened(at, *names) as house:
                await test(house)

        asyncio.run(main())

    return run


class ServerProcess:
    """`pelton serve` on a free port."""

    def __init__(self, home: Path) -> None:
        command = [sys.executable, "-m", "pelton", "serve", "--home", str(home), "--port", "0", "--grace", "0"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PELTON_")}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self.port = int(self._until(r"listening on http://[^:]+:(\d+)")[1])
        for name in ("linear", "words", "people", "grey"):
            self._until(rf"model {name}:\w+ serves")
        self._drain = threading.Thread(target=self._rest, daemon=True)
        self._drain.start()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"

    def _until(self, pattern: str) -> re.Match[str]:
        """The first log line, seen or to come, that holds `pattern`. Models may come up in any order."""
        assert self.process.stderr is not None
        for line in self.lines:
            if match := re.search(pattern, line):
                return match
        for line in self.process.stderr:
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"the server ended before {pattern!r}:\n{''.join(self.lines)}")

    def _rest(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self._drain.join()
            assert self.process.stderr is not None
            self.process.stderr.close()


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[ServerProcess]:
    """One for all tests that only ask."""
    process = ServerProcess(home)
    yield process
    process.stop()


@pytest.fixture
def own_server(own_home: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(own_home)
    yield process
    process.stop()
