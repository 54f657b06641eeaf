"""The engine "auto", with two echo engines where a real model has two real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from pelton.errors import ExtraMissing, ModelFailed, PackageInvalid
from pelton.packages import Package
from pelton.runtimes import engine_choice
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.duet import Duet
from pelton.runtimes.engine_choice import Choice, Remembered
from pelton.runtimes.engine_process import EngineProcess
from pelton.runtimes.language import LanguageEngine, load


@pytest.fixture
def best(
    package: Callable[..., Package], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., LanguageEngine]]:
    """best(version=..., **options) -> the loaded engine of a package that asks for "auto"."""
    monkeypatch.setattr(engine_choice, "candidates", lambda file, there, gpu: ["echo", "echo"])
    monkeypatch.setattr(engine_choice, "busy", lambda: False)
    loaded: list[LanguageEngine] = []

    def start(version: str = "v1", **options: object) -> LanguageEngine:
        made = package(engine="auto", **options)
        made = Package(made.folder, made.manifest, version)
        loaded.append(load(made, RuntimeOptions(cache=str(tmp_path / "cache"))))
        return loaded[-1]

    yield start
    for engine in loaded:
        engine.close()


def kept(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "engine-choice" / "v1.json"


def test_what_was_measured_decides_and_is_kept_with_the_reason(best, tmp_path: Path):
    engine = best(seconds=0.001)
    assert isinstance(engine, EngineProcess)  # two of the same kind: one is enough
    assert "tok/s at 16 streams against" in engine.facts.why
    known = msgspec.json.decode(kept(tmp_path).read_bytes(), type=Remembered)
    assert known.choice == Choice(("echo",), engine.facts.why)


def test_a_decision_that_was_kept_is_followed(best, tmp_path: Path):
    best().close()
    known = msgspec.json.decode(kept(tmp_path).read_bytes(), type=Remembered)
    duet = Choice(("echo", "echo"), "as it was decided", 3)
    kept(tmp_path).write_bytes(msgspec.json.encode(Remembered(known.key, duet)))
    engine = best()
    assert isinstance(engine, Duet)
    assert (engine.facts.engine, engine.facts.why) == ("echo+echo", "as it was decided")


def test_what_is_measured_on_a_busy_machine_is_not_kept(best, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_choice, "busy", lambda: True)
    assert best().facts.engine == "echo"
    assert not kept(tmp_path).exists()


def test_a_package_that_is_not_stored_yet_keeps_nothing(best, tmp_path: Path):
    best(version="")
    assert not (tmp_path / "cache").exists()


def test_where_neither_loads_the_error_is_told(best):
    with pytest.raises(ModelFailed, match="no such weights"):
        best(load_error="no such weights")


def test_a_file_that_no_engine_reads_is_refused(package: Callable[..., Package]):
    with pytest.raises(PackageInvalid, match="no engine reads 'weights'"):
        load(package(engine="auto"), RuntimeOptions())


@pytest.mark.parametrize(("name", "extra"), [("m.gguf", "chat"), ("m.xml", "chat"), ("m.safetensors", "lm")])
def test_what_is_not_installed_is_named(
    package: Callable[..., Package], monkeypatch: pytest.MonkeyPatch, name: str, extra: str
):
    monkeypatch.setattr(engine_choice, "installed", lambda file: [])
    made = package(engine="auto")
    (made.folder / name).write_text("weights")
    made = Package(made.folder, msgspec.structs.replace(made.manifest, file=name))
    with pytest.raises(ExtraMissing, match=extra):
        load(made, RuntimeOptions())
