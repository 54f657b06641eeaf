"""What a speech model has heard in the windows of a sound -> the transcript of the whole sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from pelton.errors import ModelFailed, PackageInvalid
from pelton.packages import speech
from pelton.packages.preprocess import Transcript
from pelton.packages.speech import HOP, RATE, Heard, Segment
from pelton.types import Array, TensorSpec

Counts = tuple[int, ...] | None


def answer(block: Transcript, spec: TensorSpec) -> Callable[[Array, Counts], list[Any]]:
    """One part of the transcript per sound. `counts`: windows of each sound (None: one each)."""
    if spec.datatype != "BYTES" or spec.shape:
        raise PackageInvalid(f"postprocess of {spec.name!r}: a transcript is made of BYTES []; this is {spec.datatype}")
    part = _PARTS[block.part]

    def told(array: Array, counts: Counts) -> list[Any]:
        windows = [_read(data, spec.name) for data in array.ravel()]
        sizes = counts if counts is not None else (1,) * len(windows)
        if sum(sizes) != len(windows):
            raise ModelFailed(f"the model answered {len(windows)} windows for {sum(sizes)}")
        answers, start = [], 0
        for size in sizes:
            answers.append(part(windows[start : start + size]))
            start += size
        return answers

    return told


def _read(data: Any, name: str) -> Heard:
    try:
        return speech.heard_of(data)
    except msgspec.DecodeError as error:
        raise ModelFailed(f"output {name!r} is no transcript of a window: {error}") from None


def _segments(windows: Sequence[Heard]) -> list[Segment]:
    found = [segment for window in windows for segment in window.segments]
    return [replace(segment, id=i) for i, segment in enumerate(found)]


def _text(windows: Sequence[Heard]) -> str:
    return "".join([segment.text for window in windows for segment in window.segments]).strip()


def _language(windows: Sequence[Heard]) -> str:
    """The one that is spoken longest."""
    spoken: dict[str, float] = {}
    for window in windows:
        seconds = sum([segment.end - segment.start for segment in window.segments])
        spoken[window.language] = spoken.get(window.language, 0.0) + seconds
    return max(spoken, key=spoken.__getitem__, default="")


def _duration(windows: Sequence[Heard]) -> float:
    return round(max([window.start + window.frames for window in windows], default=0) * HOP / RATE, 2)


_PARTS: Final[dict[str, Callable[[Sequence[Heard]], Any]]] = {
    "text": _text,
    "language": _language,
    "duration": _duration,
    "segments": lambda windows: [speech.plain(segment) for segment in _segments(windows)],
}
