"""How long the steps of a language model take: learned from every step that ran, for this machine at this moment.

A step of b streams that decode takes D(b) seconds, a curve as S(b) of batches is; each token of a prompt in it takes
the same time more. Steps with prompts in them teach the second, steps without the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from pelton.scheduling.latency import LatencyModel

RATE: Final = 0.1  # how fast the seconds of a prompt's token follow what is measured; longer prompts teach more
FULL: Final = 64  # tokens of prompts in a step from which it teaches at the whole rate
FORGET: Final = 0.995  # a step, of the most tokens of prompts that one was seen to take
LENGTH_RATE: Final = 0.05  # how fast the usual length of an answer is followed
FASTEST, SLOWEST = 1e-7, 1.0  # seconds of one token of a prompt that are believed
PREFILL: Final = 0.002  # seconds, before anything is known
DECODE: Final = 0.02
SIXTEEN: Final = 3.5  # a step of 16 streams against a step of one, before anything is known (a small model on 2 cores)
LENGTH: Final = 100.0  # tokens of an answer, before one has ended


class TokenSpeed:
    """Predicts steps. Pure: the same observations give the same predictions."""

    def __init__(self, prefill: float = 0.0, decode: Mapping[int, float] | None = None) -> None:
        """What was measured before: tokens of prompts per second (0: nothing was), streams -> seconds of a step."""
        points = sorted((streams, seconds) for streams, seconds in (decode or {}).items() if seconds > 0)
        if len(points) < 2:
            one = points[0][1] / points[0][0] if points else DECODE
            points = [(1, one), (16, SIXTEEN * one)]
        self._decode = LatencyModel(points)
        self._prefill = 1.0 / prefill if prefill > 0 else PREFILL
        self.length = LENGTH  # tokens of a usual answer
        self.answers = 0  # that have ended
        self._chunk = 0.0  # tokens of prompts that a step takes where there are many

    def observe(self, prefill: int, streams: int, seconds: float) -> None:
        """A step computed `prefill` tokens of prompts and one round of `streams` streams in `seconds`."""
        if seconds <= 0.0:
            return
        if not prefill:
            if streams:
                self._decode.observe(streams, seconds)
            return
        self._chunk = max(float(prefill), self._chunk * FORGET)
        rest = seconds - (self._decode.predict(streams) if streams else 0.0)
        each = max(rest, 0.1 * seconds) / prefill
        rate = RATE * min(1.0, prefill / FULL)
        each = min(max(each, self._prefill / 8, FASTEST), self._prefill * 8, SLOWEST)
        self._prefill += rate * (each - self._prefill)

    def ended(self, tokens: int) -> None:
        """An answer of `tokens` tokens came to its own end."""
        self.answers += 1
        self.length += max(LENGTH_RATE, 1.0 / (self.answers + 1)) * (tokens - self.length)

    def step(self, streams: int) -> float:
        """Seconds of a step in which `streams` streams decode."""
        return self._decode.predict(streams) if streams > 0 else 0.0

    def prefill(self, tokens: int) -> float:
        """Seconds that `tokens` tokens of prompts add."""
        return self._prefill * tokens

    def first_token(self, tokens: int, streams: int) -> float:
        """Seconds until `tokens` tokens of prompts are computed and one is made, beside `streams` streams that decode
        in every step."""
        return self.prefill(tokens) + self.chunks(tokens) * self.step(streams) + self.step(1)

    def chunks(self, tokens: int) -> int:
        """Steps in which `tokens` tokens of prompts are computed."""
        return math.ceil(tokens / self._chunk) if self._chunk else min(1, tokens)

    def split(self, prefill: int, decode: int, streams: int, seconds: float) -> tuple[float, float]:
        """(seconds of each token of a prompt, seconds of each decoded token) of a step that took `seconds`: what it is
        made of, by what both are believed to take; they add up to `seconds`."""
        believed_prefill = self.prefill(prefill)
        believed_decode = self.step(streams) if decode else 0.0
        believed = believed_prefill + believed_decode
        if not believed:
            return 0.0, 0.0
        factor = seconds / believed
        return (
            believed_prefill * factor / prefill if prefill else 0.0,
            believed_decode * factor / decode if decode else 0.0,
        )

    def points(self) -> list[tuple[int, float]]:
        """(streams, seconds of a step), ascending."""
        return self._decode.points()
