"""Packages around Python classes, for the tests of this room."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pelton.packages import Manifest, Package, save
from pelton.packages.python_source import inspect_class
from pelton.runtimes import contract
from pelton.runtimes.contract import LoadedModel, RuntimeOptions


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Package]:
    """package(source, **options) -> a package of the class Model in `source`; the signature is read from the class."""
    made: list[Package] = []

    def make(source: str, **options: Any) -> Package:
        folder = tmp_path / f"package{len(made)}"
        folder.mkdir()
        file = folder / "model.py"
        file.write_text(textwrap.dedent(source))
        signature, _ = inspect_class(file, options.get("class", "Model"))
        made.append(save(Manifest("m", "python", "model.py", signature, options=options), folder))
        return made[-1]

    return make


@pytest.fixture
def serve(package: Callable[..., Package]) -> Iterator[Callable[..., LoadedModel]]:
    """serve(source, **options) -> a loaded model that is closed after the test."""
    loaded: list[LoadedModel] = []

    def start(source: str, **options: Any) -> LoadedModel:
        model = contract.load(package(source, **options), RuntimeOptions(trust=True))
        loaded.append(model)
        return model

    yield start
    for model in loaded:
        model.close()
