"""Sample rate conversion: polyphase, windowed sinc (Crochiere & Rabiner 1983; Kaiser's window, 1974)."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Final

import msgspec
import numpy as np

from pelton.types import Array

ZEROS: Final = 64  # zero crossings of the sinc on each side, at the lower of the two rates
ATTENUATION: Final = 90.0  # dB of the stop band
TERMS: Final = 1000  # largest numerator and denominator of the ratio: every usual pair of rates is exact
_CHUNK: Final = 4_000_000  # elements of scratch memory
# Kaiser's formulas: the shape of the window, and the width of the transition in units of the lower rate.
_BETA: Final = 0.1102 * (ATTENUATION - 8.7)
_TRANSITION: Final = (ATTENUATION - 7.95) / (14.36 * 2 * ZEROS)


class Bank(msgspec.Struct, frozen=True):
    """`weights` [inputs, outputs] turns a stretch of input samples into the outputs that lie in `step` of them."""

    weights: Array
    step: int
    half: int


def ratio(source: int, target: int) -> Fraction:
    """target / source with terms of at most 1000; rates that do not reduce so far are off by some parts in a million."""
    exact = Fraction(target, source)
    return exact.limit_denominator(max(1, int(TERMS / max(1.0, float(exact)))))


@lru_cache(maxsize=4)
def bank(up: int, down: int) -> Bank:
    """The filters of all phases, side by side and each shifted to its place: one matrix product does the work.

    Cut-off: the middle of the transition, which ends at half of the lower rate. Every filter has gain 1 at 0 Hz.
    """
    low = min(1.0, up / down)  # the lower rate, in input samples
    half = math.ceil(ZEROS / low)
    periods = max(1, math.ceil(4 * half / down))  # long enough that the overlap of the stretches is small
    periods = max(1, min(periods, 4 * TERMS // up))
    step, outputs = periods * down, periods * up
    # All distances between an output and an input are multiples of 1 / up: the sinc is computed once for each.
    reach = half * up
    distance = np.arange(-reach, reach + 1) / up
    cutoff = low * (1.0 - _TRANSITION)  # the sinc's zeros lie at multiples of 1 / cutoff
    window = np.i0(_BETA * np.sqrt(1.0 - (distance / (half + 1)) ** 2))
    prototype = np.append((np.sinc(cutoff * distance) * window).astype(np.float32), np.float32(0))  # 0: out of reach
    index = (np.arange(step + 2 * half + 1)[:, None] - half) * up - np.arange(outputs)[None, :] * down + reach
    index[(index < 0) | (index > 2 * reach)] = 2 * reach + 1
    weights = prototype[index]
    weights /= weights.sum(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
    return Bank(weights, step, half)


def resample(samples: Array, source: int, target: int) -> Array:
    """float32 [n] at `source` Hz -> float32 [ceil(n * target / source)] at `target` Hz. Outside of the sound is silence."""
    factor = ratio(source, target)
    if factor == 1 or not len(samples):
        return samples
    filters = bank(factor.numerator, factor.denominator)
    width, outputs = filters.weights.shape
    count = -(-len(samples) * factor.numerator // factor.denominator)
    stretches = -(-count // outputs)
    padded = np.zeros((stretches - 1) * filters.step + width, np.float32)
    space = padded[filters.half :]
    space[: len(samples)] = samples[: len(space)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[:: filters.step]
    result = np.empty((stretches, outputs), np.float32)
    rows = max(1, _CHUNK // width)
    for start in range(0, stretches, rows):
        np.matmul(
            np.ascontiguousarray(windows[start : start + rows]), filters.weights, out=result[start : start + rows]
        )
    return result.ravel()[:count]
