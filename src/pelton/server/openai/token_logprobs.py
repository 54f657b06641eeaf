"""Log-probabilities as OpenAI writes them: one form for chat, another for completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from pelton.language import Tokenizer
from pelton.runtimes.step_engine import TokenLogprobs
from pelton.server.openai.run import Logged

Json = dict[str, Any]

LEAST: Final = -9999.0  # of what cannot be: JSON has no infinity


def for_chat(tokenizer: Tokenizer, logged: Sequence[Logged], count: int) -> list[Json]:
    """The entries of `logprobs.content`, each with the `count` most likely tokens."""
    return [
        {
            **_entry(tokenizer, one.token, one.logprobs.chosen),
            "top_logprobs": [_entry(tokenizer, token, value) for token, value in one.logprobs.top[:count]],
        }
        for one in logged
    ]


class CompletionLogprobs:
    """`logprobs` of one choice of a completion, filled as its tokens come. Offsets count characters of the text."""

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        self._tokenizer = tokenizer
        self._count = count
        self._offset = 0

    def prompt(self, prompt: Sequence[int], entries: Sequence[TokenLogprobs | None]) -> Json:
        """The tokens of an echoed prompt; nothing predicts the first."""
        return self._of(zip(prompt, entries, strict=True), True)

    def more(self, logged: Sequence[Logged]) -> Json:
        """The next tokens of the output."""
        return self._of(((one.token, one.logprobs) for one in logged), False)

    def _of(self, entries: Iterable[tuple[int, TokenLogprobs | None]], special: bool) -> Json:
        tokenizer = self._tokenizer
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token, entry in entries:
            tokens.append(tokenizer.token_text(token))
            values.append(None if entry is None else max(entry.chosen, LEAST))
            tops.append(None if entry is None else self._top(token, entry))
            offsets.append(self._offset)
            if special or token not in tokenizer.special_ids:
                self._offset += sum(byte & 0xC0 != 0x80 for byte in tokenizer.token_bytes(token))
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _top(self, token: int, entry: TokenLogprobs) -> dict[str, float]:
        """The most likely tokens, and the chosen one beside them."""
        made: dict[str, float] = {}
        for other, value in entry.top[: self._count]:
            made.setdefault(self._tokenizer.token_text(other), max(value, LEAST))
        made.setdefault(self._tokenizer.token_text(token), max(entry.chosen, LEAST))
        return made


def joined(parts: Sequence[Json]) -> Json:
    """Several parts of one choice's `logprobs`, in order."""
    return {
        name: [value for part in parts for value in part[name]]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }


def _entry(tokenizer: Tokenizer, token: int, value: float) -> Json:
    return {
        "token": tokenizer.token_text(token),
        "logprob": max(value, LEAST),
        "bytes": list(tokenizer.token_bytes(token)),
    }
