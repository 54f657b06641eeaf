"""What travels with a window of speech: the order that goes to the model, and what it has heard. JSON in BYTES tensors."""

from __future__ import annotations

from typing import Any, Final

import msgspec

RATE: Final = 16_000  # Hz
HOP: Final = 160  # samples: a frame of features is 10 ms
FRAMES: Final = 3_000  # of a window: 30 s


class Order(msgspec.Struct, omit_defaults=True):
    """One window. `start`: its first frame in the sound; `frames`: how many of its frames are sound, the rest is filling.

    `sound` names the call's sound, so that its windows agree on a language. `silent`: there is nothing to be heard.
    `probe`: the model does its work and tells nothing; what it makes of a beep differs from machine to machine."""

    start: int
    frames: int
    sound: str = ""
    language: str = ""
    prompt: str = ""
    temperature: float = 0.0
    task: str = "transcribe"
    words: bool = False
    silent: bool = False
    probe: bool = False


class Word(msgspec.Struct):
    """A word and its time in the whole sound, in seconds."""

    word: str
    start: float
    end: float
    probability: float


class Segment(msgspec.Struct, omit_defaults=True):
    """As OpenAI's verbose_json has it. `seek`: frames of the whole sound at which its window began."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: list[Word] | None = None


class Heard(msgspec.Struct, omit_defaults=True):
    """What the model says of one window."""

    start: int
    frames: int
    language: str
    segments: list[Segment] = []


encode: Final = msgspec.json.Encoder().encode
_order: Final = msgspec.json.Decoder(Order).decode
_heard: Final = msgspec.json.Decoder(Heard).decode


def order_of(data: bytes) -> Order:
    """Raises msgspec.DecodeError for anything but an order."""
    return _order(data)


def heard_of(data: bytes) -> Heard:
    """Raises msgspec.DecodeError for anything but what a model has heard."""
    return _heard(data)


def plain(segment: Segment) -> dict[str, Any]:
    """A segment as JSON-able values; `id` is always there."""
    told: dict[str, Any] = {name: getattr(segment, name) for name in segment.__struct_fields__}
    if segment.words is None:
        del told["words"]
    else:
        told["words"] = [msgspec.structs.asdict(word) for word in segment.words]
    return told
