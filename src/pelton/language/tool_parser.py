"""Calls of tools out of the text of a running generation, piece by piece as the OpenAI API streams them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pelton.language.call_readers import AnyReader, CallReader, JsonReader, Schemas
from pelton.language.card import ToolStyle
from pelton.language.reasoning import overlap
from pelton.language.tools import MARKERS

_CLOSERS: Final[Mapping[ToolStyle, tuple[str, ...]]] = {
    "hermes": ("</tool_call>", "]", ","),  # some write a list
    "tags": ("</tool_call>", "]", ","),
    "llama3": (";", ",", "]", "<|eom_id|>"),
    "mistral": ("]", ","),
    "json": ("```", "]", ","),
}
_TAGGED: Final = ("hermes", "tags")  # between <tool_call> and </tool_call>, as JSON or with tags
_BARE_TAG: Final = "<function="  # some leave <tool_call> out
_OPENERS: Final = ("{", "[", "```json", "```")


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A part of a call. The first piece of a call has its `id` and `name`, the others a part of its arguments."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class ToolCall:
    """A call so far. `arguments` is what the model wrote; `complete`: to its end, and it is a JSON object. `raw`: all that
    was written of the call."""

    id: str
    name: str
    arguments: str = ""
    complete: bool = False
    raw: str = ""


Piece = str | CallPiece


class ToolParser:
    """Text in, text and pieces of calls out. What turns out to be no call of an offered tool comes out as text.

    parser = ToolParser(card.tool_style, schemas)
    for piece in parser.push(text): ...
    for piece in parser.finish(): ...
    parser.calls                        # complete once `finish` was called
    """

    def __init__(self, style: ToolStyle, schemas: Schemas, new_id: Callable[[], str] | None = None) -> None:
        """`schemas`: of the arguments of each tool that is offered, by its name."""
        self.calls: list[ToolCall] = []
        self._style = style
        self._schemas = schemas
        self._marker = MARKERS[style]
        self._markers = (self._marker, _BARE_TAG) if style == "tags" else (self._marker,) if self._marker else ()
        self._closers = _CLOSERS[style]
        self._new_id = new_id or (_short_id if style == "mistral" else _call_id)
        self._buffer = ""
        self._raw = ""  # what was read of a call whose name is not known yet
        self._call: CallReader | None = None
        self._bare = style in ("json", "llama3")  # the text may begin with a call
        self._after = False  # a call was just read: white space and closing marks are no text
        self._out: list[Piece] = []

    def push(self, text: str) -> list[Piece]:
        """What became certain with this text."""
        self._buffer += text
        while self._buffer and (self._read_call() if self._call else self._read_text()):
            pass
        out, self._out = self._out, []
        return out

    def finish(self) -> list[Piece]:
        """The rest: a call that was cut stays as far as it came."""
        if self._call is not None and not self._call.named:
            self._not_a_call()
        elif self._call is not None:
            self._settle()
        text = self._buffer.strip() if self._after else self._buffer
        self._buffer, self._call = "", None
        if text:
            self._out.append(text)
        out, self._out = self._out, []
        return out

    def _read_text(self) -> bool:
        """Text up to the next call; False where more is needed."""
        if self._after and not self._skip_closers():
            return False
        if self._call is not None:
            return True
        if self._bare:
            return self._read_start()
        found = [(at, mark) for mark in self._markers if (at := self._buffer.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            self._say(self._buffer[:at])
            mark = "" if mark == _BARE_TAG else mark  # it is part of the call
            self._begin(mark, self._buffer[at + len(mark) :])
            return True
        keep = max((overlap(self._buffer, mark) for mark in self._markers), default=0)
        cut = len(self._buffer) - keep
        self._say(self._buffer[:cut])
        self._buffer = self._buffer[cut:]
        return False

    def _read_start(self) -> bool:
        """Whether the text begins with a call, as far as one can tell."""
        start = self._buffer.lstrip()
        markers = (*_OPENERS, self._marker) if self._marker else _OPENERS
        if not start or (
            len(start) < max(map(len, markers)) and any(x.startswith(start) and x != start for x in markers)
        ):
            return False
        self._bare = False
        opener = next((x for x in sorted(markers, key=len, reverse=True) if start.startswith(x)), None)
        if opener is not None:
            size = len(self._buffer) - len(start) + (0 if opener == "{" else len(opener))
            self._begin(self._buffer[:size], self._buffer[size:])
        return True

    def _skip_closers(self) -> bool:
        """After a call: its closing marks are skipped, another call or text begins. False where more is needed."""
        while True:
            rest = self._buffer.lstrip()
            closer = next((x for x in self._closers if rest.startswith(x)), None)
            if closer is None:
                break
            self._buffer = rest[len(closer) :]
        if not rest or any(x.startswith(rest) for x in (*self._closers, *self._markers)):
            self._buffer = rest
            return False
        self._after = False
        self._buffer = rest
        if rest.startswith("{"):
            self._begin("", rest)
        return True

    def _begin(self, raw: str, rest: str) -> None:
        self._raw, self._buffer = raw, rest
        tagged = self._style in _TAGGED
        self._call = AnyReader(self._schemas) if tagged else JsonReader(self._style == "mistral")

    def _read_call(self) -> bool:
        call = self._call
        if call is None:
            return True
        named = call.named
        rest = call.feed(self._buffer)
        raw = self._raw + self._buffer
        self._raw = raw[: len(raw) - len(rest)]
        self._buffer = rest
        if (call.failed and not named) or (call.named and call.name not in self._schemas):
            self._not_a_call()
            return True
        if call.named and not named:
            self.calls.append(ToolCall(self._new_id(), call.name))
            self._out.append(CallPiece(len(self.calls) - 1, self.calls[-1].id, call.name))
        if call.named and (arguments := call.take()):
            self.calls[-1].arguments += arguments
            self._out.append(CallPiece(len(self.calls) - 1, arguments=arguments))
        if call.done or call.failed:
            self._settle()
            self._call, self._after = None, call.done
        return bool(self._buffer)

    def _settle(self) -> None:
        """The call that is told has come to its end."""
        told = self.calls[-1]
        told.raw, self._raw = self._raw, ""
        told.complete = _is_object(told.arguments)

    def _not_a_call(self) -> None:
        self._call = None
        self._say(self._raw)
        self._raw = ""

    def _say(self, text: str) -> None:
        if text:
            self._out.append(text)


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id() -> str:
    """Mistral's templates accept nine letters or digits only."""
    return secrets.token_hex(5)[:9]
