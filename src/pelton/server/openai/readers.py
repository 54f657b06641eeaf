"""What a model wrote, told apart: its thoughts, its answer, its calls of tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pelton.language.reasoning import Thought, ThoughtParser
from pelton.language.tool_parser import CallPiece, Piece, ToolParser
from pelton.server.openai.run import Choice

if TYPE_CHECKING:
    from pelton.server.openai.chat import Chat

Json = dict[str, Any]
Part = Piece | Thought


@dataclass(slots=True)
class _Reader:
    """Of one choice. `thought_tokens`: tokens of the output up to the end of its thoughts."""

    thoughts: ThoughtParser | None
    tools: ToolParser | None
    thought: list[str] = field(default_factory=list)
    thought_tokens: int = 0


class Readers:
    """One for each choice of a chat."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._schemas = {tool.name: tool.parameters or {} for tool in chat.tools.functions if chat.tools.names}
        self._plain = not self._schemas and chat.marks is None
        self._of: dict[int, _Reader] = {}

    def push(self, choice: Choice, text: str) -> Sequence[Part]:
        """What is certain now."""
        if self._plain:
            return (text,)
        reader = self._of.get(choice.index) or self._begun(choice.index)
        if reader.thoughts is None:
            return self._answer(reader, choice, text)
        was_thinking = reader.thoughts.thinking
        parts = self._told(reader, choice, reader.thoughts.push(text))
        if was_thinking or reader.thoughts.thinking:
            reader.thought_tokens = choice.completion_tokens
        return parts

    def finish(self, choice: Choice) -> Sequence[Part]:
        """The rest."""
        reader = self._of.get(choice.index)
        if reader is None:
            return ()
        parts = self._told(reader, choice, reader.thoughts.finish()) if reader.thoughts is not None else []
        if reader.tools is not None and (self._chat.tools.parallel or not reader.tools.calls):
            parts += reader.tools.finish()
        return parts

    def calls(self, choice: Choice) -> list[Json]:
        """All calls, as a whole answer has them. One that the model did not write to its end is text, unless it was cut."""
        tools = self._tools(choice)
        made = (
            [one for one in tools.calls if one.complete or choice.finish_reason != "stop"] if tools is not None else []
        )
        return [call_of(one.id, one.name, one.arguments) for one in made[: None if self._chat.tools.parallel else 1]]

    def broken(self, choice: Choice) -> str:
        """What is text of a whole answer, because it is no whole call."""
        tools = self._tools(choice)
        if tools is None or choice.finish_reason != "stop":
            return ""
        return "".join(one.raw for one in tools.calls if not one.complete)

    def thought(self, choice: Choice) -> str:
        """All thoughts."""
        reader = self._of.get(choice.index)
        return "".join(reader.thought) if reader is not None else ""

    def thought_tokens(self) -> int:
        """Of all choices."""
        return sum(reader.thought_tokens for reader in self._of.values())

    def reason(self, choice: Choice) -> str:
        """`finish_reason`."""
        tools = self._tools(choice)
        if tools is None or not any(one.complete for one in tools.calls) or choice.finish_reason != "stop":
            return choice.finish_reason
        return "function_call" if self._chat.legacy else "tool_calls"

    def _begun(self, index: int) -> _Reader:
        chat = self._chat
        reader = self._of[index] = _Reader(
            ThoughtParser(chat.marks, chat.inside) if chat.marks is not None else None,
            ToolParser(chat.language.card.tool_style, self._schemas) if self._schemas else None,
        )
        return reader

    def _tools(self, choice: Choice) -> ToolParser | None:
        reader = self._of.get(choice.index)
        return reader.tools if reader is not None else None

    def _told(self, reader: _Reader, choice: Choice, parts: Sequence[str | Thought]) -> list[Part]:
        told: list[Part] = []
        for part in parts:
            if isinstance(part, str):
                told += self._answer(reader, choice, part)
            elif self._chat.ask.include_reasoning:
                reader.thought.append(part.text)
                told.append(part)
        return told

    def _answer(self, reader: _Reader, choice: Choice, text: str) -> list[Piece]:
        tools = reader.tools
        if tools is None:
            return [text]
        pieces = tools.push(text)
        if not self._chat.tools.parallel and tools.calls and tools.calls[0].complete:
            choice.end("stop")
            return _first_call(pieces)
        return pieces


def _first_call(pieces: Sequence[Piece]) -> list[Piece]:
    """What comes up to the end of the first call."""
    kept: list[Piece] = []
    called = False
    for piece in pieces:
        if piece.index > 0 if isinstance(piece, CallPiece) else called:
            break
        called = isinstance(piece, CallPiece)
        kept.append(piece)
    return kept


def call_of(call_id: str, name: str, arguments: str) -> Json:
    """A call as chat writes it."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
