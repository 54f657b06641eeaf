"""Log-mel features as Whisper models were trained on them.

Radford et al. 2022 (arXiv 2212.04356), and the code that the authors published with it: a Hann window of 400 samples
every 160 at 16 kHz, the sound mirrored at both ends, power |X|^2, mel filters on Slaney's scale (linear up to 1 kHz, then
logarithmic; Slaney 1998) of equal area from 0 to 8 kHz, log10 of at least 1e-10, nothing lower than 8 below the loudest,
then (x + 4) / 4.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from pelton.packages.speech import HOP, RATE
from pelton.types import Array

WINDOW: Final = 400  # samples
_BINS: Final = WINDOW // 2 + 1
_BLOCK: Final = 3_000  # frames that are transformed at once
_LINEAR: Final = 200.0 / 3.0  # Hz of one mel below 1 kHz
_KNEE: Final = 1_000.0  # Hz
_STEP: Final = np.log(6.4) / 27.0  # of one mel above


def log_mel(samples: Array, mels: int) -> Array:
    """float32 [n] at 16 kHz -> float32 [mels, n // 160], at least one frame."""
    frames = max(1, len(samples) // HOP)
    if len(samples) <= WINDOW // 2:  # too short to be mirrored
        samples = np.pad(samples, (0, WINDOW // 2 + 1 - len(samples)))
    mirrored = np.pad(samples, WINDOW // 2, mode="reflect")
    hann = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    weights = filters(mels).T
    result = np.empty((mels, frames), np.float32)
    slices = np.lib.stride_tricks.sliding_window_view(mirrored, WINDOW)[::HOP]
    for start in range(0, frames, _BLOCK):
        spectrum = np.fft.rfft(slices[start : min(frames, start + _BLOCK)] * hann, axis=1)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        result[:, start : start + _BLOCK] = np.log10(np.maximum(power @ weights, 1e-10)).T
    np.maximum(result, result.max() - 8.0, out=result)
    result += 4.0
    result /= 4.0
    return result


@lru_cache(maxsize=4)
def filters(mels: int) -> Array:
    """float32 [mels, 201]: triangles between neighbouring points of the mel scale, each of the area 1."""
    points = _hertz(np.linspace(0.0, float(_mels(RATE / 2)), mels + 2))
    low, middle, high = points[:-2, None], points[1:-1, None], points[2:, None]
    bins = np.linspace(0.0, RATE / 2, _BINS)
    triangles = np.maximum(0.0, np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)))
    weights: Array = (triangles * 2.0 / (high - low)).astype(np.float32)
    return weights


def _mels(hertz: float) -> float:
    return float(_KNEE / _LINEAR + np.log(hertz / _KNEE) / _STEP) if hertz >= _KNEE else hertz / _LINEAR


def _hertz(mels: Array) -> Array:
    knee = _KNEE / _LINEAR
    hertz: Array = np.where(mels >= knee, _KNEE * np.exp(_STEP * (mels - knee)), _LINEAR * mels)
    return hertz
