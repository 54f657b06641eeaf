"""Read GGUF files (llama.cpp's format, versions 2 and 3) and turn their quantized tensors into float32.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; block layouts: ggml-common.h of the same
repository. Sizes are checked against the file before anything is read, so a broken file raises GgufInvalid.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_ITEMS = 10_000_000


class GgufInvalid(ValueError):
    """The file is not a GGUF file, is cut short, or holds a tensor type that is not supported."""


def _halfs(raw: Bytes) -> Floats:
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _q4_0(b: Bytes) -> Floats:
    values = np.concatenate((b[:, 2:] & 15, b[:, 2:] >> 4), 1).astype(np.float32) - 8
    return _halfs(b[:, :2]) * values


def _q4_1(b: Bytes) -> Floats:
    values = np.concatenate((b[:, 4:] & 15, b[:, 4:] >> 4), 1).astype(np.float32)
    return _halfs(b[:, :2]) * values + _halfs(b[:, 2:4])


def _fifth_bits(b: Bytes) -> npt.NDArray[Any]:
    return np.unpackbits(np.ascontiguousarray(b), axis=1, bitorder="little") << 4


def _q5_0(b: Bytes) -> Floats:
    low = np.concatenate((b[:, 6:] & 15, b[:, 6:] >> 4), 1)
    values: Floats = (low | _fifth_bits(b[:, 2:6])).astype(np.float32)
    return _halfs(b[:, :2]) * (values - 16)


def _q5_1(b: Bytes) -> Floats:
    low = np.concatenate((b[:, 8:] & 15, b[:, 8:] >> 4), 1)
    values: Floats = (low | _fifth_bits(b[:, 4:8])).astype(np.float32)
    return _halfs(b[:, :2]) * values + _halfs(b[:, 2:4])


def _q8_0(b: Bytes) -> Floats:
    return _halfs(b[:, :2]) * np.ascontiguousarray(b[:, 2:]).view(np.int8).astype(np.float32)


def _k_scales(b: Bytes) -> tuple[Floats, Floats]:
    """Eight 6-bit scales and eight 6-bit minimums, packed in 12 bytes."""
    low, mid, high = b[:, 0:4], b[:, 4:8], b[:, 8:12]
    scales = np.concatenate((low & 63, (high & 15) | ((low >> 6) << 4)), 1)
    mins = np.concatenate((mid & 63, (high >> 4) | ((mid >> 6) << 4)), 1)
    return scales.astype(np.float32), mins.astype(np.float32)


def _k_super(b: Bytes, quants: npt.NDArray[Any]) -> Floats:
    """Q4_K and Q5_K: value = d * scale * q - dmin * min, in 8 runs of 32."""
    scales, mins = _k_scales(b[:, 4:16])
    scale = (_halfs(b[:, 0:2]) * scales)[:, :, None]
    low = (_halfs(b[:, 2:4]) * mins)[:, :, None]
    return (scale * quants.astype(np.float32) - low).reshape(len(b), 256)


def _q4_k(b: Bytes) -> Floats:
    packed = b[:, 16:144].reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    return _k_super(b, (packed & 15).reshape(-1, 8, 32))


def _q5_k(b: Bytes) -> Floats:
    packed = b[:, 48:176].reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    fifth = (b[:, 16:48].reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & 1
    return _k_super(b, (packed & 15).reshape(-1, 8, 32) | (fifth << 4))


def _q6_k(b: Bytes) -> Floats:
    low = b[:, 0:128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    high = b[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    values = ((low & 15).reshape(-1, 8, 32) | ((high & 3).reshape(-1, 8, 32) << 4)).astype(np.float32).reshape(
        -1, 16, 16
    ) - 32
    scales = np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(np.float32)
    return (_halfs(b[:, 208:210])[:, :, None] * scales[:, :, None] * values).reshape(-1, 256)


def _bf16(b: Bytes) -> Floats:
    return (np.ascontiguousarray(b).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True, slots=True)
class _Type:
    name: str
    elements: int  # per block
    size: int  # bytes per block
    decode: Callable[[Bytes], Floats]


_TYPES = {
    0: _Type("F32", 1, 4, lambda b: np.ascontiguousarray(b).view(np.float32)),
    1: _Type("F16", 1, 2, _halfs),
    2: _Type("Q4_0", 32, 18, _q4_0),
    3: _Type("Q4_1", 32, 20, _q4_1),
    6: _Type("Q5_0", 32, 22, _q5_0),
    7: _Type("Q5_1", 32, 24, _q5_1),
    8: _Type("Q8_0", 32, 34, _q8_0),
    12: _Type("Q4_K", 256, 144, _q4_k),
    13: _Type("Q5_K", 256, 176, _q5_k),
    14: _Type("Q6_K", 256, 210, _q6_k),
    30: _Type("BF16", 1, 2, _bf16),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`shape` is outermost dimension first, as in torch (GGUF writes it the other way round)."""

    shape: tuple[int, ...]
    type: str
    offset: int
    size: int


class _Cursor:
    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def scalar(self, code: str) -> Any:
        size = struct.calcsize(code)
        if self.at + size > len(self.data):
            raise GgufInvalid("the file ends inside its header")
        (value,) = struct.unpack_from(code, self.data, self.at)
        self.at += size
        return value

    def string(self) -> str:
        size = self.scalar("<Q")
        if self.at + size > len(self.data):
            raise GgufInvalid("the file ends inside a string")
        raw = bytes(self.data[self.at : self.at + size])
        self.at += size
        return raw.decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth > 2:
            raise GgufInvalid(f"metadata of unknown type {kind}")
        inner, count = self.scalar("<I"), self.scalar("<Q")
        if count > _MAX_ITEMS:
            raise GgufInvalid(f"an array of {count} items; {_MAX_ITEMS} are supported")
        return [self.value(inner, depth + 1) for _ in range(count)]


class GgufFile:
    """A GGUF file, mapped into memory. `meta` is its metadata, `tensors` what it holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes: Bytes = np.memmap(path, dtype=np.uint8, mode="r")
        cursor = _Cursor(self._bytes.data)
        if len(self._bytes) < 24 or bytes(self._bytes[:4]) != b"GGUF":
            raise GgufInvalid(f"{path} is not a GGUF file")
        cursor.at = 4
        version = cursor.scalar("<I")
        if version not in (2, 3):
            raise GgufInvalid(f"GGUF version {version} is not supported; 2 and 3 are")
        tensor_count, meta_count = cursor.scalar("<Q"), cursor.scalar("<Q")
        if tensor_count > _MAX_ITEMS or meta_count > _MAX_ITEMS:
            raise GgufInvalid("the header counts more items than any model has")
        self.meta: dict[str, Any] = {}
        for _ in range(meta_count):
            name = cursor.string()
            self.meta[name] = cursor.value(cursor.scalar("<I"))
        raw = [self._tensor_entry(cursor) for _ in range(tensor_count)]
        align = int(self.meta.get("general.alignment", 32))
        base = -(-cursor.at // align) * align
        self.tensors = {name: self._checked(name, shape, kind, base + at) for name, shape, kind, at in raw}

    @staticmethod
    def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
        name, dims = cursor.string(), cursor.scalar("<I")
        if dims > 4:
            raise GgufInvalid(f"tensor {name!r} has {dims} dimensions")
        shape = tuple(cursor.scalar("<Q") for _ in range(dims))[::-1]
        return name, shape, cursor.scalar("<I"), cursor.scalar("<Q")

    def _checked(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> TensorInfo:
        if kind not in _TYPES:
            known = ", ".join(t.name for t in _TYPES.values())
            raise GgufInvalid(f"tensor {name!r} has type number {kind}; supported: {known}")
        layout = _TYPES[kind]
        elements = 1
        for dim in shape:
            elements *= dim
        size = elements // layout.elements * layout.size
        if elements % layout.elements or offset + size > len(self._bytes):
            raise GgufInvalid(f"tensor {name!r} does not fit the file: it is cut short or damaged")
        return TensorInfo(shape, layout.name, offset, size)

    def read(self, name: str) -> Floats:
        """One tensor in float32, quantized or not."""
        info = self.tensors[name]
        layout = next(t for t in _TYPES.values() if t.name == info.type)
        raw = self._bytes[info.offset : info.offset + info.size].reshape(-1, layout.size)
        return layout.decode(raw).reshape(info.shape)
