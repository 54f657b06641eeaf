"""Model files: GGUF in every block type, damaged files, shapes that are not supported."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_tiny import FAMILIES, write_folder

from pelton.runtimes.lm import gguf
from pelton.runtimes.lm.config import ModelUnsupported, config_from_hf, read_config
from pelton.runtimes.lm.gguf import GgufFile, GgufInvalid
from pelton.runtimes.lm.model import rope_tables
from pelton.runtimes.lm.weights import open_model

pytestmark = pytest.mark.lm


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def write_gguf(path: Path, kind: int, blocks: bytes, shape: tuple[int, ...]) -> Path:
    """One tensor "t" and two values of metadata."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2)
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    head += text("numbers") + struct.pack("<IIQ", 9, 4, 3) + struct.pack("<III", 1, 2, 3)
    head += text("t") + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in reversed(shape))
    head += struct.pack("<IQ", kind, 0)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + blocks)
    return path


def half(value: float) -> bytes:
    return np.float16(value).tobytes()


NIBBLES = bytes((i % 16) | ((15 - i % 16) << 4) for i in range(16))
LOW, HIGH = np.arange(16) % 16, 15 - np.arange(16) % 16


@pytest.mark.parametrize(
    ("kind", "blocks", "expected"),
    [
        (0, struct.pack("<32f", *range(32)), np.arange(32)),
        (1, np.arange(32, dtype=np.float16).tobytes(), np.arange(32)),
        (30, (np.arange(32, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes(), np.arange(32)),
        (2, half(0.5) + NIBBLES, 0.5 * (np.concatenate((LOW, HIGH)) - 8)),
        (3, half(0.5) + half(-1.0) + NIBBLES, 0.5 * np.concatenate((LOW, HIGH)) - 1.0),
        (6, half(2.0) + b"\xff\xff\0\0" + NIBBLES, 2.0 * (np.concatenate((LOW + 16, HIGH)) - 16)),
        (8, half(0.25) + np.arange(-16, 16, dtype=np.int8).tobytes(), 0.25 * np.arange(-16, 16)),
    ],
)
def test_gguf_blocks_mean_what_the_format_says(tmp_path: Path, kind: int, blocks: bytes, expected: object) -> None:
    file = GgufFile(write_gguf(tmp_path / "x.gguf", kind, blocks, (4, 8)))
    assert file.meta["numbers"] == [1, 2, 3]
    assert file.tensors["t"].shape == (4, 8)
    assert np.allclose(file.read("t").reshape(-1), expected)  # type: ignore[arg-type]


def test_k_quants_equal_the_values_that_the_reference_reader_gave() -> None:
    """Checksums of seeded random blocks, computed once with the package gguf 0.19."""
    golden = json.loads((Path(__file__).parent / "golden" / "gguf.json").read_text())
    rng = np.random.default_rng(11)
    for kind in (7, 12, 13, 14):
        layout = gguf._TYPES[kind]
        raw = rng.integers(0, 120, (4, layout.size), dtype=np.uint8)  # below 120: no NaN among the scales
        values = layout.decode(raw).reshape(-1).astype(np.float64)
        weights = np.arange(1, len(values) + 1)
        assert [values.sum(), (values * weights).sum()] == pytest.approx(golden[str(kind)], rel=1e-9)


@pytest.mark.parametrize("cut", [3, 20, 60, 100, 150])
def test_a_damaged_gguf_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = write_gguf(tmp_path / "x.gguf", 0, struct.pack("<32f", *range(32)), (32,))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(GgufInvalid):
        GgufFile(path)


def test_an_unknown_block_type_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(GgufInvalid, match="Q4_K"):
        GgufFile(write_gguf(tmp_path / "x.gguf", 99, b"\0" * 128, (32,)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "mixtral"}, "mixtral"),
        ({"quantization_config": {}}, "quantized"),
        ({"hidden_act": "relu"}, "relu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"mlp_bias": True}, "mlp_bias"),
    ],
)
def test_models_that_would_run_wrongly_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(ModelUnsupported, match=says):
        config_from_hf({**FAMILIES["llama"]["config"], **change})


def test_both_spellings_of_rope_mean_the_same() -> None:
    new = FAMILIES["llama3"]["config"]
    rope = dict(new["rope_parameters"])
    old = {**new, "rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    del old["rope_parameters"]
    assert config_from_hf(old) == config_from_hf(new)
    cos, sin = rope_tables(config_from_hf(old).rope, 16, 64, torch.device("cpu"))
    assert cos.shape == sin.shape == (64, 8)


def test_end_tokens_come_from_the_generation_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "llama")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert open_model(folder).end_tokens == {7, 9}
    assert read_config(folder).layers == 3


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["llama"]["config"]))
    with pytest.raises(ModelUnsupported, match="safetensors"):
        open_model(tmp_path)
