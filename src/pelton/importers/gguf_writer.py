"""Writes GGUF files: metadata as it was read, tensors in the order given, each aligned."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from pelton.language.gguf import MAGIC, TYPES

VERSION: Final = 3
NUMBERS: Final = {label: number for number, (label, _, _) in TYPES.items()}
STRING, ARRAY, BOOL, INT32, UINT32, FLOAT32 = 8, 9, 7, 5, 4, 6
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

Kind = int | tuple[int, int]
Chunks = Callable[[], Iterable[bytes | memoryview]]


@dataclass(frozen=True, slots=True)
class NewTensor:
    """`shape` innermost dimension first; `chunks` gives exactly `size` bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    size: int
    chunks: Chunks


def size_of(shape: Sequence[int], label: str) -> int:
    """Bytes of a tensor of this shape and type."""
    _, elements, size = TYPES[NUMBERS[label]]
    count = 1
    for dim in shape:
        count *= dim
    if not shape or shape[0] % elements:
        raise ValueError(f"{label} holds rows of a multiple of {elements} elements, not {shape}")
    return count // elements * size


def write(
    path: Path, meta: Mapping[str, Any], kinds: Mapping[str, Kind], tensors: Sequence[NewTensor], alignment: int = 32
) -> None:
    """Writes a file. `kinds`: type of each metadata value, as `pelton.language.gguf` reads them."""
    with path.open("xb") as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(meta)))
        for name, value in meta.items():
            file.write(_text(name) + _value(kinds[name], value))
        at = 0
        for tensor in tensors:
            file.write(_text(tensor.name) + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape))
            file.write(struct.pack("<IQ", NUMBERS[tensor.type], at))
            at += -(-tensor.size // alignment) * alignment
        _pad(file, alignment)
        for tensor in tensors:
            begun = file.tell()
            for chunk in tensor.chunks():
                file.write(chunk)
            if file.tell() - begun != tensor.size:
                raise ValueError(f"{tensor.name}: {file.tell() - begun} bytes instead of {tensor.size}")
            _pad(file, alignment)


def _pad(file: IO[bytes], alignment: int) -> None:
    file.write(b"\0" * (-file.tell() % alignment))


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: Kind, value: Any) -> bytes:
    if isinstance(kind, tuple):
        _, inner = kind
        head = struct.pack("<IIQ", ARRAY, inner, len(value))
        if inner == STRING:
            return head + b"".join(map(_text, value))
        return head + struct.pack(f"<{len(value)}{_SCALARS[inner]}", *value)
    if kind == STRING:
        return struct.pack("<I", STRING) + _text(value)
    return struct.pack(f"<I{_SCALARS[kind]}", kind, value)
