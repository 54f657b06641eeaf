"""RIFF WAVE files with PCM or float samples, read with numpy alone: no callbacks into Python, no C library."""

from __future__ import annotations

import struct
from typing import Final

import msgspec
import numpy as np

from pelton.types import Array

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_STREAMED: Final = (0, 0xFFFFFFFF)  # sizes that writers to a pipe leave behind


class WavError(Exception):
    """The file is damaged; the message says how."""


class Wav(msgspec.Struct, frozen=True):
    """Where the samples are and what they look like."""

    rate: int
    channels: int
    bits: int
    floating: bool
    start: int
    frames: int


def parse(data: memoryview) -> Wav | None:
    """The header. None: not a RIFF WAVE file, or another coding than PCM and float. Raises WavError."""
    if len(data) < 12 or bytes(data[:4]) != b"RIFF" or bytes(data[8:12]) != b"WAVE":
        return None
    form: tuple[int, int, int, int, int] | None = None
    at = 12
    while at + 8 <= len(data):
        name = bytes(data[at : at + 4])
        (size,) = struct.unpack_from("<I", data, at + 4)
        at += 8
        if name == b"fmt ":
            form = _format(data[at : at + size])
        elif name == b"data":
            return _samples(form, at, size, len(data) - at)
        at += size + (size & 1)
    raise WavError("the WAV file is cut short: it has no samples")


def _format(chunk: memoryview) -> tuple[int, int, int, int, int]:
    if len(chunk) < 16:
        raise WavError("the WAV header is cut short")
    tag, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE and len(chunk) >= 26:
        (tag,) = struct.unpack_from("<H", chunk, 24)
    return tag, channels, rate, align, bits


def _samples(form: tuple[int, int, int, int, int] | None, start: int, size: int, rest: int) -> Wav | None:
    if form is None:
        raise WavError("the WAV file has no format before its samples")
    tag, channels, rate, align, bits = form
    known = (tag == _PCM and bits in (8, 16, 24, 32)) or (tag == _FLOAT and bits in (32, 64))
    if not known:
        return None
    if channels < 1 or rate < 1 or align != channels * bits // 8:
        raise WavError(f"the WAV header contradicts itself: {channels} channels, {bits} bits, {align} bytes a frame")
    if size in _STREAMED:
        size = rest
    if size > rest:
        raise WavError(f"the WAV file is cut short: {rest} of {size} bytes of samples")
    return Wav(rate, channels, bits, tag == _FLOAT, start, size // align)


def mono(data: memoryview, wav: Wav) -> Array:
    """float32 [frames] in [-1, 1): the mean of the channels."""
    size = wav.bits // 8
    raw = data[wav.start : wav.start + wav.frames * wav.channels * size]
    with np.errstate(over="ignore", invalid="ignore"):  # float samples may be anything; the reader checks the result
        samples = _floats(raw, wav).reshape(wav.frames, wav.channels)
        return samples[:, 0] if wav.channels == 1 else samples.mean(axis=1, dtype=np.float32)


def _floats(raw: memoryview, wav: Wav) -> Array:
    if wav.floating:
        return np.frombuffer(raw, f"<f{wav.bits // 8}").astype(np.float32)
    if wav.bits == 8:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - np.float32(128)) * np.float32(1 / 128)
    if wav.bits == 24:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0].astype(np.float32) * np.float32(2.0**-31)
    scale = np.float32(2.0 ** -(wav.bits - 1))
    return np.frombuffer(raw, f"<i{wav.bits // 8}").astype(np.float32) * scale
