"""What a decoder has written about 30 s -> segments with times, and from where on it has not written yet. Pure.

Whisper writes `<|2.40|> text<|5.10|><|5.10|> text...`. Two times in a row part segments. Where the last segment has no
end, its words may have been cut by the end of the window: what follows the last pair is thrown away and heard again from
there (Radford et al. 2022, section 3.8).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import msgspec

from pelton.packages.speech import HOP, RATE

FRAME: Final = HOP / RATE  # seconds
PER_TIME: Final = 2  # frames from one timestamp token to the next


class Piece(msgspec.Struct, frozen=True):
    """Tokens of one segment, times among them. `start`, `end`: seconds from the beginning of what was decoded."""

    start: float
    end: float
    tokens: list[int]


def cut(tokens: Sequence[int], first_time: int, frames: int) -> tuple[list[Piece], int]:
    """(segments, frames that are done). `frames`: how much sound there was; `first_time`: the id of <|0.00|>."""

    def seconds(token: int) -> float:
        return (token - first_time) * PER_TIME * FRAME

    is_time = [token >= first_time for token in tokens]
    ends_with_one = len(tokens) >= 2 and is_time[-1] and not is_time[-2]
    pairs = [i for i in range(1, len(tokens)) if is_time[i] and is_time[i - 1]]
    whole = frames * FRAME
    if not pairs:
        times = [token for token, time in zip(tokens[1:], is_time[1:], strict=True) if time and token != first_time]
        end = min(seconds(times[-1]), whole) if times else whole
        start = seconds(tokens[0]) if tokens and is_time[0] else 0.0
        return [Piece(min(start, end), end, list(tokens))], frames
    pieces, last = [], 0
    for i in [*pairs, len(tokens)] if ends_with_one else pairs:
        part = list(tokens[last:i])
        start, end = (min(seconds(part[at]), whole) if part[at] >= first_time else 0.0 for at in (0, -1))
        pieces.append(Piece(start, max(start, end), part))
        last = i
    if ends_with_one:
        return pieces, frames
    done = (tokens[last - 1] - first_time) * PER_TIME
    return pieces, min(done, frames) if done > 0 else frames


def compression_ratio(text: str) -> float:
    """Bytes of the text / bytes of it packed: a decoder that repeats itself gives a large one."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else 0.0
