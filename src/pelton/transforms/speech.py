"""Sounds -> windows of speech for a Whisper model: features, and an order that says what is wanted of each window."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from pelton.errors import InvalidInput, PackageInvalid
from pelton.packages import speech
from pelton.packages.preprocess import Speech
from pelton.packages.speech import FRAMES, HOP, RATE, Order
from pelton.transforms.audio import read
from pelton.transforms.fields import FieldSpec, Prepared, file_bytes, place, show
from pelton.transforms.mel import log_mel
from pelton.transforms.resample import resample
from pelton.transforms.table import UNSET
from pelton.types import Array, Fields, TensorSpec

EARLIEST: Final = 2_000  # frames: a window is cut at the quietest place between here and its end
QUIET_OVER: Final = 25  # frames that are quiet together: a quarter of a second
SILENT: Final = 1e-4  # of full scale: nobody hears what is below
MAX_PROMPT: Final = 10_000  # characters
TASKS: Final = ("transcribe", "translate")


class Speeches:
    """A compiled speech block."""

    heavy = True

    def __init__(self, block: Speech, specs: Sequence[TensorSpec]) -> None:
        _check(block, specs)
        self._block = block
        self._mels = specs[0].shape[0]
        languages = block.languages
        self.fields = (
            FieldSpec(block.field, "audio", True, "a sound file (WAV, FLAC, OGG, MP3): its bytes, or base64 text"),
            FieldSpec("language", "string", False, "of the sound; the model finds out where it is left out", languages),
            FieldSpec("prompt", "text", False, "text before the sound: names, spelling, style"),
            FieldSpec("temperature", "number", False, "0 to 1; 0: the most likely words"),
            FieldSpec("task", "string", False, "translate: into English", TASKS),
            FieldSpec("words", "boolean", False, "true: the times of words too"),
        )

    def __call__(self, fields: Fields) -> Prepared:
        values = fields[self._block.field]
        windows: list[Array] = []
        orders: list[bytes] = []
        counts = []
        for row, value in enumerate(values):
            wanted = {name: _at(fields, name, row) for name in ("language", "prompt", "temperature", "task", "words")}
            order = self._order(wanted, row, len(values))  # before the work: what is wrong is told at once
            features, told = self._windows(value, order, place(self._block.field, row, len(values)))
            windows.append(features)
            orders += told
            counts.append(len(told))
        joined = windows[0] if len(windows) == 1 else np.concatenate(windows)
        return Prepared([joined, np.array(orders, np.object_)], tuple(counts))

    def _order(self, wanted: dict[str, Any], row: int, rows: int) -> Order:
        order = Order(0, 0)
        known = self._block.languages
        if (language := wanted["language"]) is not None and language != "":
            if not isinstance(language, str) or language.lower() not in known:
                told = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
                raise InvalidInput(f"{place('language', row, rows)}: {show(language)} is not spoken here: {told}")
            order.language = language.lower()
        if (prompt := wanted["prompt"]) is not None:
            if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT:
                raise InvalidInput(f"{place('prompt', row, rows)}: text of at most {MAX_PROMPT} characters is expected")
            order.prompt = prompt
        if (heat := wanted["temperature"]) is not None:
            if isinstance(heat, bool) or not isinstance(heat, int | float | np.number) or not 0 <= heat <= 1:
                raise InvalidInput(f"{place('temperature', row, rows)}: {show(heat)} is not a number from 0 to 1")
            order.temperature = float(heat)
        if (task := wanted["task"]) is not None:
            if task not in TASKS or (task == "translate" and len(known) < 2):
                able = TASKS if len(known) > 1 else TASKS[:1]
                raise InvalidInput(f"{place('task', row, rows)}: {show(task)}; this model does {', '.join(able)}")
            order.task = task
        if (words := wanted["words"]) is not None:
            if not isinstance(words, bool | np.bool_):
                raise InvalidInput(f"{place('words', row, rows)}: {show(words)} is neither true nor false")
            order.words = bool(words)
        return order

    def _windows(self, value: Any, order: Order, where: str) -> tuple[Array, list[bytes]]:
        data = memoryview(file_bytes(where, value, self._block.max_bytes))
        samples, rate = read(data, where, self._block.max_seconds)
        samples = resample(samples, rate, RATE)
        features = log_mel(samples, self._mels)
        bounds = cuts(features)
        order.sound = hashlib.blake2b(data, digest_size=12).hexdigest() if len(bounds) > 2 else ""
        windows = np.zeros((len(bounds) - 1, self._mels, FRAMES), np.float32)
        orders = []
        for window, start, stop in zip(windows, bounds[:-1], bounds[1:], strict=True):
            window[:, : stop - start] = features[:, start:stop]
            heard = samples[start * HOP : stop * HOP]
            silent = not len(heard) or max(heard.max(), -heard.min()) < SILENT
            orders.append(
                speech.encode(msgspec.structs.replace(order, start=start, frames=stop - start, silent=bool(silent)))
            )
        return windows, orders


def cuts(features: Array) -> list[int]:
    """Frames at which windows begin, and the end. No window is longer than 30 s; where a sound is longer, it is cut in
    the middle of the quietest quarter second of the last 10 s: words are seldom cut there."""
    total = features.shape[1]
    bounds = [0]
    if total <= FRAMES:
        return [0, total]
    loudness = np.convolve(features.mean(axis=0), np.full(QUIET_OVER, 1.0 / QUIET_OVER, np.float32), mode="same")
    while total - bounds[-1] > FRAMES:
        first = bounds[-1] + EARLIEST
        bounds.append(first + int(loudness[first : bounds[-1] + FRAMES].argmin()))
    return [*bounds, total]


def _at(fields: Fields, name: str, row: int) -> Any:
    """What a caller wants, or None where it is left out."""
    values = fields.get(name)
    value = None if values is None else values[row]
    if value is UNSET or value is None:
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _check(block: Speech, specs: Sequence[TensorSpec]) -> None:
    what = f"speech block {block.field!r}"
    features, order = specs
    if features.datatype != "FP32" or len(features.shape) != 2 or features.shape[1] != FRAMES or features.shape[0] < 1:
        raise PackageInvalid(
            f"{what} gives FP32 [mels, {FRAMES}]; the input {features.name!r} is {features.datatype} {features.shape}"
        )
    if order.datatype != "BYTES" or order.shape:
        raise PackageInvalid(f"{what} gives an order as BYTES []; the input {order.name!r} is {order.datatype}")
    if not block.languages or not block.max_seconds > 0 or block.max_bytes < 1:
        raise PackageInvalid(f"{what}: languages may not be empty; max_seconds and max_bytes must be positive")
