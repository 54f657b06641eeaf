"""How likely a request's own prompt was: collected over the chunks of its prefill."""

from __future__ import annotations

from collections.abc import Sequence

from pelton.runtimes.openvino.sampler import Floats, logprobs
from pelton.runtimes.step_engine import TokenLogprobs


class PromptScores:
    """One request's. A prompt that is computed twice, after a preemption, is scored once."""

    def __init__(self, prompt: Sequence[int], most: int) -> None:
        self._prompt, self._most = prompt, most
        self._entries: list[TokenLogprobs | None] = [None]  # nothing predicts the first token

    def rows(self, start: int, count: int) -> range:
        """Which of the positions `start .. start + count`, counted from the first, predict a token that is not scored."""
        first = max(len(self._entries) - 1, start)
        return range(first - start, max(first, min(start + count, len(self._prompt) - 1)) - start)

    def take(self, logits: Floats) -> None:
        """The logits of those rows."""
        at = len(self._entries)
        self._entries.extend(logprobs(logits, self._prompt[at : at + len(logits)], [self._most] * len(logits)))

    def result(self) -> tuple[TokenLogprobs | None, ...]:
        if len(self._entries) != len(self._prompt):
            raise AssertionError("a token was drawn before the prompt was computed")
        return tuple(self._entries)
