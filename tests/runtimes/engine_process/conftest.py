"""Echo engines in real processes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pelton.packages import Manifest, Package, save
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.language import LanguageEngine, load
from pelton.types import Signature, TensorSpec

sys.path.insert(0, str(Path(__file__).parent))  # for engine_ear, which the tests share

SIGNATURE = Signature((TensorSpec("prompt", "BYTES", ()),), (TensorSpec("text", "BYTES", ()),))


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Package]:
    """package(streams=..., exit_token=...): options of the runtime, and those of the echo engine."""
    made: list[Package] = []

    def make(
        engine: str = "echo", streams: int = 16, context: int = 8192, stall_seconds: float = 120.0, **own: Any
    ) -> Package:
        folder = tmp_path / f"package{len(made)}"
        folder.mkdir()
        (folder / "weights").write_text("none")
        options = {
            "engine": engine,
            "streams": streams,
            "context": context,
            "stall_seconds": stall_seconds,
            "engine_options": own,
        }
        made.append(save(Manifest("m", "language", "weights", SIGNATURE, options=options), folder))
        return made[-1]

    return make


@pytest.fixture
def engine(package: Callable[..., Package]) -> Iterator[Callable[..., LanguageEngine]]:
    """engine(**options) -> a loaded engine, which is closed after the test."""
    loaded: list[LanguageEngine] = []

    def start(**options: Any) -> LanguageEngine:
        loaded.append(load(package(**options), RuntimeOptions()))
        return loaded[-1]

    yield start
    for one in loaded:
        one.close()
    assert not [thread for thread in threading.enumerate() if "-keeper" in thread.name]
