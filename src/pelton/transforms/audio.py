"""Sound files -> tensors. The only file that imports soundfile, and only for what is not a plain WAV."""

from __future__ import annotations

import importlib
import io
from typing import Any, Final

import numpy as np

from pelton.errors import InvalidInput, PackageInvalid, TooLarge, Unsupported
from pelton.packages.preprocess import Audio
from pelton.transforms import wav
from pelton.transforms.elements import to_type
from pelton.transforms.fields import FieldSpec, Prepared, file_bytes, place, stack
from pelton.transforms.resample import resample
from pelton.types import Array, Fields, TensorSpec

LOWEST, HIGHEST = 1_000, 192_000  # Hz
LOUDEST: Final = 65536.0  # float files are meant to stay in -1 to 1; integers written as floats are let through
_BLOCK: Final = 1 << 16  # frames
_MP3_SLACK: Final = 2 * 1152  # frames: encoders and decoders differ about the first and last block
_UNKNOWN_LENGTH: Final = 1 << 62


class Sounds:
    """A compiled audio block."""

    heavy = True

    def __init__(self, block: Audio, spec: TensorSpec) -> None:
        what = "a sound file (WAV, FLAC, OGG, MP3): its bytes, or base64 text"
        self.fields = (FieldSpec(block.field, "audio", True, what),)
        self._block = block
        self._spec = spec
        _check(block, spec)
        self._scale = np.float32(block.scale)

    def __call__(self, fields: Fields) -> Prepared:
        values = fields[self._block.field]
        sounds = [self._sound(value, place(self._block.field, row, len(values))) for row, value in enumerate(values)]
        if self._block.window is None:
            rows = [self._fit(sound) for sound in sounds]
            return Prepared([stack(self._block.field, rows, self._spec.pad)])
        counts = tuple(len(sound) for sound in sounds)
        windows = sounds[0] if len(sounds) == 1 else np.concatenate(sounds)
        return Prepared([windows.reshape((len(windows), *_shape(self._spec.shape, windows.shape[1])))], counts)

    def _sound(self, value: Any, where: str) -> Array:
        """[samples], or [windows, window], in the input's element type."""
        data = memoryview(file_bytes(where, value, self._block.max_bytes))
        samples, rate = read(data, where, self._block.max_seconds)
        samples = resample(samples, rate, self._block.sample_rate)
        if self._block.scale != 1.0:
            samples = samples * self._scale
        if self._block.window is not None:
            samples = self._windows(samples, self._block.window, where)
        with np.errstate(over="ignore"):
            elements = to_type(samples, self._spec.type)
        if elements.dtype == np.float16 and not np.isfinite(elements).all():
            raise InvalidInput(f"{where}: the scaled sound is beyond the range of FP16")
        return elements

    def _windows(self, samples: Array, window: int, where: str) -> Array:
        hop = self._block.hop or window
        count = 1 + max(0, -(-(len(samples) - window) // hop))
        if count > self._block.max_windows:
            raise TooLarge(f"{where}: the sound gives {count} windows; at most {self._block.max_windows} are accepted")
        padded = np.zeros((count - 1) * hop + window, np.float32)
        used = min(len(samples), len(padded))
        padded[:used] = samples[:used]
        return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(padded, window)[::hop])

    def _fit(self, samples: Array) -> Array:
        return samples.reshape(_shape(self._spec.shape, len(samples)))


def _shape(shape: tuple[int, ...], samples: int) -> tuple[int, ...]:
    return tuple(samples if dim != 1 else 1 for dim in shape)


def _check(block: Audio, spec: TensorSpec) -> None:
    what = f"audio block {block.field!r}"
    if not LOWEST <= block.sample_rate <= HIGHEST:
        raise PackageInvalid(f"{what}: sample_rate must be {LOWEST} to {HIGHEST} Hz, not {block.sample_rate}")
    if (block.window is not None and block.window < 2) or (block.hop is not None and block.hop < 1):
        raise PackageInvalid(f"{what}: window must be at least 2 samples, hop at least 1")
    if block.hop is not None and (block.window is None or block.hop > block.window):
        raise PackageInvalid(f"{what}: hop needs a window, and may not be longer")
    if not block.max_seconds > 0 or block.max_windows < 1 or block.max_bytes < 1:
        raise PackageInvalid(f"{what}: max_seconds, max_windows and max_bytes must be positive")
    if spec.type.kind != "float":
        raise PackageInvalid(f"{what} gives floating-point samples; the input {spec.name!r} is {spec.datatype}")
    long = [dim for dim in spec.shape if dim != 1]
    if len(long) != 1 or long[0] not in (-1, block.window):
        gives = "any number of" if block.window is None else str(block.window)
        raise PackageInvalid(f"{what} gives {gives} samples a row; the input {spec.name!r} has the shape {spec.shape}")


def read(data: memoryview, where: str, max_seconds: float) -> tuple[Array, int]:
    """A sound file -> mono float32 [frames] and its sample rate. Raises InvalidInput, TooLarge."""
    try:
        header = wav.parse(data)
    except wav.WavError as error:
        raise InvalidInput(f"{where}: {error}") from None
    if header is not None:
        _check_length(header.rate, header.frames, where, max_seconds)
        samples, rate = wav.mono(data, header), header.rate
    elif _known(data):
        samples, rate = _other(data, where, max_seconds)
    else:
        raise InvalidInput(f"{where}: this is not a WAV, FLAC, OGG or MP3 file")
    if not len(samples):
        raise InvalidInput(f"{where}: the sound has no samples")
    if not max(samples.max(), -samples.min()) <= LOUDEST:  # false for NaN too
        raise InvalidInput(
            f"{where}: the sound has samples that are not finite, or beyond {LOUDEST:g}; full scale is 1"
        )
    return samples, rate


def _check_length(rate: int, frames: int, where: str, max_seconds: float) -> None:
    if not LOWEST <= rate <= HIGHEST:
        raise InvalidInput(f"{where}: the sample rate is {rate} Hz; {LOWEST} to {HIGHEST} are accepted")
    if frames > max_seconds * rate and frames < _UNKNOWN_LENGTH:
        raise TooLarge(f"{where}: the sound lasts {frames / rate:.1f} s; at most {max_seconds:g} s are accepted")


def _known(data: memoryview) -> bool:
    """The first bytes of WAVE in its other codings, FLAC, OGG, MP3 (with and without ID3): no other parser is reached."""
    head = bytes(data[:4])
    if head in (b"RIFF", b"RF64", b"fLaC", b"OggS") or head[:3] == b"ID3":
        return True
    return len(head) == 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0


def _soundfile() -> Any:
    try:
        return importlib.import_module("soundfile")
    except (ImportError, OSError) as error:  # OSError: its C library is not there
        raise Unsupported(f"this server reads only WAV sounds, soundfile does not load here: {error}") from None


def _other(data: memoryview, where: str, max_seconds: float) -> tuple[Array, int]:
    soundfile = _soundfile()
    _check_last_page(data, where)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, frames = file.samplerate, file.frames
            _check_length(rate, frames, where, max_seconds)
            samples = _blocks(file, rate, where, max_seconds)
            counted = file.format != "MP3" or _counts_frames(data)
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidInput(f"{where}: the sound is damaged or of an unknown kind ({error})") from None
    slack = _MP3_SLACK if file.format == "MP3" else 0
    if counted and len(samples) + slack < frames < _UNKNOWN_LENGTH:
        raise InvalidInput(f"{where}: the sound is cut short: {len(samples)} of {frames} frames")
    return samples, rate


def _blocks(file: Any, rate: int, where: str, max_seconds: float) -> Array:
    """Block by block: what the header says about the length need not be true."""
    parts: list[Array] = []
    frames = 0
    while True:
        block = file.read(_BLOCK, dtype="float32", always_2d=True)
        if not len(block):
            return np.concatenate(parts) if parts else np.empty(0, np.float32)
        frames += len(block)
        _check_length(rate, frames, where, max_seconds)
        parts.append(block[:, 0].copy() if block.shape[1] == 1 else block.mean(axis=1))


def _counts_frames(data: memoryview) -> bool:
    """Whether an MP3 tells its length (a Xing or Info block in its first frame); otherwise libsndfile only guesses."""
    start = 0
    if bytes(data[:3]) == b"ID3" and len(data) >= 10:
        a, b, c, d = data[6:10]
        start = 10 + (a << 21 | b << 14 | c << 7 | d)
    head = bytes(data[start : start + 200])
    return b"Xing" in head or b"Info" in head


def _check_last_page(data: memoryview, where: str) -> None:
    """libsndfile silently stops at an OGG page that is cut; the page's own table of lengths tells (RFC 3533)."""
    if bytes(data[:4]) != b"OggS":
        return
    tail = bytes(data[-70_000:])  # a page is at most 65,307 bytes
    page = tail[tail.rfind(b"OggS") :]
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if len(page) <= 26 or len(lengths) < page[26] or len(page) < 27 + page[26] + sum(lengths):
        raise InvalidInput(f"{where}: the sound is cut short in its last page")
