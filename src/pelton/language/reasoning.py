"""What a model thinks before it answers, told apart from the answer.

Models write their thoughts between two marks, of which the first may stand at the end of the prompt already: then the
output begins inside of them. Which marks, the chat template says, or a vocabulary that has them as tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pelton.language.tokenizer import Tokenizer

TAIL: Final = 24  # tokens at the end of a prompt that are looked at


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands before and after the thoughts."""

    begin: str
    end: str


@dataclass(frozen=True, slots=True)
class Thought:
    """A part of the thoughts."""

    text: str


KNOWN: Final = (
    Marks("<think>", "</think>"),  # DeepSeek, Qwen, GLM, SmolLM3, Granite, ...
    Marks("[THINK]", "[/THINK]"),  # Mistral
    Marks("<seed:think>", "</seed:think>"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
)


def marks_of(template: str, tokenizer: Tokenizer) -> Marks | None:
    """The marks that a model of this chat template uses; None: it does not tell its thoughts apart."""
    for marks in KNOWN:
        if marks.end in template or tokenizer.id_of(marks.end) is not None:
            return marks
    return None


def opened(marks: Marks, prompt: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether a chat's prompt ends inside of thoughts."""
    return tokenizer.decode(prompt[-TAIL:], special=True).rstrip().endswith(marks.begin)


class ThoughtParser:
    """Text in, text and thoughts out. White space around the thoughts belongs to neither.

    Thoughts stand at the beginning, once. Those that never end are thoughts all the same: an answer never came.
    """

    def __init__(self, marks: Marks, inside: bool = False) -> None:
        """`inside`: the prompt has begun the thoughts."""
        self.thinking = inside
        self._marks = marks
        self._read: Callable[[], bool] = self._start
        self._buffer = ""
        self._first = True  # nothing of the thoughts was told
        self._out: list[str | Thought] = []

    def push(self, text: str) -> list[str | Thought]:
        """What became certain with this text."""
        self._buffer += text
        while self._buffer and self._read():
            pass
        out, self._out = self._out, []
        return out

    def finish(self) -> list[str | Thought]:
        """The rest."""
        rest, self._buffer = self._buffer, ""
        if self.thinking:
            return [Thought(rest.rstrip())] if rest.strip() else []
        return [rest] if rest else []

    def _start(self) -> bool:
        """The first mark, or what else the output begins with. False, here and below: more is needed."""
        start = self._buffer.lstrip()
        mark = self._marks.begin
        if len(start) < len(mark) and mark.startswith(start):
            return False
        if start.startswith(mark):
            self.thinking, self._buffer = True, start[len(mark) :]
        self._read = self._thought if self.thinking else self._answer
        return True

    def _thought(self) -> bool:
        """Thoughts up to their end; white space waits for what follows it."""
        at = self._buffer.find(self._marks.end)
        cut = at if at >= 0 else len(self._buffer) - overlap(self._buffer, self._marks.end)
        said = self._buffer[:cut].rstrip()
        self._buffer = self._buffer[at + len(self._marks.end) if at >= 0 else len(said) :]
        if said:
            self._out.append(Thought(said.lstrip() if self._first else said))
            self._first = False
        if at >= 0:
            self.thinking, self._read = False, self._gap
        return at >= 0

    def _gap(self) -> bool:
        self._buffer = self._buffer.lstrip()
        if self._buffer:
            self._read = self._answer
        return bool(self._buffer)

    def _answer(self) -> bool:
        self._out.append(self._buffer)
        self._buffer = ""
        return False


def overlap(text: str, mark: str) -> int:
    """How many characters at the end of the text may begin the mark."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0
