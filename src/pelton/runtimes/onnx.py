"""ONNX models through ONNX Runtime on the CPU. The only file that imports onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from pelton.errors import PackageInvalid
from pelton.packages import Package
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.pooling import Pooler, file_outputs, pooling_of
from pelton.types import Array, Signature, TensorSpec

DATATYPE_OF: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OnnxModel:
    """One session. Answers are independent of which thread runs them; ONNX Runtime releases the interpreter lock."""

    def __init__(self, session: ort.InferenceSession, signature: Signature, pooler: Pooler | None = None) -> None:
        self._session: ort.InferenceSession | None = session
        self._run = session.run
        self.signature = signature
        self._inputs = tuple(spec.name for spec in signature.inputs)
        self._outputs = [spec.name for spec in signature.outputs] if pooler is None else pooler.names
        self._pooler = pooler
        self._text_inputs = {spec.name for spec in signature.inputs if spec.datatype == "BYTES"}
        self._text_outputs = [i for i, spec in enumerate(signature.outputs) if spec.datatype == "BYTES"]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        feed: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        for name in self._text_inputs:
            feed[name] = _texts(feed[name])
        outputs: list[Array] = self._run(self._outputs, feed)
        for i in self._text_outputs:
            outputs[i] = _bytes(outputs[i])
        if self._pooler is not None:
            return self._pooler(outputs, inputs)
        return outputs

    def close(self) -> None:
        self._session = None
        self._run = _closed


def _closed(*_: Any) -> Any:
    raise RuntimeError("this copy of the model was released")


def _texts(array: Array) -> Array:
    return np.array([x.decode() if isinstance(x, bytes) else x for x in array.ravel()], object).reshape(array.shape)


def _bytes(array: Array) -> Array:
    return np.array([x.encode() if isinstance(x, str) else x for x in array.ravel()], object).reshape(array.shape)


def open_session(file: Path, threads: int) -> ort.InferenceSession:
    """A session with `threads` threads per run. Spinning is off: idle workers would burn the cores of the gateway."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises a dozen classes of its own here
        raise PackageInvalid(f"{file.name}: ONNX Runtime cannot load it: {error}") from None


def load(package: Package, options: RuntimeOptions) -> OnnxModel:
    """Loads the package's file. The manifest's signature decides names and order."""
    threads = package.manifest.options.get("threads", options.threads)
    session = open_session(package.file, threads)
    found, _ = inspect(session)
    declared = package.manifest.signature
    pooling = pooling_of(package)
    for what, specs, known in (
        ("input", declared.inputs, {s.name: s.datatype for s in found.inputs}),
        ("output", file_outputs(package, pooling), {s.name: s.datatype for s in found.outputs}),
    ):
        for spec in specs:
            if known.get(spec.name) != spec.datatype:
                raise PackageInvalid(
                    f"model {package.name!r}: the signature has the {what} {spec.name!r} ({spec.datatype}); the file has "
                    + ", ".join(f"{name!r} ({datatype})" for name, datatype in known.items())
                )
    missing = {s.name for s in found.inputs} - {s.name for s in declared.inputs}
    if missing:
        raise PackageInvalid(f"model {package.name!r}: the signature lacks the inputs {sorted(missing)}")
    return OnnxModel(session, declared, Pooler(pooling, declared) if pooling is not None else None)


def inspect(session: ort.InferenceSession) -> tuple[Signature, int | None]:
    """The signature of a session, and the batch size where the file fixes it (None: any).

    A first dimension of 1 everywhere is a model exported for single rows: batched, one row at a time. Outputs whose
    shape the file does not state get -1 for every dimension that is unknown, or none at all where the rank is.
    """
    inputs = [_raw_spec(node) for node in session.get_inputs()]
    outputs = [_raw_spec(node) for node in session.get_outputs()]
    firsts = {shape[0] if shape else None for _, _, shape in inputs}
    if firsts <= {-1, 1} and firsts:
        fixed = 1 if 1 in firsts else None
        strip = True
    else:
        fixed, strip = None, False
    return (
        Signature(
            tuple(TensorSpec(name, datatype, shape[1:] if strip else shape) for name, datatype, shape in inputs),
            tuple(TensorSpec(name, datatype, shape[1:] if strip else shape) for name, datatype, shape in outputs),
            batched=strip,
        ),
        fixed,
    )


def _raw_spec(node: Any) -> tuple[str, str, tuple[int, ...]]:
    datatype = DATATYPE_OF.get(node.type)
    if datatype is None:
        raise PackageInvalid(
            f"{node.name!r} is a {node.type}; only plain tensors are served. "
            "For scikit-learn classifiers convert with options={'zipmap': False}"
        )
    return node.name, datatype, tuple(dim if isinstance(dim, int) and dim > 0 else -1 for dim in node.shape)
