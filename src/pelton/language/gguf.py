"""The head of a GGUF file: its metadata, and where its tensors lie. Weights are not read.

Format: docs/gguf.md of ggml. Every count and length is checked against the file and against limits before anything is
read, so a broken or hostile file raises SourceInvalid.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from pelton.errors import SourceInvalid

MAGIC: Final = b"GGUF"
_ITEMS: Final = 4_000_000  # of an array; the largest vocabularies have 300,000 tokens
_ENTRIES: Final = 100_000  # of metadata, and tensors
_TEXT: Final = 16 * 1024**2
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING: Final = 8
_ARRAY: Final = 9

# number of the type in the file -> name, elements of a block, bytes of a block (ggml.h, ggml-common.h)
TYPES: Final[dict[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` is as the file writes it, innermost dimension first; `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int

    @property
    def elements(self) -> int:
        count = 1
        for dim in self.shape:
            count *= dim
        return count


@dataclass(frozen=True, slots=True)
class Gguf:
    """What the head of a file says."""

    path: Path
    meta: dict[str, Any]
    kinds: dict[str, int | tuple[int, int]]  # type of each metadata value; (array, type of its elements)
    tensors: tuple[Tensor, ...]
    alignment: int = 32
    by_name: dict[str, Tensor] = field(default_factory=dict)

    def get(self, name: str, kind: type[T], default: T) -> T:
        """A metadata value of a type, or the default. Raises SourceInvalid for another type."""
        value = self.meta.get(name, default)
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise SourceInvalid(f"{self.path}: {name} is {str(value)[:80]!r}; {kind.__name__} is expected")
        return value


def read(path: Path) -> Gguf:
    """Reads the head. Raises SourceInvalid: no GGUF file, another version, cut short, or over a limit."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).head()
    except (OSError, ValueError) as error:
        raise SourceInvalid(f"{path}: cannot be read: {error}") from None


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at, self._end = path, data, 0, len(data)

    def _fail(self, why: str) -> SourceInvalid:
        return SourceInvalid(f"{self._path}: {why}")

    def head(self) -> Gguf:
        if self._data[:4] != MAGIC:
            raise self._fail("this is not a GGUF file")
        self._at = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise self._fail(f"GGUF version {version} is not supported; 2 and 3 are")
        tensors, entries = self._scalar("Q"), self._scalar("Q")
        if tensors > _ENTRIES or entries > _ENTRIES:
            raise self._fail(f"{tensors} tensors and {entries} entries are more than any model has ({_ENTRIES})")
        meta: dict[str, Any] = {}
        kinds: dict[str, int | tuple[int, int]] = {}
        for _ in range(entries):
            name = self._string()
            kinds[name], meta[name] = self._value()
        raw = [self._tensor() for _ in range(tensors)]
        alignment = meta.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise self._fail(f"general.alignment is {alignment!r}")
        base = -(-self._at // alignment) * alignment
        placed = tuple(self._placed(name, shape, kind, base + at) for name, shape, kind, at in raw)
        return Gguf(self._path, meta, kinds, placed, alignment, {tensor.name: tensor for tensor in placed})

    def _take(self, size: int) -> int:
        """Moves on; where it was."""
        at = self._at
        if size > self._end - at:
            raise self._fail("the file ends inside its head: it is cut short or damaged")
        self._at = at + size
        return at

    def _scalar(self, code: str) -> Any:
        size = struct.calcsize(code)
        return struct.unpack_from(f"<{code}", self._data, self._take(size))[0]

    def _string(self) -> str:
        size = self._scalar("Q")
        if size > _TEXT:
            raise self._fail(f"a text of {size} bytes; at most {_TEXT} are supported")
        at = self._take(size)
        return self._data[at : at + size].decode("utf-8", "replace")

    def _value(self) -> tuple[int | tuple[int, int], Any]:
        kind = self._scalar("I")
        if kind in _SCALARS:
            return kind, self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return kind, self._string()
        if kind != _ARRAY:
            raise self._fail(f"metadata of the unknown type {kind}")
        inner, count = self._scalar("I"), self._scalar("Q")
        if count > _ITEMS:
            raise self._fail(f"an array of {count} items; at most {_ITEMS} are supported")
        if inner == _STRING:
            return (kind, inner), [self._string() for _ in range(count)]
        if inner not in _SCALARS:
            raise self._fail(f"an array of the type {inner}")
        code = _SCALARS[inner]
        at = self._take(count * struct.calcsize(code))
        return (kind, inner), list(struct.unpack_from(f"<{count}{code}", self._data, at))

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dims = self._string(), self._scalar("I")
        if dims > 4:
            raise self._fail(f"tensor {name!r} has {dims} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dims))
        return name, shape, self._scalar("I"), self._scalar("Q")

    def _placed(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Tensor:
        if kind not in TYPES:
            raise self._fail(f"tensor {name!r} has the unknown type {kind}")
        label, elements, size = TYPES[kind]
        tensor = Tensor(name, shape, label, offset, 0)
        blocks, rest = divmod(tensor.elements, elements)
        if rest or offset + blocks * size > self._end:
            raise self._fail(f"tensor {name!r} does not fit the file: it is cut short or damaged")
        return Tensor(name, shape, label, offset, blocks * size)
