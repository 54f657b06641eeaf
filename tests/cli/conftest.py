"""Models that take numbers, columns, text and pictures; the commands in this process and in one of their own; a server."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pelton import cli, packages
from pelton.packages import Manifest
from pelton.packages import preprocess as pre
from pelton.registry import Registry
from pelton.types import Signature, TensorSpec

BOUND = 60.0  # seconds: generous, the machine may be busy; reached only by a failure
WEIGHTS = np.array([[1, 0], [0, 1], [1, 1]], np.float32)


def onnx_file(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], file: Path, **weights: Any) -> Path:
    """An ONNX file; inputs and outputs are name -> (type, shape)."""
    told = [
        [helper.make_tensor_value_info(name, kind, ["n", *shape]) for name, (kind, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", *told, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    return file


def linear_file(file: Path) -> Path:
    """y = x @ WEIGHTS."""
    return onnx_file(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, [3])},
        {"y": (TensorProto.FLOAT, [2])},
        file,
        w=WEIGHTS,
    )


def _linear(folder: Path) -> Manifest:
    linear_file(folder / "model.onnx")
    signature = Signature((TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (2,)),))
    return Manifest("linear", "onnx", "model.onnx", signature, slo=packages.manifest.Slo(500.0))


def _words(folder: Path) -> Manifest:
    """The text as it came."""
    text = {"kind": TensorProto.STRING, "shape": [1]}
    onnx_file(
        [helper.make_node("Identity", ["text"], ["same"])],
        {"text": tuple(text.values())},
        {"same": tuple(text.values())},
        folder / "model.onnx",
    )
    signature = Signature((TensorSpec("text", "BYTES", (1,)),), (TensorSpec("same", "BYTES", (1,)),))
    return Manifest(
        "words", "onnx", "model.onnx", signature, slo=packages.manifest.Slo(500.0), example={"text": ["grüß dich"]}
    )


def _people(folder: Path) -> Manifest:
    """A table row -> two labels; the older, the surer."""
    onnx_file(
        [helper.make_node("MatMul", ["row", "w"], ["scores"])],
        {"row": (TensorProto.FLOAT, [3])},
        {"scores": (TensorProto.FLOAT, [2])},
        folder / "model.onnx",
        w=np.array([[0, 0.01], [0, 0], [0, 0]], np.float32),
    )
    columns = (
        pre.Column("age", minimum=0, maximum=150),
        pre.Column("member", "boolean"),
        pre.Column("country", "string", ("AT", "PT"), unknown=-1.0),
    )
    return Manifest(
        "people",
        "onnx",
        "model.onnx",
        Signature((TensorSpec("row", "FP32", (3,)),), (TensorSpec("scores", "FP32", (2,)),)),
        slo=packages.manifest.Slo(500.0),
        preprocess=(pre.Table(columns, "row"),),
        postprocess=(pre.Labels("scores", labels=("no", "yes"), softmax=True),),
        example={"age": 41.5, "member": True, "country": "PT"},
    )


def _grey(folder: Path) -> Manifest:
    """A picture -> its mean brightness."""
    onnx_file(
        [helper.make_node("ReduceMean", ["p"], ["mean"], axes=[1, 2, 3], keepdims=0)],
        {"p": (TensorProto.FLOAT, [1, 8, 8])},
        {"mean": (TensorProto.FLOAT, [])},
        folder / "model.onnx",
    )
    return Manifest(
        "grey",
        "onnx",
        "model.onnx",
        Signature((TensorSpec("p", "FP32", (1, 8, 8)),), (TensorSpec("mean", "FP32", ()),)),
        slo=packages.manifest.Slo(500.0),
        preprocess=(pre.Image("picture", "p", mode="L", resize=pre.Resize(8, 8)),),
    )


def fill(home: Path, sources: Path) -> Path:
    """A registry with all models."""
    registry = Registry(home)
    for make in (_linear, _words, _people, _grey):
        folder = sources / make.__name__
        folder.mkdir(parents=True)
        packages.save(make(folder), folder)
        registry.add(folder)
    return home


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of whoever runs the tests counts, and what is written goes to a folder of the test."""
    for name in list(os.environ):
        if name.startswith("PELTON_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that no test changes."""
    folder = tmp_path_factory.mktemp("models")
    return fill(folder / "home", folder / "sources")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that is not there yet."""
    return tmp_path / "home"


@pytest.fixture
def full_home(home: Path, tmp_path: Path) -> Path:
    """A home with all models, of this test alone."""
    return fill(home, tmp_path / "sources")


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """An ONNX file to add."""
    return linear_file(tmp_path / "linear.onnx")


class Done(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


def _no_trace(done: Done) -> Done:
    assert "Traceback" not in done.err, done.err
    assert "Exception ignored" not in done.err, done.err
    return done


@pytest.fixture
def pelton(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """pelton("list", "--json") -> how it ended, in this process. Fails on a stack trace; other exceptions pass."""

    def run(*arguments: object, stdin: bytes | None = None) -> Done:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return _no_trace(Done(code, *capsys.readouterr()))

    return run


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """process("list") -> the command in a process of its own, with pipes."""
    made: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        made.append(
            subprocess.Popen(
                [sys.executable, "-m", "pelton", *map(str, arguments)],
                **{"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, "text": True, **options},
            )
        )
        return made[-1]

    yield start
    for one in made:
        if one.poll() is None:
            one.kill()
        one.communicate()


@pytest.fixture
def finish() -> Callable[[subprocess.Popen[str]], Done]:
    """Waits for the end of a process."""

    def finish(process: subprocess.Popen[str]) -> Done:
        out, err = process.communicate(timeout=BOUND)
        return _no_trace(Done(process.returncode, out or "", err or ""))

    return finish


class Server:
    """`pelton serve` on a free port, ready."""

    def __init__(self, home: Path, *arguments: str) -> None:
        command = [
            sys.executable,
            "-m",
            "pelton",
            "serve",
            "--home",
            str(home),
            "--port",
            "0",
            "--grace",
            "0",
            *arguments,
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.until(r"listening on (http://\S+)")[1]
        for _ in range(4):
            self.until(r"model (linear|words|people|grey):\w+ serves", _)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def until(self, pattern: str, skip: int = 0) -> re.Match[str]:
        """Waits for a line of the log; `skip` earlier ones do not count."""
        end = time.monotonic() + BOUND
        while True:
            with self._changed:
                found = [match for line in self.lines if (match := re.search(pattern, line))]
                if len(found) > skip:
                    return found[skip]
                self._changed.wait(0.1)
            assert time.monotonic() < end, f"no {pattern!r} in\n{''.join(self.lines)}"

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(BOUND)
        finally:
            self.process.kill()
            self._reader.join()
            assert self.process.stderr is not None
            self.process.stderr.close()


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[Server]:
    """One for all tests that only ask."""
    running = Server(models)
    yield running
    running.stop()
