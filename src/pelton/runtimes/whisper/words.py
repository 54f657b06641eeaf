"""The times of words: which token the decoder wrote while it looked where (dynamic time warping over its attention)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from pelton.packages.speech import Word
from pelton.runtimes.whisper.vocabulary import SECONDS, Vocabulary


class Aligned(msgspec.Struct):
    """`path`: (token, place in time), both ascending; `chances`: probability of each token."""

    tokens: list[int]
    path: Sequence[tuple[int, ...]]
    chances: Sequence[float]


_LAST: Final = -1


def words_of(aligned: Aligned, vocabulary: Vocabulary, language: str) -> list[tuple[int, Word]]:
    """(number of its first token, word), with times in seconds from the beginning of what was decoded."""
    begins: dict[int, float] = {}
    for token, place in aligned.path:
        begins.setdefault(token, place * SECONDS)
    if not begins:
        return []
    end = aligned.path[_LAST][1] * SECONDS
    words: list[tuple[int, Word]] = []
    at = 0
    for text, count in vocabulary.words(aligned.tokens, language):
        start = begins.get(at, end)
        stop = max(start, begins.get(at + count, end))
        chances = aligned.chances[at : at + count]
        chance = sum(chances) / len(chances) if chances else 0.0
        words.append((at, Word(text, start, stop, chance)))
        at += count
    return words
