"""A model's graph made ready for paged attention, and compiled.

Three changes: attention reads and writes KV blocks instead of the graph's own state (OpenVINO's transformation); only
the rows that are asked for reach the last, largest product; the KV memory is ours, so that blocks can be shared.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from pelton.errors import ModelFailed

SAMPLED: Final = "sampled"  # input: the rows whose logits are wanted
INPUTS: Final = frozenset(
    {
        "input_ids",
        "position_ids",
        "past_lens",
        "subsequence_begins",
        "block_indices",
        "block_indices_begins",
        "max_context_len",
        SAMPLED,
    }
)
BLOCK: Final = 32  # tokens of a KV block: what OpenVINO's attention on CPUs works with
KEPT: Final = 64  # of what nodes prepare for a shape: layers of a step share it; a thousand shapes would take too much
# What may stand between the last product and the result without mixing rows.
_AFTER_HEAD: Final = frozenset({"Convert", "Add", "Multiply", "Divide", "Tanh", "Reshape", "Transpose"})


@dataclass(frozen=True, slots=True)
class Caches:
    """The KV memory of each layer: (input's name, element type, shape of one block)."""

    blocks: tuple[tuple[str, Any, tuple[int, ...]], ...]

    @property
    def block_bytes(self) -> int:
        return sum(kind.size * int(np.prod(shape)) for _, kind, shape in self.blocks)


@dataclass(frozen=True, slots=True)
class Graph:
    """A compiled model. `gathers`: whether it takes the rows that are wanted; else it gives all of them."""

    compiled: ov.CompiledModel
    caches: Caches
    vocab: int
    gathers: bool


def read(path: Path) -> ov.Model:
    """A model as it was converted: stateful, with attention as one operation."""
    try:
        return ov.Core().read_model(path)
    except RuntimeError as error:
        raise ModelFailed(f"OpenVINO cannot read {path.name}: {str(error).strip()[-400:]}") from None


def make_paged(model: ov.Model) -> bool:
    """Changes the model in place. True if it takes `sampled`. Raises ModelFailed for a graph that it does not fit."""
    transformations = importlib.import_module("openvino._offline_transformations")
    try:
        transformations.paged_attention_transformation(model)
    except RuntimeError as error:
        raise ModelFailed(f"OpenVINO cannot page this model's attention: {str(error).strip()[-400:]}") from None
    unknown = [name for name in _names(model.inputs) if name not in INPUTS and "cache." not in name]
    if unknown or not any("cache." in name for name in _names(model.inputs)):
        raise ModelFailed(
            f"this OpenVINO model needs inputs that a text model does not have: {', '.join(unknown)}"
            if unknown
            else "this OpenVINO model has no attention that can be paged: it is not a language model with a KV cache"
        )
    return _gather_before_head(model)


def compile_paged(path: Path, threads: int, kv_precision: str) -> Graph:
    """Reads, changes and compiles. `threads`: 0 leaves it to OpenVINO. Takes seconds."""
    model = read(path)
    gathers = make_paged(model)
    vocab = _vocab(model)
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "KV_CACHE_PRECISION": kv_precision,
        "CPU_RUNTIME_CACHE_CAPACITY": KEPT,
        # Threads that cannot leave their cores wait there for whoever else runs on them: a server, another engine.
        "ENABLE_CPU_PINNING": False,
    }
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    compiled = ov.Core().compile_model(model, "CPU", config)
    return Graph(compiled, _caches(compiled), vocab, gathers)


def _vocab(model: ov.Model) -> int:
    size = model.outputs[0].get_partial_shape()[-1]
    if size.is_dynamic:
        raise ModelFailed("this OpenVINO model does not say how many tokens its vocabulary has")
    return int(size.get_length())


def _caches(compiled: ov.CompiledModel) -> Caches:
    found = []
    for port in compiled.inputs:
        name = port.get_any_name()
        if "cache." in name:
            shape = port.get_partial_shape()
            found.append(
                (name, port.get_element_type(), tuple(int(shape[i].get_length()) for i in range(1, len(shape))))
            )
    return Caches(tuple(found))


def _gather_before_head(model: ov.Model) -> bool:
    """Only the rows of `sampled` go into the last product, a fifth of the work of a small model."""
    node = model.get_results()[0].input_value(0).get_node()
    while node.get_type_name() in _AFTER_HEAD:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "MatMul":
        return False
    rows = opset.parameter([-1], np.int64, name=SAMPLED)
    rows.output(0).get_tensor().set_names({SAMPLED})
    chosen = opset.gather(node.input_value(0), rows, opset.constant(np.int64(0)))
    node.input(0).replace_source_output(chosen.output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()
    return True


def _names(ports: list[Any]) -> list[str]:
    return [str(port.get_any_name()) for port in ports]
