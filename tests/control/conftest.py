"""A store of each kind, a registry with a model of several versions, and processes that report what the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pelton.control import Control
from pelton.deployments import ModelStatus, ProcessStatus
from pelton.packages import Manifest, save
from pelton.registry import Registry
from pelton.store import Store
from pelton.testing import ManualClock
from pelton.types import Signature, TensorSpec

X = TensorSpec("x", "FP32", (3,))
Y = TensorSpec("y", "FP32", (1,))
Add = Callable[..., str]
Report = Callable[..., None]


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store.open(store_url)
    yield store
    store.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000_000.0)


@pytest.fixture
def control(store: Store, tmp_path: Path, clock: ManualClock) -> Control:
    return Control(store, Registry(tmp_path / "home", store, clock), clock)


@pytest.fixture
def add(control: Control, tmp_path: Path, clock: ManualClock) -> Add:
    """Adds a version of a model whose only difference is `content`, or what it takes and gives."""

    def add(content: str, name: str = "fraud", inputs=(X,), outputs=(Y,), **manifest) -> str:
        folder = tmp_path / f"{name}-{content}"
        folder.mkdir()
        (folder / "model.onnx").write_text(content)
        save(Manifest(name, "onnx", "model.onnx", Signature(inputs, outputs), **manifest), folder)
        clock.advance(1.0)
        return control.registry.add(folder)

    return add


@pytest.fixture
def report(control: Control) -> Report:
    """A process says what it does for a model."""

    def report(process: str, name: str = "fraud", **model) -> None:
        status = ProcessStatus("host", 7, 8080, 0, 1.0, {name: ModelStatus(**model)})
        control.deployments.report(process, status)

    return report
