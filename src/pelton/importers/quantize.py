"""Weights in ggml's block formats, from float32. Pure numpy; `pelton.runtimes.lm.gguf` reads them back.

Q4_0   32 weights share a scale (float16), each is 4 bits: scale * (q - 8)
Q8_0   32 weights share a scale (float16), each is a signed byte: scale * q
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pelton.errors import ModelFailed

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

BLOCK: Final = 32
# What the largest weight of a block becomes, of -8 to 7. -8 alone is ggml's own choice; the others give its neighbours a
# finer scale at its cost. The one with the smallest squared error is taken, block by block.
_LARGEST: Final = (-8.0, -8.5, -9.0, -7.5, -7.0)
_NOTHING: Final = np.float32(2.0**-25)  # a scale up to here is 0 as float16


def q4_0(weights: Floats) -> Bytes:
    """[blocks * 32] -> [blocks, 18]."""
    blocks = weights.reshape(-1, BLOCK)
    places = np.abs(blocks).argmax(axis=1)[:, None]
    largest = np.take_along_axis(blocks, places, axis=1)
    best = np.full((len(blocks), 1), np.inf, np.float32)
    scale = np.zeros((len(blocks), 1), np.float32)
    for level in _LARGEST:
        steps = _steps(blocks, largest / np.float32(level))
        fitted = _half(
            (blocks * steps).sum(axis=1, keepdims=True) / np.maximum((steps * steps).sum(axis=1, keepdims=True), 1)
        )
        error = np.square(blocks - fitted * _steps(blocks, fitted)).sum(axis=1, keepdims=True)
        better = error < best
        best, scale = np.where(better, error, best), np.where(better, fitted, scale)
    nibbles: Bytes = (_steps(blocks, scale) + 8).astype(np.uint8)
    packed = nibbles[:, :16] | (nibbles[:, 16:] << 4)
    return np.concatenate((_raw(scale), packed), axis=1)


def _steps(blocks: Floats, scale: Floats) -> Floats:
    """The nearest of -8 to 7 for each weight."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > _NOTHING)
    found: Floats = np.clip(np.rint(blocks * inverse), -8, 7)
    return found


def q8_0(weights: Floats) -> Bytes:
    """[blocks * 32] -> [blocks, 34]."""
    blocks = weights.reshape(-1, BLOCK)
    scale = _half(np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127))
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    steps = np.clip(np.rint(blocks * inverse), -127, 127).astype(np.int8)
    return np.concatenate((_raw(scale), steps.view(np.uint8)), axis=1)


def f16(weights: Floats) -> Bytes:
    """[n] -> [n, 2]. Raises ModelFailed for weights that float16 does not hold."""
    with np.errstate(over="ignore"):
        halves = weights.reshape(-1).astype(np.float16)
    if not np.isfinite(halves).all():
        raise ModelFailed("a weight is too large for float16, or no number: take q8_0")
    return halves.view(np.uint8).reshape(-1, 2)


def _half(scale: Floats) -> Floats:
    """As it will be read back."""
    return np.clip(scale, -65504, 65504).astype(np.float16).astype(np.float32)


def _raw(scale: Floats) -> npt.NDArray[Any]:
    return np.ascontiguousarray(scale.astype(np.float16)).view(np.uint8)


def f32(weights: Floats) -> Bytes:
    """[n] -> [n, 4]."""
    return np.ascontiguousarray(weights.reshape(-1, 1)).view(np.uint8)


ENCODERS: Final[Mapping[str, Callable[[Floats], Bytes]]] = {"Q4_0": q4_0, "Q8_0": q8_0, "F16": f16, "F32": f32}
