"""Memory comes back when models go: a server that is deployed to every day for a year must not grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pelton.packages import Manifest, save
from pelton.registry import Registry
from pelton.types import Signature, TensorSpec

WIDTH = 2000  # weights of 16 MB


@pytest.fixture
def home(tmp_path: Path) -> Path:
    registry = Registry(tmp_path / "home")
    for name, width in (("small", 4), ("big", WIDTH)):
        folder = tmp_path / name
        folder.mkdir()
        weights = np.random.default_rng(1).standard_normal((width, width)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
            [numpy_helper.from_array(weights, "w")],
        )
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "m.onnx"
        )
        spec = Signature((TensorSpec("x", "FP32", (width,)),), (TensorSpec("y", "FP32", (width,)),))
        save(Manifest(name, "onnx", "m.onnx", spec), folder)
        registry.add(folder)
    registry.close()
    return tmp_path / "home"


def cycles(home: Path, count: int) -> Any:
    command = [sys.executable, Path(__file__).parent / "load_and_unload.py", home, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(told: Any, settled: int) -> None:
    """`settled`: cycles after which libraries have set themselves up."""
    assert told["loaded"] > told["before"] + WIDTH * WIDTH * 4 / 1e6, "the model weighs something"
    assert told["after"][-1] < 1.1 * told["after"][settled], told
    assert told["after"][-1] < 1.1 * told["before"], told


@pytest.mark.timeout(120)
def test_memory_comes_back_when_a_model_goes(home: Path) -> None:
    check(cycles(home, 20), 4)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_two_hundred_models_come_and_go(home: Path) -> None:
    told = cycles(home, 200)
    print(told["before"], told["loaded"], told["after"][0], told["after"][-1])
    check(told, 4)
