from __future__ import annotations

import dataclasses
import math

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from pelton import language
from pelton.cli import main
from pelton.errors import InvalidInput, ModelFailed, Unsupported
from pelton.importers import Options, add, gguf_writer
from pelton.importers.derive import derive, type_of
from pelton.importers.language_quality import Quality, compared, divergence
from pelton.importers.quality_texts import TEXTS
from pelton.importers.quantize import ENCODERS
from pelton.language import gguf
from pelton.runtimes.lm.gguf import GgufFile
from pelton.runtimes.step_engine import TokenLogprobs
from pelton.types import ModelRef

ECHO = Options(settings={"engine": "echo"})


@pytest.fixture
def read_back(tmp_path):
    """Weights through a file in a format, as an engine would read them."""
    count = iter(range(10_000))

    def through(weights, kind):
        path = tmp_path / f"{next(count)}.gguf"
        raw = ENCODERS[kind](weights).tobytes()
        shape = (weights.size,)
        gguf_writer.write(path, {}, {}, [gguf_writer.NewTensor("w", shape, kind, len(raw), lambda: [raw])])
        return GgufFile(path).read("w")

    return through


@pytest.mark.parametrize(
    ("kind", "largest", "usual"),
    [("Q4_0", 0.15, 0.085), ("Q8_0", 1 / 250, 0.006), ("F16", 1 / 2000, 1 / 2000), ("F32", 0, 0)],
)
def test_weights_come_back_within_a_step_of_their_format(kind, largest, usual, read_back):
    weights = np.random.default_rng(0).standard_normal(32 * 500).astype(np.float32)
    again = read_back(weights, kind)
    step = np.abs(weights.reshape(-1, 32)).max(axis=1, keepdims=True)
    error = np.abs(again - weights).reshape(-1, 32)
    assert (error <= step * largest).all()
    assert np.sqrt(np.square(error).mean() / np.square(weights).mean()) <= usual


def test_weights_that_the_format_holds_come_back_exactly(read_back):
    steps = np.resize(np.arange(-8, 8), 320).astype(np.float32)
    assert (read_back(steps * 0.5, "Q4_0") == steps * 0.5).all()
    assert (read_back(np.zeros(64, np.float32), "Q4_0") == 0).all()
    assert (read_back(np.zeros(64, np.float32), "Q8_0") == 0).all()


def test_four_bits_lose_less_than_with_the_plain_scale(read_back):
    weights = np.random.default_rng(1).standard_normal(32 * 300).astype(np.float32)
    blocks = weights.reshape(-1, 32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    scale = (largest / -8).astype(np.float16).astype(np.float32)
    plain = np.clip(np.rint(blocks / scale), -8, 7) * scale
    own = read_back(weights, "Q4_0").reshape(-1, 32)
    assert np.square(own - blocks).mean() < 0.9 * np.square(plain - blocks).mean()


@settings(max_examples=50, deadline=None)
@given(weights=arrays.arrays(np.float32, 64, elements=st.floats(-1e4, 1e4, width=32)))
@example(weights=np.full(64, np.finfo(np.float32).tiny))
def test_no_weights_break_a_format(weights):
    for kind, encode in ENCODERS.items():
        assert encode(weights).nbytes == gguf_writer.size_of((64,), kind)


def test_a_weight_too_large_for_float16_is_told():
    with pytest.raises(ModelFailed, match="too large for float16"):
        ENCODERS["F16"](np.array([1e6], np.float32))


@pytest.fixture
def parent(gguf_file, registry):
    return add(str(gguf_file()), registry, ECHO)


def test_a_derived_version_has_the_new_format_and_everything_else_as_before(parent, registry):
    derived = derive(parent, "q4_0", registry, Options(by="me"))
    old, new = gguf.read(parent.file), gguf.read(derived.package.file)
    assert {**new.meta, "general.file_type": 0} == {**old.meta, "general.file_type": 0}
    assert new.meta["general.file_type"] == 2
    kinds = {tensor.name: tensor.type for tensor in new.tensors}
    assert kinds["blk.0.ffn_up.weight"] == "Q4_0"
    assert kinds["token_embd.weight"] == "Q8_0"  # it is the output, too
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    weights = GgufFile(parent.file).read("blk.0.ffn_down.weight")
    again = GgufFile(derived.package.file).read("blk.0.ffn_down.weight")
    assert again.shape == weights.shape
    assert np.corrcoef(again.ravel(), weights.ravel())[0, 1] > 0.99
    assert (derived.size, derived.parent_size) == (derived.package.file.stat().st_size, parent.file.stat().st_size)
    assert derived.size < derived.parent_size / 3
    assert language.load(derived.package).card == msgspec.structs.replace(
        language.load(parent).card, quantization="Q4_0"
    )


def test_a_derived_version_knows_its_parent_and_what_it_lost(parent, registry):
    derived = derive(parent, "q8_0", registry, Options(by="me"))
    assert (derived.package.name, derived.package.version) != (parent.name, parent.version)
    entry = registry.find(ModelRef("small"))
    assert entry.version == derived.package.version
    assert (entry.parent, entry.derivation) == (parent.version, "q8_0")
    # the echo engine says the same of both
    assert derived.quality == Quality(
        0.0, 1.0, derived.quality.perplexity, derived.quality.perplexity, derived.quality.tokens, "echo"
    )
    assert derived.quality.tokens > 1000
    assert entry.metrics["top1_agreement"] == 1.0


def test_what_was_not_measured_is_not_claimed(parent, registry):
    derived = derive(parent, "f16", registry, Options(name="half"), measured=False)
    assert (derived.quality, derived.why) == (None, "not asked for")
    assert registry.find(ModelRef("half")).metrics == {}


def test_a_parent_whose_format_the_measuring_engine_rounds_is_compared_by_its_weights(gguf_file, registry, tmp_path):
    head = gguf.read(gguf_file())
    data = head.path.read_bytes()
    tensors = []
    for tensor in head.tensors:
        kind = "Q5_0" if "ffn_up" in tensor.name else "F32"
        size = gguf_writer.size_of(tensor.shape, kind)
        raw = bytes(size) if kind == "Q5_0" else data[tensor.offset : tensor.offset + size]
        tensors.append(gguf_writer.NewTensor(tensor.name, tensor.shape, kind, size, lambda raw=raw: [raw]))
    gguf_writer.write(tmp_path / "five.gguf", head.meta, head.kinds, tensors)
    five = add(str(tmp_path / "five.gguf"), registry, ECHO)
    assert derive(five, "q8_0", registry, Options()).quality.reference == "F16"
    assert not list((registry.home / "cache").glob("draft-*"))


def test_an_output_of_its_own_keeps_eight_bits_and_the_table_need_not(gguf_file):
    head = gguf.read(gguf_file())
    table = head.by_name["token_embd.weight"]
    assert type_of(table, "Q4_0", head) == "Q8_0"
    head.by_name["output.weight"] = output = dataclasses.replace(table, name="output.weight")
    assert (type_of(table, "Q4_0", head), type_of(output, "Q4_0", head)) == ("Q4_0", "Q8_0")


@pytest.mark.parametrize(
    ("form", "error", "why"), [("q9", InvalidInput, "known are q4_0"), ("f16", InvalidInput, "has this format already")]
)
def test_formats_that_make_no_sense_are_refused(form, error, why, parent, registry):
    half = derive(parent, "f16", registry, Options(), measured=False).package
    with pytest.raises(error, match=why):
        derive(half, form, registry, Options(), measured=False)


def test_other_models_cannot_be_derived(linear, registry):
    with pytest.raises(Unsupported, match="no GGUF language model"):
        derive(add(str(linear), registry, Options()), "q4_0", registry, Options())


def expects(*probabilities, chosen=0):
    top = sorted(((token, math.log(p)) for token, p in enumerate(probabilities)), key=lambda pair: -pair[1])
    return TokenLogprobs(math.log(probabilities[chosen]), tuple(top))


def test_divergence_is_that_of_the_distributions():
    one, other = expects(0.5, 0.25), expects(0.25, 0.5)
    assert divergence(one, one) == pytest.approx(0.0, abs=1e-9)
    assert divergence(one, other) == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))
    far = TokenLogprobs(0.0, ((7, math.log(0.9)), (8, math.log(0.05))))
    assert divergence(one, far) > 1.0


def test_means_are_over_all_tokens():
    parent = [expects(0.5, 0.25), expects(0.5, 0.25)]
    derived = [expects(0.5, 0.25), expects(0.25, 0.5)]
    found = compared(parent, derived, "x")
    assert (found.top1_agreement, found.tokens) == (0.5, 2)
    assert found.parent_perplexity == pytest.approx(2.0)
    assert found.perplexity == pytest.approx(math.sqrt(8))
    with pytest.raises(ModelFailed, match="2 tokens, the derived model of 1"):
        compared(parent, derived[:1], "x")


def test_the_texts_are_long_enough_to_say_something():
    assert len(TEXTS) >= 10
    assert sum(len(text) for text in TEXTS) > 4000


def test_the_command_tells_what_was_made_and_what_was_lost(parent, registry, capsys):
    home = str(registry.home)
    assert main(["derive", "small", "--format", "q4_0", "--home", home]) == 0
    out = capsys.readouterr().out
    assert f"made of   small:{parent.version[:12]} as q4_0" in out
    assert "the same most likely token as its parent at 100.0%" in out
    assert (
        main(
            [
                "derive",
                f"small:{parent.version[:12]}",
                "--format",
                "q8_0",
                "--name",
                "s8",
                "--no-measure",
                "--home",
                home,
            ]
        )
        == 0
    )
    assert "quality   not measured: not asked for" in capsys.readouterr().out
    assert registry.models() == ["s8", "small"]


def test_options_reach_the_package_with_their_types(gguf_file, registry, capsys):
    flags = [
        "--option",
        "engine=echo",
        "--option",
        "context=64",
        "--option",
        "prefix_cache=off",
        "--home",
        str(registry.home),
    ]
    assert main(["add", str(gguf_file()), *flags]) == 0
    assert registry.resolve(ModelRef("small")).manifest.options == {
        "engine": "echo",
        "context": 64,
        "prefix_cache": "off",
    }
    assert "small answers after" in capsys.readouterr().err
