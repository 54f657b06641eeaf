"""What callers send, what comes of it, and the words for what is wrong with it."""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import pybase64

from pelton.errors import InvalidInput, TooLarge
from pelton.types import Array, Fields


class FieldSpec(msgspec.Struct, frozen=True):
    """One field of a row as callers send it. `shape` and `datatype` are set for kind "tensor"."""

    name: str
    kind: str  # "image" | "audio" | "text" | "number" | "integer" | "boolean" | "string" | "tensor"
    required: bool = True
    description: str = ""
    values: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    datatype: str = ""


class Prepared(msgspec.Struct):
    """`inputs` in the signature's order, each [rows, ...]; they may be read-only.

    `counts`: how many rows each instance became, where that is not one each (windows of sounds).
    `lengths`: real tokens of each row, where rows are filled up (texts).
    """

    inputs: list[Array]
    counts: tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None


class Step(Protocol):
    """One compiled block. Called with every field of the call, all equally long and none empty."""

    @property
    def fields(self) -> tuple[FieldSpec, ...]:
        """What callers send for it."""

    @property
    def heavy(self) -> bool:
        """Whether it is worth a thread."""

    def __call__(self, fields: Fields) -> Prepared:
        """The inputs that the block fills, in the order of `preprocess.fills`."""


def show(value: Any) -> str:
    """A value in an error message: short whatever it is (huge integers and deep lists have no `repr`)."""
    if value is None:
        return "null"
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 80 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"{value[:40]!r}... ({len(value)} characters)"
    if isinstance(value, float | np.number):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"


def place(name: str, row: int, rows: int) -> str:
    """How an error names one instance of a field."""
    return f"input {name!r}" if rows == 1 else f"input {name!r}, row {row}"


def file_bytes(where: str, value: Any, limit: int) -> bytes | bytearray | memoryview:
    """The bytes of a file sent as bytes, as base64 text, as a `data:` URL or as {"b64": text}; at most `limit`."""
    if isinstance(value, dict) and value.keys() == {"b64"}:
        value = value["b64"]
    if isinstance(value, memoryview):
        value = value.cast("B") if value.c_contiguous else value.tobytes()
    if isinstance(value, str):
        value = _base64(where, value, limit)
    if not isinstance(value, bytes | bytearray | memoryview):
        raise InvalidInput(f"{where}: {show(value)} is not a file; send its bytes, or base64 text in JSON")
    if len(value) > limit:
        raise TooLarge(f"{where}: the file has {len(value)} bytes; at most {limit} are accepted")
    if not value:
        raise InvalidInput(f"{where}: the file is empty")
    return value


def _base64(where: str, text: str, limit: int) -> bytes:
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidInput(f"{where}: only base64 data: URLs are read (data:...;base64,...)")
    if len(text) > limit * 1.5 + 16:  # base64 adds a third, line breaks a little more
        raise TooLarge(f"{where}: the base64 text has {len(text)} characters; at most {limit} bytes are accepted")
    if any(space in text for space in "\n\r \t"):  # the `base64` program breaks lines
        text = "".join(text.split())
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{where}: the text is neither base64 nor a data: URL") from None


def stack(name: str, arrays: Sequence[Array], pad: float | None) -> Array:
    """Rows -> one array. Rows of unlike shape are filled up with `pad` at their ends; without it they are refused."""
    shapes = {array.shape for array in arrays}
    if len(shapes) == 1:
        return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
    if pad is None or len({len(shape) for shape in shapes}) != 1:
        known = ", ".join(str(list(shape)) for shape in sorted(shapes)[:4])
        raise InvalidInput(
            f"input {name!r}: the rows of one call have different shapes ({known}); send them one by one"
        )
    longest = tuple(max(dims) for dims in zip(*shapes, strict=True))
    joined = np.full((len(arrays), *longest), pad, arrays[0].dtype)
    for row, array in zip(joined, arrays, strict=True):
        row[tuple(slice(dim) for dim in array.shape)] = array
    return joined
