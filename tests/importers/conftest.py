from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pelton.registry import Registry

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home")


def info(name: str, kind: int, shape: Sequence[Any] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model out of nodes, inputs, outputs and weights."""

    def write(
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        weights: dict[str, np.ndarray] | None = None,
        name: str = "model.onnx",
        **saving: Any,
    ) -> Path:
        tensors = [numpy_helper.from_array(array, key) for key, array in (weights or {}).items()]
        graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        onnx.save(model, tmp_path / name, **saving)
        return tmp_path / name

    return write


@pytest.fixture
def linear(onnx_file: Callable[..., Path]) -> Path:
    """y = x @ w, rows of 3 -> rows of 2."""
    weights = {"w": np.arange(6, dtype=np.float32).reshape(3, 2)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return onnx_file([node], [info("x", FLOAT, ["n", 3])], [info("y", FLOAT, ["n", 2])], weights, name="linear.onnx")


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def small_vocabulary() -> dict[str, Any]:
    """Metadata of a byte-level vocabulary with a few merges, as GGUF files hold it."""
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(
        ["the quick brown fox", "what is the capital of france", "user system assistant"], trainer
    )
    model = json.loads(library.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHATML,
    }


@pytest.fixture
def gguf_file(tmp_path: Path, small_vocabulary: dict[str, Any]) -> Callable[..., Path]:
    """Writes a small model of random weights that every engine could run. `changes`: metadata; None takes one away."""

    def write(name: str = "small.gguf", **changes: Any) -> Path:
        from pelton.importers import gguf_writer

        meta: dict[str, Any] = {
            "general.architecture": "llama",
            "general.name": "Small",
            "general.license": "mit",
            "llama.context_length": 128,
            "llama.embedding_length": 64,
            "llama.block_count": 1,
            "llama.feed_forward_length": 96,
            "llama.attention.head_count": 2,
            "llama.attention.head_count_kv": 2,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.dimension_count": 32,
            **small_vocabulary,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        meta = {key: value for key, value in meta.items() if value is not None}
        random = np.random.default_rng(0)
        vocab = len(meta.get("tokenizer.ggml.tokens", "x"))
        shapes = {"token_embd.weight": (64, vocab), "output_norm.weight": (64,), "blk.0.attn_norm.weight": (64,)}
        shapes |= {"blk.0.ffn_norm.weight": (64,), "blk.0.ffn_gate.weight": (64, 96), "blk.0.ffn_up.weight": (64, 96)}
        shapes |= {f"blk.0.attn_{part}.weight": (64, 64) for part in ("q", "k", "v", "output")}
        shapes["blk.0.ffn_down.weight"] = (96, 64)
        tensors = []
        for tensor, shape in shapes.items():
            data = np.ones(shape) if "norm" in tensor else random.standard_normal(shape[::-1]) / 8
            raw = data.astype(np.float32).tobytes()
            tensors.append(gguf_writer.NewTensor(tensor, shape, "F32", len(raw), lambda raw=raw: [raw]))
        path = tmp_path / name
        gguf_writer.write(path, meta, {key: kind_of(value) for key, value in meta.items()}, tensors)
        return path

    return write


def kind_of(value: Any) -> Any:
    """The type of GGUF metadata that holds a value."""
    if isinstance(value, list):
        return (9, {int: 5, float: 6}.get(type(value[0]), 8) if value else 8)
    return {str: 8, bool: 7, float: 6, int: 4}[type(value)]
