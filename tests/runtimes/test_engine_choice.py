"""Which engine runs a model: from measurements, without engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from pelton.runtimes import engine_choice
from pelton.runtimes.engine_choice import Choice, candidates, decide, recall, remember, step
from pelton.runtimes.engine_process import Options
from pelton.runtimes.language import Facts, Speed


def facts(engine: str, streams: int, prefill: float, **decode: float) -> Facts:
    """`decode`: s1=0.01 is a step of one stream."""
    return Facts(
        engine, 4096, streams, 8192, Speed(prefill, {int(name[1:]): seconds for name, seconds in decode.items()})
    )


# SmolLM2-135M in Q4_1, as measured on two cores
LLAMA = facts("llama.cpp", 4, 213.0, s1=1 / 110, s4=4 / 140)
OPENVINO = facts("openvino", 32, 900.0, s1=1 / 48, s4=4 / 130, s16=16 / 220, s32=32 / 260)


def test_an_engine_for_few_and_one_for_many_make_a_duet():
    choice = decide(LLAMA, OPENVINO, twice=True)
    assert choice.engines == ("llama.cpp", "openvino")
    assert choice.crowd in (2, 3)
    assert "tok/s at 32 streams against" in choice.why
    assert "alone" in choice.why


def test_without_memory_for_both_the_better_one_runs_alone():
    choice = decide(LLAMA, OPENVINO, twice=False)
    assert choice.engines == ("openvino",)
    assert "memory" in choice.why


@pytest.mark.parametrize(
    ("solo", "many", "engines"),
    [
        (LLAMA, facts("openvino", 32, 100.0, s1=0.05, s32=1.6), ("llama.cpp",)),  # nowhere better
        (facts("llama.cpp", 4, 200.0, s1=0.05, s4=0.2), OPENVINO, ("openvino",)),  # everywhere better
        (facts("llama.cpp", 4, 800.0, s1=1 / 50, s4=4 / 60), OPENVINO, ("openvino",)),  # a second one is not worth it
    ],
)
def test_one_engine_that_is_best_for_all_runs_alone(solo: Facts, many: Facts, engines: tuple[str, ...]):
    assert decide(solo, many, twice=True).engines == engines


def test_a_step_is_interpolated_between_what_was_measured():
    assert step(OPENVINO, 1) == pytest.approx(1 / 48)
    assert step(OPENVINO, 10) == pytest.approx((4 / 130 + 16 / 220) / 2)
    assert step(OPENVINO, 64) == pytest.approx(2 * 32 / 260)


@pytest.mark.parametrize(
    ("file", "there", "gpu", "expected"),
    [
        ("m.gguf", ["openvino", "llama.cpp", "torch"], False, ["llama.cpp", "openvino"]),
        ("m.gguf", ["openvino", "llama.cpp", "torch"], True, ["torch"]),
        ("m.gguf", ["torch"], False, ["torch"]),
        ("m.gguf", ["llama.cpp"], True, ["llama.cpp"]),
        ("m.xml", ["openvino", "llama.cpp", "torch"], True, ["openvino"]),
        ("m.safetensors", ["openvino", "torch"], False, ["torch"]),
        ("m.gguf", [], True, []),
        ("m.bin", ["openvino", "llama.cpp", "torch"], False, []),
    ],
)
def test_what_can_run_a_file(file: str, there: list[str], gpu: bool, expected: list[str]):
    assert candidates(Path(file), there, gpu) == expected


def test_a_decision_is_kept_for_the_same_version_options_and_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, choice = tmp_path / "deep" / "v1.json", Choice(("llama.cpp", "openvino"), "because", 3)
    key = engine_choice.key("v1", Options(), ["llama.cpp", "openvino"])
    assert recall(path, key) is None
    remember(path, key, choice)
    assert recall(path, key) == choice
    assert recall(path, engine_choice.key("v1", Options(threads=1), ["llama.cpp", "openvino"])) is None
    monkeypatch.setattr(engine_choice, "release", lambda module: "another")
    assert recall(path, engine_choice.key("v1", Options(), ["llama.cpp", "openvino"])) is None
    path.write_text("{half")
    assert recall(path, key) is None
    assert [file.name for file in path.parent.iterdir()] == ["v1.json"]


def test_a_decision_that_cannot_be_kept_is_no_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    remember(tmp_path / "file" / "v1.json", "key", Choice(("openvino",), "because"))
