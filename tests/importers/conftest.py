from __future__ import annotations

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
