"""What a user's `predict` returned -> the arrays that the signature promises, or ModelFailed that names the output.

Accepted: an array (or nested list) where there is one output; a tuple or list in the order of the outputs; a
dictionary by output name. Casts that keep the meaning are made: float to a narrower float, integers and booleans to
float, integers to another integer type where every value fits. A float never becomes an integer silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pelton.errors import ModelFailed
from pelton.types import Array, TensorSpec


def answers(result: Any, specs: Sequence[TensorSpec], rows: int | None) -> list[Array]:
    """C-contiguous arrays in the order of `specs`: [rows, *spec.shape], or [*spec.shape] where `rows` is None."""
    lead = () if rows is None else (rows,)
    return [_array(value, spec, (*lead, *spec.shape)) for value, spec in zip(_split(result, specs), specs, strict=True)]


def stack(rows: Sequence[Array], spec: TensorSpec) -> Array:
    """Answers of single rows -> [rows, ...]. Rows of unequal shape are filled up with `spec.pad` where it is set."""
    shapes = {row.shape for row in rows}
    if len(shapes) == 1:
        return np.stack(rows)
    if spec.pad is None:
        few = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
        raise ModelFailed(
            f"output {spec.name!r}: rows of one batch have the shapes {few}; "
            "set `pad` for this output in pelton.toml, or [batching] max_rows = 1"
        )
    whole = np.full((len(rows), *map(max, zip(*shapes, strict=True))), spec.pad, spec.type.dtype)
    for i, row in enumerate(rows):
        place: tuple[int | slice, ...] = (i, *(slice(size) for size in row.shape))
        whole[place] = row
    return whole


def empty(spec: TensorSpec) -> Array:
    """The answer to zero rows."""
    return np.empty((0, *(max(dim, 0) for dim in spec.shape)), spec.type.dtype)


def _split(result: Any, specs: Sequence[TensorSpec]) -> Sequence[Any]:
    names = [spec.name for spec in specs]
    if isinstance(result, Mapping):
        missing = [name for name in names if name not in result]
        surplus = [name for name in result if name not in names]
        if missing or surplus:
            what = f"lacks {missing}" if missing else f"has the unknown {surplus}"
            raise ModelFailed(f"predict returned a dictionary that {what}; the outputs are {names}")
        return [result[name] for name in names]
    if len(specs) == 1:
        return [_single(result, specs[0])]
    if not isinstance(result, tuple | list):
        raise ModelFailed(f"predict returned one {_kind(result)} for the {len(names)} outputs {names}; return a tuple")
    if len(result) != len(names):
        raise ModelFailed(f"predict returned {len(result)} values for the {len(names)} outputs {names}")
    return result


def _single(result: Any, spec: TensorSpec) -> Any:
    """`return scores`, `return (scores,)` and `return [[0.1, 0.9]]` all mean what they say."""
    if not isinstance(result, tuple | list) or not all(isinstance(part, np.ndarray) for part in result):
        return result
    if isinstance(result, tuple) and len(result) != 1:
        raise ModelFailed(f"predict returned {len(result)} arrays for the one output {spec.name!r}")
    if len(result) == 1 and (isinstance(result, tuple) or result[0].ndim > len(spec.shape)):
        return result[0]
    return result


def _array(value: Any, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    array = _texts(value, spec) if spec.type.kind == "bytes" else _numbers(value, spec)
    if array.ndim != len(shape) or any(want not in (-1, have) for want, have in zip(shape, array.shape, strict=True)):
        wanted = str(list(shape)).replace("-1", "any")
        raise ModelFailed(f"output {spec.name!r}: predict returned the shape {list(array.shape)}, expected {wanted}")
    return array


def _numbers(value: Any, spec: TensorSpec) -> Array:
    dtype = spec.type.dtype
    if type(value) is not np.ndarray:
        try:
            value = np.asarray(value)
        except Exception as error:  # noqa: BLE001 - the user's object converts itself (`__array__`) and may raise anything
            raise ModelFailed(f"output {spec.name!r}: not an array: {error}") from None
    if value.dtype == dtype:
        return np.asarray(value, order="C")
    have, want = value.dtype.kind, dtype.kind
    if spec.datatype == "BF16":
        raise ModelFailed(f"output 'BF16' {spec.name!r}: return the bits as uint16, not {value.dtype}")
    if want == "f" and have in "fiub":
        return _floats(value, spec)
    if want in "iu" and have in "iub":
        return _integers(value, spec)
    if value.size == 0 and have == "f" and not isinstance(value, np.generic) and value.ndim <= 1:
        nothing: Array = value.astype(dtype)
        return nothing  # numpy calls an empty list float64; it has no value that could be lost
    raise ModelFailed(f"output {spec.name!r}: predict returned {_named(value)}, which is no {spec.datatype}")


def _floats(value: Array, spec: TensorSpec) -> Array:
    try:
        with np.errstate(over="raise"):
            return value.astype(spec.type.dtype, order="C")
    except FloatingPointError:
        raise ModelFailed(f"output {spec.name!r}: predict returned a number too large for {spec.datatype}") from None


def _integers(value: Array, spec: TensorSpec) -> Array:
    dtype = spec.type.dtype
    if value.size and not np.can_cast(value.dtype, dtype, "safe"):
        limits = np.iinfo(dtype)
        low, high = int(value.min()), int(value.max())
        if low < limits.min or high > limits.max:
            raise ModelFailed(
                f"output {spec.name!r}: predict returned {low if low < limits.min else high}, "
                f"outside of {spec.datatype} ({limits.min} to {limits.max})"
            )
    return value.astype(dtype, order="C")


def _texts(value: Any, spec: TensorSpec) -> Array:
    try:
        array = np.array(value, dtype=object)
    except ValueError as error:
        raise ModelFailed(f"output {spec.name!r}: not an array: {error}") from None
    flat = array.ravel()
    for i, item in enumerate(flat):
        if type(item) is bytes:
            continue
        if isinstance(item, str):
            try:
                flat[i] = item.encode()
            except UnicodeEncodeError:
                raise ModelFailed(f"output {spec.name!r}: a text has a lone surrogate and is no UTF-8") from None
        elif isinstance(item, bytes):
            flat[i] = bytes(item)
        else:
            raise ModelFailed(f"output {spec.name!r}: BYTES holds text or bytes, not {_kind(item)}")
    return flat.reshape(array.shape)


def _named(value: Array) -> str:
    return "text or objects" if value.dtype.kind in "OUS" else str(value.dtype)


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
