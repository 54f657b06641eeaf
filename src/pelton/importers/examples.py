"""Rows that a user gives with `--example`: .npy (one input), .npz (inputs by name), or JSON.

JSON may be an Open Inference request {"inputs": [...]}, {"instances": [...]} with one value or object a row, that list
of rows alone, or {"input name": one row, or a list of rows}.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from pelton.errors import InvalidInput, SourceInvalid
from pelton.types import Array, Signature, TensorSpec

FILE_LIMIT: Final = 256 * 1024 * 1024
ROW_LIMIT: Final = 1024


def read(path: Path, signature: Signature) -> dict[str, Array]:
    """One array [rows, *shape] for each input (without rows where the model is not batched). Raises SourceInvalid."""
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise SourceInvalid(f"{path} is larger than {FILE_LIMIT} bytes; a few rows are enough")
        given = _raw(path, signature)
    except OSError as error:
        raise SourceInvalid(f"{path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, zipfile.BadZipFile) as error:
        raise SourceInvalid(f"{path}: {error}") from None
    return fit(str(path), given, signature)


def fit(where: str, given: Mapping[str, Any], signature: Signature) -> dict[str, Array]:
    """Arrays of the signature's types and shapes out of nested lists or arrays."""
    for name in given:
        try:
            signature.input(name)
        except InvalidInput as error:
            raise SourceInvalid(f"{where}: {error}") from None
    rows = {}
    for spec in signature.inputs:
        if spec.name not in given:
            raise SourceInvalid(f"{where} lacks the input {spec.name!r}")
        rows[spec.name] = _array(where, spec, given[spec.name], signature.batched)[
            : ROW_LIMIT if signature.batched else None
        ]
    counts = {len(array) for array in rows.values()} if signature.batched else {1}
    if len(counts) != 1 or 0 in counts:
        raise SourceInvalid(f"{where}: the inputs have {sorted(counts)} rows; all need the same number, at least 1")
    return rows


def _raw(path: Path, signature: Signature) -> dict[str, Any]:
    if path.suffix == ".npy":
        with path.open("rb") as file:
            return {_only(signature).name: np.load(file, allow_pickle=False)}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    document = msgspec.json.decode(path.read_bytes())
    if isinstance(document, list):
        return _instances(document, signature)
    if not isinstance(document, dict):
        raise ValueError("an object with the inputs by name is expected")
    if isinstance(document.get("inputs"), list) and not any(spec.name == "inputs" for spec in signature.inputs):
        return _open_inference(document["inputs"])
    if isinstance(document.get("instances"), list) and not any(spec.name == "instances" for spec in signature.inputs):
        return _instances(document["instances"], signature)
    return document


def _open_inference(tensors: Sequence[Any]) -> dict[str, Any]:
    found = {}
    for tensor in tensors:
        if not isinstance(tensor, dict) or not {"name", "shape", "data"} <= tensor.keys():
            raise ValueError("each of 'inputs' needs name, shape, datatype and data")
        found[tensor["name"]] = np.array(tensor["data"], object).reshape(tensor["shape"])
    return found


def _instances(instances: Sequence[Any], signature: Signature) -> dict[str, Any]:
    if instances and all(isinstance(row, dict) for row in instances):
        return {name: [row.get(name) for row in instances] for name in instances[0]}
    return {_only(signature).name: instances}


def _only(signature: Signature) -> TensorSpec:
    if len(signature.inputs) != 1:
        names = ", ".join(repr(spec.name) for spec in signature.inputs)
        raise ValueError(f"the model has the inputs {names}: give each by name")
    return signature.inputs[0]


def _array(where: str, spec: TensorSpec, value: Any, batched: bool) -> Array:
    try:
        if spec.datatype == "BYTES":
            array = np.array(value, object)
            flat = [x.encode() if isinstance(x, str) else bytes(x) for x in array.ravel()]
            array = np.array([*flat, None], object)[:-1].reshape(array.shape)
        else:
            array = np.asarray(value)
            if array.dtype.kind == "O":  # null among numbers is a missing value
                array = np.array([np.nan if x is None else x for x in array.ravel()]).reshape(array.shape)
            if not np.can_cast(array.dtype, spec.type.dtype, "same_kind") and array.dtype.kind not in "iub":
                raise ValueError(f"{array.dtype} is no {spec.datatype}")
            array = array.astype(spec.type.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise SourceInvalid(f"{where}: the input {spec.name!r}: {error}") from None
    if batched and array.ndim == len(spec.shape):
        array = array[None]
    shape = array.shape[1:] if batched else array.shape
    if len(shape) != len(spec.shape) or any(
        want not in (-1, have) for want, have in zip(spec.shape, shape, strict=True)
    ):
        raise SourceInvalid(
            f"{where}: a row of {spec.name!r} has the shape {list(shape)} instead of {list(spec.shape)}"
        )
    return array
