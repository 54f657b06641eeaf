"""Speculation without a draft model: guess that what followed these words before follows them again. Pure.

Pays where the output repeats the input (extraction, editing, code). A sequence that guesses must wait for its own
tokens (no overlap with the next step), so after several steps without an accepted guess it pauses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_PATIENCE = 4  # steps in a row in which no guess was found or none was accepted ...
_PAUSE = 32  # ... and then so many tokens without trying


def propose(
    tokens: Sequence[int], count: int, longest: int = 4, shortest: int = 2, window: int = 4096
) -> tuple[int, ...]:
    """Up to `count` tokens that followed the last occurrence of the final n-gram, trying longer n-grams first."""
    end = len(tokens)
    floor = max(0, end - window)
    for n in range(min(longest, end - 1), shortest - 1, -1):
        tail = tuple(tokens[end - n :])
        first = tail[0]
        for start in range(end - n - 1, floor - 1, -1):
            if tokens[start] == first and tuple(tokens[start : start + n]) == tail:
                return tuple(tokens[start + n : min(start + n + count, end)])
    return ()


@dataclass(slots=True)
class LookupState:
    """One sequence's record of guesses: how often they held, and whether to go on guessing."""

    guessed: int = 0
    accepted: int = 0
    fruitless: int = 0
    resume_at: int = 0  # output length from which to guess again

    def active(self, output_length: int) -> bool:
        return output_length >= self.resume_at

    def record(self, guessed: int, accepted: int, output_length: int) -> None:
        self.guessed += guessed
        self.accepted += accepted
        self.fruitless = 0 if accepted else self.fruitless + 1
        if self.fruitless >= _PATIENCE:
            self.fruitless = 0
            self.resume_at = output_length + _PAUSE
