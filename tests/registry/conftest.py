"""Packages that nothing can load, and registries on both engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pelton.packages import Manifest, save
from pelton.registry import Registry
from pelton.types import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (2,)),))


def make_package(folder: Path, name: str, content: str = "", **manifest: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "m.onnx").write_text(f"{name} {content}")
    save(Manifest(**{"name": name, "runtime": "onnx", "file": "m.onnx", "signature": SIGNATURE, **manifest}), folder)
    return folder


@pytest.fixture(name="make_package")
def make_package_fixture() -> Callable[..., Path]:
    return make_package


class Clock:
    """Seconds since 1970 that stand still."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, store_url: str, clock: Clock) -> Iterator[Registry]:
    registry = Registry(tmp_path / "home", store_url, clock)
    yield registry
    registry.close()


@pytest.fixture
def added(registry: Registry, tmp_path: Path) -> Callable[..., str]:
    """Adds a new version of a model; returns it."""
    made = []

    def add(name: str = "fraud", **said: Any) -> str:
        made.append(name)
        return registry.add(make_package(tmp_path / f"package{len(made)}", name, str(len(made))), **said)

    return add
