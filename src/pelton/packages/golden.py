"""Golden requests: recorded inputs and answers that a loaded copy must reproduce before it serves.

`golden.json` is a list; each item is one request with one row or more:

    {"inputs":  {"x": {"datatype": "FP32", "shape": [1, 30], "data": [...]}},
     "outputs": {"p": {"datatype": "FP32", "shape": [1, 2],  "data": [...]}}}

`data` is a flat list: numbers, with null for NaN and "inf", "-inf" for infinities; for BYTES base64 texts. Tensors of
more than 1024 elements have one base64 text instead: the elements as little-endian bytes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from pelton.errors import Disagrees, PackageInvalid
from pelton.packages.manifest import Package
from pelton.types import DATATYPES, Array, DataType, Signature, TensorSpec

FILE_LIMIT: Final = 64 * 1024 * 1024
REQUEST_LIMIT: Final = 256
_LIST_LIMIT: Final = 1024


class Request(msgspec.Struct, frozen=True):
    """One recorded call: arrays [rows, ...] by the names of the signature's inputs and outputs."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    datatype: str
    shape: list[int]
    data: list[Any] | str


class _Item(msgspec.Struct, forbid_unknown_fields=True):
    inputs: dict[str, _Tensor]
    outputs: dict[str, _Tensor]


def write(path: Path, requests: Sequence[Request], signature: Signature) -> None:
    """Writes golden requests. Raises PackageInvalid where they are over a limit."""
    if len(requests) > REQUEST_LIMIT:
        raise PackageInvalid(f"{path.name}: {len(requests)} golden requests; at most {REQUEST_LIMIT} are kept")
    items = [
        _Item(
            {spec.name: _pack(spec, request.inputs[spec.name]) for spec in signature.inputs},
            {spec.name: _pack(spec, request.outputs[spec.name]) for spec in signature.outputs},
        )
        for request in requests
    ]
    data = msgspec.json.encode(items)
    if len(data) > FILE_LIMIT:
        raise PackageInvalid(
            f"{path.name} would have {len(data)} bytes, at most {FILE_LIMIT}; record fewer or smaller rows"
        )
    path.write_bytes(data)


def read(path: Path) -> list[Request]:
    """Reads golden requests. Raises PackageInvalid, naming the item and the tensor."""
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise PackageInvalid(f"{path} is larger than {FILE_LIMIT} bytes")
        items = msgspec.json.decode(path.read_bytes(), type=list[_Item])
    except OSError as error:
        raise PackageInvalid(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PackageInvalid(f"{path}: {error}") from None
    if len(items) > REQUEST_LIMIT:
        raise PackageInvalid(f"{path} has {len(items)} requests, at most {REQUEST_LIMIT}")
    return [
        Request(_unpack_all(path, i, item.inputs), _unpack_all(path, i, item.outputs)) for i, item in enumerate(items)
    ]


def check(package: Package, run: Callable[[Sequence[Array]], Sequence[Array]]) -> int:
    """Asks `run` (a `LoadedModel.run`) every golden request of a package; returns how many there were.

    Raises Disagrees with the model, the request, the output, the position and both values."""
    golden = package.manifest.golden
    if golden is None:
        return 0
    signature = package.manifest.signature
    requests = read(package.path(golden.file))
    for number, request in enumerate(requests):
        where = f"model {package.name!r}: golden request {number}"
        outputs = run(_in_order(where, signature.inputs, request.inputs))
        got = dict(zip((spec.name for spec in signature.outputs), outputs, strict=True))
        try:
            compare(request.outputs, got, golden.rtol, golden.atol)
        except Disagrees as error:
            raise Disagrees(f"{where}: {error}") from None
    return len(requests)


def compare(expected: Mapping[str, Array], got: Mapping[str, Array], rtol: float = 1e-3, atol: float = 1e-5) -> None:
    """Floats agree where |got - expected| <= atol + rtol * |expected|, or both are NaN, or the same infinity; anything
    else must be equal. Raises Disagrees with the worst position of the first output that differs."""
    for name, want in expected.items():
        if name not in got:
            raise Disagrees(f"the output {name!r} is missing; there are {sorted(got)}")
        have = np.asarray(got[name])
        if have.shape != want.shape:
            raise Disagrees(f"the output {name!r} has the shape {list(have.shape)} instead of {list(want.shape)}")
        excess = _excess(want, have, rtol, atol)
        if excess.size and excess.max() > 0:
            at = np.unravel_index(int(excess.argmax()), want.shape)
            position = [int(i) for i in at]
            raise Disagrees(
                f"the output {name!r} at {position} is {_show(have[at])} instead of {_show(want[at])} "
                f"({int((excess > 0).sum())} of {want.size} elements differ; allowed: {atol:g} + {rtol:g} x)"
            )


def _excess(want: Array, have: Array, rtol: float, atol: float) -> Array:
    """How far each element is beyond what is allowed; 0: it agrees."""
    if want.dtype.kind != "f" or have.dtype.kind != "f":
        return np.asarray(want != have, np.float64)
    a, b = want.astype(np.float64), have.astype(np.float64)
    with np.errstate(invalid="ignore"):
        beyond = np.abs(a - b) - (atol + rtol * np.abs(a))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    # a NaN or an infinity on one side only is as far away as can be
    return np.where(same, 0.0, np.where(np.isfinite(beyond), np.maximum(beyond, 0.0), np.inf))


def _show(value: Any) -> str:
    return repr(value.item() if isinstance(value, np.generic) else value)


def _in_order(where: str, specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> list[Array]:
    for spec in specs:
        if spec.name not in arrays:
            raise PackageInvalid(f"{where} lacks the input {spec.name!r}")
        if arrays[spec.name].dtype != spec.type.dtype:
            raise PackageInvalid(f"{where}: the input {spec.name!r} is not {spec.datatype}")
    return [arrays[spec.name] for spec in specs]


def _pack(spec: TensorSpec, array: Array) -> _Tensor:
    kind = spec.type
    flat = np.ascontiguousarray(array, kind.dtype).ravel()
    data: list[Any] | str
    if kind.kind == "bytes":
        data = [base64.b64encode(x).decode() for x in flat]
    elif flat.size > _LIST_LIMIT:
        data = base64.b64encode(flat.astype(kind.dtype.newbyteorder("<")).tobytes()).decode()
    elif flat.dtype.kind == "f":
        data = [_number(x) for x in flat]
    else:
        data = flat.tolist()
    return _Tensor(spec.datatype, list(array.shape), data)


def _number(value: Any) -> float | str | None:
    """The shortest decimal that reads back as the same element."""
    if np.isfinite(value):
        return float(np.format_float_scientific(value, unique=True, trim="-"))
    return None if np.isnan(value) else ("inf" if value > 0 else "-inf")


def _unpack_all(path: Path, number: int, tensors: Mapping[str, _Tensor]) -> dict[str, Array]:
    arrays = {}
    for name, tensor in tensors.items():
        kind = DATATYPES.get(tensor.datatype)
        if kind is None or min(tensor.shape, default=0) < 0:
            raise PackageInvalid(f"{path}: request {number}, {name!r}: no datatype {tensor.datatype!r} {tensor.shape}")
        try:
            arrays[name] = _unpack(kind, tensor.data).reshape(tensor.shape)
        except (ValueError, TypeError, OverflowError, binascii.Error) as error:
            raise PackageInvalid(f"{path}: request {number}, {name!r}: {error}") from None
    return arrays


def _unpack(kind: DataType, data: list[Any] | str) -> Array:
    if isinstance(data, str):
        if kind.kind == "bytes":
            raise ValueError("BYTES are a list of base64 texts")
        return np.frombuffer(base64.b64decode(data, validate=True), kind.dtype.newbyteorder("<")).astype(kind.dtype)
    if kind.kind == "bytes":
        array = np.empty(len(data), object)
        array[:] = [base64.b64decode(x, validate=True) for x in data]
        return array
    if kind.dtype.kind == "f":
        data = [np.nan if x is None else float(x) for x in data]
    return np.array(data, kind.dtype)
