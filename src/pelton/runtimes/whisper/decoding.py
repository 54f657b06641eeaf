"""Windows in, segments out: encode, decode, judge, decode again where the result fails the model's own checks.

The rules are those of the paper (Radford et al. 2022, section 4.5) with its thresholds: a text that repeats itself or
that the model itself holds for unlikely is decoded again at a higher temperature; a window that is probably no speech, and
whose words are unlikely, is silence. Rows of different callers share every call of the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from pelton.packages.speech import FRAMES, Heard, Order, Segment, Word
from pelton.runtimes.whisper.segments import FRAME, Piece, compression_ratio, cut
from pelton.runtimes.whisper.vocabulary import Vocabulary
from pelton.runtimes.whisper.words import Aligned, words_of
from pelton.types import Array

REPEATS: Final = 2.4  # compression ratio
UNLIKELY: Final = -1.0  # mean log probability of the tokens
NO_SPEECH: Final = 0.6
SURELY_NONE: Final = 0.9  # so sure that words need not be unlikely: on noise, small models like to hear a polite "you"
PROMPT_TOKENS: Final = 223  # half of what the decoder may hold, less one
MOST: Final = 448  # tokens of prompt and answer
ROUNDS: Final = 8  # times that one window is decoded on from where it stopped
REST: Final = 10  # frames: less than a tenth of a second is not worth a round


class Checks(msgspec.Struct, frozen=True):
    """`beam`: hypotheses that are followed at temperature 0; `temperatures`: tried one after the other."""

    beam: int = 1
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class Attempt(msgspec.Struct):
    """One decoding of one row."""

    tokens: list[int]
    likely: float
    no_speech: float
    ratio: float
    heat: float

    @property
    def silent(self) -> bool:
        return self.no_speech > NO_SPEECH and (self.likely < UNLIKELY or self.no_speech > SURELY_NONE)

    @property
    def fails(self) -> bool:
        return not self.silent and (self.ratio > REPEATS or self.likely < UNLIKELY)


class Row:
    """One window on its way. `seek`: frames of it that are done."""

    def __init__(self, features: Array, order: Order, prompt: list[int]) -> None:
        self.features = features
        self.order = order
        self.prompt = prompt
        self.seek = 0
        self.rounds = 0
        self.segments: list[Segment] = []

    @property
    def left(self) -> int:
        return self.order.frames - self.seek

    @property
    def done(self) -> bool:
        if self.order.probe:
            return self.rounds > 0
        return self.order.silent or self.left <= (REST if self.seek else 0) or self.rounds >= ROUNDS

    def rest(self) -> Array:
        """What is still to be decoded, as a window."""
        if not self.seek:
            return self.features
        window = np.zeros_like(self.features)
        window[:, : FRAMES - self.seek] = self.features[:, self.seek :]
        return window

    def heard(self) -> Heard:
        segments = [] if self.order.probe else self.segments
        return Heard(self.order.start, self.order.frames, self.order.language, segments)


class Decoder:
    """Drives a `ctranslate2.models.Whisper`. Keeps nothing between calls; safe from several threads."""

    def __init__(self, library: Any, model: Any, vocabulary: Vocabulary, checks: Checks) -> None:
        self._view = library.StorageView.from_array
        self._model = model
        self._vocabulary = vocabulary
        self._checks = checks

    def row(self, features: Array, order: Order) -> Row:
        prompt = self._vocabulary.encode(order.prompt)[-PROMPT_TOKENS:] if order.prompt else []
        return Row(features, order, [self._vocabulary.before, *prompt] if prompt else [])

    def languages(self, rows: Sequence[Row]) -> list[str]:
        """The most likely language of each window."""
        found = self._model.detect_language(self._view(np.stack([row.features for row in rows])))
        return [str(best[0][0]).strip("<|>") for best in found]

    def round(self, rows: Sequence[Row]) -> None:
        """Decodes every row once, from where it stopped."""
        encoded = np.asarray(self._model.encode(self._view(np.stack([row.rest() for row in rows])), to_cpu=True))
        attempts = self._attempts(rows, encoded)
        for i, (row, attempt) in enumerate(zip(rows, attempts, strict=True)):
            row.rounds += 1
            if attempt.silent:
                row.seek = row.order.frames
                continue
            pieces, done = cut(attempt.tokens, self._vocabulary.first_time, row.left)
            aligned = self._align(row, encoded[i : i + 1], pieces) if row.order.words else None
            self._add(row, attempt, pieces, aligned)
            row.seek += done

    def _attempts(self, rows: Sequence[Row], encoded: Array) -> list[Attempt]:
        """The first decoding of each row that passes, else its best."""
        tried: list[list[Attempt]] = [[] for _ in rows]
        pending = list(range(len(rows)))
        for step in range(len(self._checks.temperatures)):
            groups: dict[tuple[float, int], list[int]] = {}
            for i in pending:
                heat = rows[i].order.temperature or self._checks.temperatures[step]
                groups.setdefault((heat, len(rows[i].prompt)), []).append(i)
            for (heat, _), members in groups.items():
                part = encoded if len(members) == len(rows) else np.ascontiguousarray(encoded[members])
                for i, attempt in zip(members, self._generate([rows[i] for i in members], part, heat), strict=True):
                    tried[i].append(attempt)
            pending = [i for i in pending if tried[i][-1].fails and not rows[i].order.temperature]
            if not pending:
                break
        return [_best(attempts) for attempts in tried]

    def _generate(self, rows: Sequence[Row], encoded: Array, heat: float) -> list[Attempt]:
        how: dict[str, Any] = {"beam_size": self._checks.beam}
        if heat:
            how = {"beam_size": 1, "sampling_topk": 0, "sampling_temperature": heat}
        prompts = [[*row.prompt, *self.steering(row.order)] for row in rows]
        results = self._model.generate(
            self._view(encoded), prompts, max_length=MOST, return_scores=True, return_no_speech_prob=True, **how
        )
        attempts = []
        for result in results:
            tokens = [token for token in result.sequences_ids[0] if token != self._vocabulary.end]
            # the library's score is the mean over the tokens without the end; the checks are meant for all
            likely = result.scores[0] * len(tokens) / (len(tokens) + 1)
            ratio = compression_ratio(self._vocabulary.text(tokens))
            attempts.append(Attempt(tokens, likely, result.no_speech_prob, ratio, heat))
        return attempts

    def steering(self, order: Order) -> list[int]:
        """The tokens that say what is wanted; an English-only model takes none."""
        words = self._vocabulary
        if not words.multilingual:
            return [words.start]
        task = words.translate if order.task == "translate" else words.transcribe
        return [words.start, words.languages[order.language], task]

    def _align(self, row: Row, encoded: Array, pieces: Sequence[Piece]) -> Aligned | None:
        tokens = [token for piece in pieces for token in piece.tokens if token < self._vocabulary.end]
        if not tokens:
            return None
        found = self._model.align(self._view(encoded), self.steering(row.order), [tokens], max(2, row.left))[0]
        return Aligned(tokens, [tuple(pair) for pair in found.alignments], list(found.text_token_probs))

    def _add(self, row: Row, attempt: Attempt, pieces: Sequence[Piece], aligned: Aligned | None) -> None:
        seek = row.order.start + row.seek
        told = words_of(aligned, self._vocabulary, row.order.language) if aligned is not None else []
        at = 0
        for piece in pieces:
            count = sum([token < self._vocabulary.end for token in piece.tokens])
            text = self._vocabulary.text(piece.tokens)
            if text.strip() and piece.end >= piece.start:
                words = [word for place, word in told if at <= place < at + count] if row.order.words else None
                for word in words or ():
                    word.start, word.end = _seconds(seek, word.start), _seconds(seek, word.end)
                row.segments.append(_segment(seek, piece, text, attempt, words))
            at += count


def _segment(seek: int, piece: Piece, text: str, attempt: Attempt, words: list[Word] | None) -> Segment:
    start, end = _seconds(seek, piece.start), _seconds(seek, piece.end)
    judged = attempt.heat, attempt.likely, attempt.ratio, attempt.no_speech
    return Segment(0, seek, start, end, text, piece.tokens, *judged, words)


def _seconds(seek: int, offset: float) -> float:
    return round(seek * FRAME + offset, 2)


def _best(attempts: Sequence[Attempt]) -> Attempt:
    """The last one where it passes, else the likeliest of those that do not repeat themselves."""
    if not attempts[-1].fails:
        return attempts[-1]
    return max(attempts, key=lambda attempt: (attempt.ratio <= REPEATS, attempt.likely))
