"""Tensors between JSON or binary bodies and arrays. Strict: nothing is coerced silently; errors name the input."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
import numpy as np

from pelton.errors import InvalidInput
from pelton.transforms.fields import show
from pelton.types import DATATYPES, Array, TensorSpec

PACK_LIMIT: Final = 4096  # beyond, numpy converts faster than `struct` takes arguments
ELEMENTS_LIMIT: Final = 1 << 31
JSON_TYPES: Final = {"float": (float, int), "int": (int,), "bool": (bool,), "bytes": (str,)}

_lists: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    "float": msgspec.json.Decoder(list[float]),
    "int": msgspec.json.Decoder(list[int]),
    "bool": msgspec.json.Decoder(list[bool]),
    "bytes": msgspec.json.Decoder(list[str]),
}
_any: Final = msgspec.json.Decoder()


@lru_cache(4096)
def packer(code: str, count: int) -> Callable[..., bytes]:
    """`struct.pack` for `count` little-endian elements; raises struct.error or OverflowError for what does not fit."""
    return struct.Struct(f"<{count}{code}").pack


def array_of(values: list[Any], shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """A flat list of numbers, already of the right JSON type, as an array. `struct` refuses what would overflow."""
    kind = spec.type
    if len(values) <= PACK_LIMIT and kind.code:
        try:
            return np.ndarray(shape, kind.dtype, packer(kind.code, len(values))(*values))
        except (struct.error, OverflowError):
            raise out_of_range(spec, values) from None
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, kind.dtype).reshape(shape)
    except (OverflowError, ValueError):
        raise out_of_range(spec, values) from None
    if kind.kind == "float" and np.isinf(array).any():  # JSON has no infinity: this one was too large
        raise out_of_range(spec, values)
    return array


def out_of_range(spec: TensorSpec, values: Sequence[Any]) -> InvalidInput:
    """The error for the first value that the element type cannot hold."""
    one = packer(spec.type.code, 1)
    for position, value in enumerate(values):
        try:
            one(value)
        except (struct.error, OverflowError):
            return InvalidInput(
                f"input {spec.name!r}: element {position} is {show(value)}, which does not fit {spec.datatype}"
            )
    return InvalidInput(f"input {spec.name!r}: values do not fit {spec.datatype}")


def from_json(raw: bytes | memoryview | msgspec.Raw, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """The `data` of a JSON tensor, flat or nested in row-major order, as an array of `shape`."""
    kind = spec.type
    if not kind.code and kind.kind != "bytes":
        raise InvalidInput(f"input {spec.name!r}: {spec.datatype} has no JSON form; send it as a binary tensor")
    try:
        values = _lists[kind.kind].decode(raw)
    except msgspec.ValidationError:
        values = _flatten(_decoded(raw, spec), shape, spec)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"input {spec.name!r}: data is not valid JSON: {error}") from None
    expected = count_of(shape)
    if len(values) != expected:
        raise InvalidInput(f"input {spec.name!r}: shape {list(shape)} needs {expected} values, data has {len(values)}")
    if kind.kind == "bytes":
        array = np.empty(len(values), object)
        array[:] = [encode_text(text, spec) for text in values]
        return array.reshape(shape)
    return array_of(values, shape, spec)


def _decoded(raw: bytes | memoryview | msgspec.Raw, spec: TensorSpec) -> Any:
    try:
        return _any.decode(raw)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"input {spec.name!r}: data: {error}") from None
    except RecursionError:
        raise InvalidInput(f"input {spec.name!r}: data is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"input {spec.name!r}: data is not valid JSON: {error}") from None


def _flatten(data: Any, shape: tuple[int, ...], spec: TensorSpec) -> list[Any]:
    """Nested lists whose nesting is the shape's, or a flat list; every element of the right type."""
    level: list[Any] = [data] if not isinstance(data, list) else data
    dims = list(shape)
    while level and isinstance(level[0], list):
        if not dims:
            raise InvalidInput(f"input {spec.name!r}: data is nested deeper than the shape {list(shape)}")
        if len(level) != count_of(shape[: len(shape) - len(dims) + 1]):
            raise InvalidInput(f"input {spec.name!r}: data is not nested as the shape {list(shape)} says")
        width = dims[1] if len(dims) > 1 else 0
        for part in level:
            if not isinstance(part, list) or len(part) != width:
                raise InvalidInput(f"input {spec.name!r}: data is not nested as the shape {list(shape)} says")
        dims.pop(0)
        level = [element for part in level for element in part]
    for position, value in enumerate(level):
        level[position] = _element(value, position, spec)
    return level


def _element(value: Any, position: int, spec: TensorSpec) -> Any:
    kind = spec.type.kind
    if value is None and spec.nan and kind == "float":
        return float("nan")
    if type(value) not in JSON_TYPES[kind]:
        raise InvalidInput(
            f"input {spec.name!r}: element {position} is {show(value)}, but {spec.datatype} takes "
            + {"float": "numbers", "int": "whole numbers", "bool": "true or false", "bytes": "strings"}[kind]
        )
    try:
        return float(value) if kind == "float" else value
    except OverflowError:
        raise InvalidInput(
            f"input {spec.name!r}: element {position} is {show(value)}, which does not fit {spec.datatype}"
        ) from None


def from_binary(data: memoryview, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """Little-endian, row-major raw data; BYTES: each element is a 4-byte length and its bytes."""
    kind = spec.type
    expected = count_of(shape)
    if kind.kind == "bytes":
        return _bytes_tensor(data, expected, spec).reshape(shape)
    if len(data) != expected * kind.size:
        raise InvalidInput(
            f"input {spec.name!r}: shape {list(shape)} of {spec.datatype} needs {expected * kind.size} bytes, "
            f"binary_data_size is {len(data)}"
        )
    array: Array = np.ndarray(shape, kind.dtype, data)
    if kind.kind == "float" and not spec.nan:
        good = np.isfinite(array) if kind.code else (array & 0x7F80) != 0x7F80  # BF16: the exponent's bits
        if not good.all():
            position = int(np.argmin(good.ravel()))
            what = array.ravel()[position] if kind.code else "NaN or infinite"
            raise InvalidInput(
                f"input {spec.name!r}: element {position} is {what}; this model takes finite numbers only"
            )
    if kind.kind == "bool" and len(data) and int(np.frombuffer(data, np.uint8).max()) > 1:
        raise InvalidInput(f"input {spec.name!r}: BOOL takes bytes 0 and 1 only")
    return array


def _bytes_tensor(data: memoryview, expected: int, spec: TensorSpec) -> Array:
    values: list[bytes] = []
    offset, size = 0, len(data)
    while offset < size and len(values) <= expected:
        if offset + 4 > size:
            break
        length = int.from_bytes(data[offset : offset + 4], "little")
        offset += 4
        if offset + length > size:
            raise InvalidInput(
                f"input {spec.name!r}: element {len(values)} says it has {length} bytes, {size - offset} are left"
            )
        values.append(bytes(data[offset : offset + length]))
        offset += length
    if len(values) != expected or offset != size:
        raise InvalidInput(
            f"input {spec.name!r}: the shape needs {expected} elements in exactly {size} bytes; "
            f"{len(values)} were found in {offset}"
        )
    array = np.empty(expected, object)
    array[:] = values
    return array


def to_binary(array: Array) -> bytes:
    """The raw form of an output."""
    if array.dtype == object:
        return b"".join(len(value).to_bytes(4, "little") + value for value in array.ravel())
    return array.tobytes()


def to_list(array: Array, spec: TensorSpec) -> list[Any]:
    """Flat JSON values of an output, row-major. Bytes become text; what has no JSON form is an error for the caller."""
    if not spec.type.code and array.dtype != object:
        raise InvalidInput(f"output {spec.name!r}: {spec.datatype} has no JSON form; ask for it as a binary tensor")
    if array.dtype == object:
        try:
            return [value.decode() if isinstance(value, bytes) else str(value) for value in array.ravel()]
        except UnicodeDecodeError:
            raise InvalidInput(
                f"output {spec.name!r} holds bytes that are not UTF-8 text; ask for it as a binary tensor"
            ) from None
    values: list[Any] = array.ravel().tolist()
    return values


def check_shape(shape: Sequence[int], spec: TensorSpec, batched: bool) -> int:
    """The rows of a tensor of `shape`. Raises InvalidInput where the signature does not allow it."""
    expected = (-1, *spec.shape) if batched else spec.shape
    good = len(shape) == len(expected)
    if good:
        for got, want in zip(shape, expected, strict=True):
            if got != want and (want != -1 or got < 0):
                good = False
    if not good:
        told = ", ".join(map(show, shape[:16]))
        raise InvalidInput(f"input {spec.name!r}: shape [{told}] does not fit the model's {list(expected)} (-1: any)")
    rows = shape[0] if batched else 1
    if rows < 1:
        raise InvalidInput(f"input {spec.name!r}: its shape has no rows; send at least one")
    if count_of(shape) > ELEMENTS_LIMIT:
        raise InvalidInput(f"input {spec.name!r}: its shape has more than {ELEMENTS_LIMIT} elements")
    return rows


def count_of(shape: Sequence[int]) -> int:
    """Elements of a shape."""
    count = 1
    for dim in shape:
        count *= dim
    return count


def encode_text(text: str, spec: TensorSpec) -> bytes:
    """UTF-8; a lone surrogate has none."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"input {spec.name!r}: a string holds a lone surrogate, which is not text") from None


def known_datatype(name: str, what: str) -> None:
    """Raises InvalidInput for a datatype that does not exist."""
    if name not in DATATYPES:
        raise InvalidInput(f"{what}: unknown datatype {name[:40]!r}; one of {', '.join(DATATYPES)}")
