"""A BERT encoder's weights (model.safetensors, config.json) -> an ONNX graph with sentence pooling. Needs the extra `convert`.

Devlin et al. 2019. Sentence models are mostly published as PyTorch weights; drawing the graph takes no PyTorch. It uses
ONNX Runtime's own operators where they are faster (Attention, SkipLayerNormalization, BiasGelu; domain com.microsoft).

    input_ids, attention_mask INT64 [rows, tokens]  ->  last_hidden_state FP32 [rows, tokens, hidden]
"""

from __future__ import annotations

import importlib
import json
import mmap
from pathlib import Path
from typing import Any, Final

import numpy as np

from pelton.errors import ExtraMissing, SourceInvalid
from pelton.types import Array

ARCHITECTURES: Final = frozenset({"bert"})
_HEADER_LIMIT: Final = 64 * 1024**2
_DTYPES: Final = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "F64": np.dtype("<f8"), "BF16": np.dtype("<u2")}
_GELU: Final = {"gelu": "BiasGelu", "gelu_new": "FastGelu", "gelu_pytorch_tanh": "FastGelu", "gelu_fast": "FastGelu"}

Json = dict[str, Any]


def read_safetensors(path: Path) -> dict[str, Array]:
    """Tensors by name, as float32. The format: 8 bytes of header length, a JSON header, the data."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        length = int.from_bytes(data[:8], "little")
        if length > min(_HEADER_LIMIT, len(data) - 8):
            raise SourceInvalid(f"{path.name} is no safetensors file")
        try:
            header = json.loads(data[8 : 8 + length])
        except ValueError as error:
            raise SourceInvalid(f"{path.name}: {error}") from None
        body = memoryview(data)[8 + length :]
        try:
            return {
                name: _tensor(path.name, name, told, body) for name, told in header.items() if name != "__metadata__"
            }
        finally:
            body.release()


def _tensor(file: str, name: str, told: Json, body: memoryview) -> Array:
    kind = _DTYPES.get(told["dtype"])
    if kind is None:
        return np.empty(0, np.float32)  # positions and the like, which the graph does not need
    start, stop = told["data_offsets"]
    if not 0 <= start <= stop <= len(body):
        raise SourceInvalid(f"{file}: the tensor {name!r} lies outside of the file")
    raw: Array = np.frombuffer(body[start:stop], kind)  # type: ignore[call-overload]
    if told["dtype"] == "BF16":
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    array: Array = raw.astype(np.float32).reshape(told["shape"])
    return array


class _Graph:
    """Nodes and weights as they are drawn."""

    def __init__(self, onnx: Any) -> None:
        self.helper, self.numpy_helper = onnx.helper, onnx.numpy_helper
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._names: set[str] = set()

    def weight(self, name: str, array: Array) -> str:
        if name not in self._names:
            self._names.add(name)
            self.weights.append(self.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, outputs: int = 1, **attributes: Any) -> str:
        domain, _, kind = kind.rpartition("::")
        names = [name, *(f"{name}.{i}" for i in range(1, outputs))]
        self.nodes.append(self.helper.make_node(kind, inputs, names, name, domain=domain, **attributes))
        return name


def write(folder: Path, target: Path) -> int:
    """Draws the encoder of `folder` into the ONNX file `target`; returns its hidden size. Raises SourceInvalid, ExtraMissing."""
    try:
        onnx = importlib.import_module("onnx")
    except ImportError:
        raise ExtraMissing("making an ONNX file of model.safetensors", "convert") from None
    config = json.loads((folder / "config.json").read_bytes())
    check(config)
    tensors = read_safetensors(folder / "model.safetensors")
    graph = _Graph(onnx)
    try:
        last = _encoder(graph, tensors, config)
    except KeyError as error:
        raise SourceInvalid(f"model.safetensors has no tensor {error}: this is no BERT encoder") from None
    helper, kinds = onnx.helper, onnx.TensorProto
    hidden = int(config["hidden_size"])
    tokens = [
        helper.make_tensor_value_info(name, kinds.INT64, ["rows", "tokens"]) for name in ("input_ids", "attention_mask")
    ]
    answer = [helper.make_tensor_value_info(last, kinds.FLOAT, ["rows", "tokens", hidden])]
    drawn = helper.make_graph(graph.nodes, "bert", tokens, answer, graph.weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(drawn, opset_imports=opsets, ir_version=9), str(target))
    return hidden


def check(config: Json) -> None:
    """Raises SourceInvalid for what this file cannot draw."""
    if config.get("model_type") not in ARCHITECTURES:
        raise SourceInvalid(
            f"config.json: the model_type {config.get('model_type')!r} has no ONNX file here, and only "
            f"{', '.join(sorted(ARCHITECTURES))} is made into one; export it with `optimum-cli export onnx`"
        )
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("hidden_act") not in _GELU:
        raise SourceInvalid(
            f"config.json: hidden_act {config.get('hidden_act')!r} or position_embedding_type "
            f"{config.get('position_embedding_type')!r} is not understood; export it with `optimum-cli export onnx`"
        )


def _encoder(graph: _Graph, tensors: dict[str, Array], config: Json) -> str:
    """BERT: embeddings, then layers of attention and a wide layer, each with its residual and layer normalization."""
    prefix = "" if "embeddings.word_embeddings.weight" in tensors else "bert."

    def get(name: str) -> Array:
        return tensors[prefix + name]

    epsilon = float(config.get("layer_norm_eps", 1e-12))
    hidden = _embeddings(graph, get, epsilon)
    mask = graph.node("Cast", ["attention_mask"], "mask", to=graph.helper.np_dtype_to_tensor_dtype(np.dtype(np.int32)))
    layers = int(config["num_hidden_layers"])
    for i in range(layers):
        at = f"encoder.layer.{i}."
        heads = int(config["num_attention_heads"])
        parts = [at + f"attention.self.{part}." for part in ("query", "key", "value")]
        weights = graph.weight(at + "qkv", np.concatenate([get(part + "weight").T for part in parts], axis=1))
        bias = graph.weight(at + "qkv.bias", np.concatenate([get(part + "bias") for part in parts]))
        seen = graph.node("com.microsoft::Attention", [hidden, weights, bias, mask], at + "attention", num_heads=heads)
        seen = _dense(graph, get, seen, at + "attention.output.dense")
        hidden = _residual(graph, get, (seen, hidden), at + "attention.output", epsilon, "")
        wide = _dense(graph, get, hidden, at + "intermediate.dense")
        wide_bias = graph.weight(at + "intermediate.dense.bias", get(at + "intermediate.dense.bias"))
        wide = graph.node(f"com.microsoft::{_GELU[config['hidden_act']]}", [wide, wide_bias], at + "gelu")
        wide = _dense(graph, get, wide, at + "output.dense")
        hidden = _residual(
            graph, get, (wide, hidden), at + "output", epsilon, "last_hidden_state" if i == layers - 1 else ""
        )
    return hidden


def _embeddings(graph: _Graph, get: Any, epsilon: float) -> str:
    words = graph.weight("words", get("embeddings.word_embeddings.weight"))
    # all tokens are of type 0: that row is a part of every position
    places = get("embeddings.position_embeddings.weight") + get("embeddings.token_type_embeddings.weight")[:1]
    table = graph.weight("places", places)
    first, axes = (graph.weight(name, np.zeros(1, np.int64)) for name in ("first", "axes"))
    count = graph.node("Shape", ["input_ids"], "tokens", start=1, end=2)
    positions = graph.node("Slice", [table, first, count, axes], "positions")
    summed = graph.node("Add", [graph.node("Gather", [words, "input_ids"], "looked_up"), positions], "summed")
    norm = "embeddings.LayerNorm."
    scale, shift = graph.weight(norm + "weight", get(norm + "weight")), graph.weight(norm + "bias", get(norm + "bias"))
    return graph.node("LayerNormalization", [summed, scale, shift], "embedded", axis=-1, epsilon=epsilon)


def _dense(graph: _Graph, get: Any, value: str, name: str) -> str:
    """x @ W; the bias is added by the operator that follows."""
    return graph.node("MatMul", [value, graph.weight(name, get(name + ".weight").T)], name + ".out")


def _residual(graph: _Graph, get: Any, pair: tuple[str, str], name: str, epsilon: float, output: str) -> str:
    norm = name + ".LayerNorm."
    inputs = [
        *pair,
        graph.weight(norm + "weight", get(norm + "weight")),
        graph.weight(norm + "bias", get(norm + "bias")),
        graph.weight(name + ".dense.bias", get(name + ".dense.bias")),
    ]
    return graph.node("com.microsoft::SkipLayerNormalization", inputs, output or name + ".norm", epsilon=epsilon)
