"""Calls of tools out of the text of a running generation, piece by piece as the OpenAI API streams them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from pelton.language.card import ToolStyle
from pelton.language.tools import MARKERS

_CLOSERS: Final[Mapping[ToolStyle, tuple[str, ...]]] = {
    "hermes": ("</tool_call>",),
    "llama3": (";", ",", "]", "<|eom_id|>"),
    "mistral": ("]", ","),
    "json": ("```", "]", ","),
}
_NAME_KEYS: Final = ("name", "function")
_ARGUMENT_KEYS: Final = ("arguments", "parameters")
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
    """A call so far. `arguments` is JSON as the model wrote it; `complete`: to its end."""

    id: str
    name: str
    arguments: str = ""
    complete: bool = False


Piece = str | CallPiece


class ToolParser:
    """Text in, text and pieces of calls out. What turns out to be no call of an offered tool comes out as text.

    parser = ToolParser(card.tool_style, names)
    for piece in parser.push(text): ...
    for piece in parser.finish(): ...
    parser.calls                        # complete once `finish` was called
    """

    def __init__(self, style: ToolStyle, names: Collection[str], new_id: Callable[[], str] | None = None) -> None:
        self.calls: list[ToolCall] = []
        self._style = style
        self._names = names
        self._marker = MARKERS[style]
        self._closers = _CLOSERS[style]
        self._new_id = new_id or (_short_id if style == "mistral" else _call_id)
        self._buffer = ""
        self._raw = ""  # what was read of a call whose name is not known yet
        self._call: _CallReader | None = None
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
        at = self._buffer.find(self._marker) if self._marker else -1
        if at >= 0:
            self._say(self._buffer[:at])
            self._begin(self._marker, self._buffer[at + len(self._marker) :])
            return True
        keep = _overlap(self._buffer, self._marker)
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
        if not rest or any(x.startswith(rest) for x in (*self._closers, self._marker)):
            self._buffer = rest
            return False
        self._after = False
        self._buffer = rest
        if self._style != "hermes" and rest.startswith("{"):
            self._begin("", rest)
        return True

    def _begin(self, raw: str, rest: str) -> None:
        self._raw, self._buffer = raw, rest
        self._call = _CallReader(self._style == "mistral")

    def _read_call(self) -> bool:
        call = self._call
        if call is None:
            return True
        named = call.named
        used = call.feed(self._buffer)
        if not named:
            self._raw += self._buffer[:used]
        self._buffer = self._buffer[used:]
        if call.failed or (call.named and call.name not in self._names):
            self._not_a_call()
            return True
        if call.named and not named:
            self.calls.append(ToolCall(self._new_id(), call.name))
            self._out.append(CallPiece(len(self.calls) - 1, self.calls[-1].id, call.name))
        if call.named and (arguments := call.take()):
            self.calls[-1].arguments += arguments
            self._out.append(CallPiece(len(self.calls) - 1, arguments=arguments))
        if call.done:
            self.calls[-1].complete = True
            self._call, self._after = None, True
        return bool(self._buffer)

    def _not_a_call(self) -> None:
        self._call = None
        if self.calls and not self.calls[-1].complete:
            return  # its pieces are out; what follows is text
        self._say(self._raw)
        self._raw = ""

    def _say(self, text: str) -> None:
        if text:
            self._out.append(text)


class _CallReader:
    """Reads `{"name": ..., "arguments": {...}}` character by character, in any order of its fields.

    `named_first`: Mistral's `name[ARGS]{...}` is read as well."""

    def __init__(self, named_first: bool) -> None:
        self.name = ""
        self.named = self.done = self.failed = False
        self._named_first = named_first
        self._phase: Callable[[str], None] = self._open
        self._key = ""
        self._value = ""  # of a field that is no arguments, or of arguments written as a string
        self._arguments = ""
        self._any = False  # arguments were there
        self._depth = 0
        self._string = self._escaped = False
        self._streams = False  # the value is the arguments' object: it goes out as it comes
        self._ends_with_value = False

    def feed(self, text: str) -> int:
        """Reads; how many characters belonged to the call."""
        for at, character in enumerate(text):
            self._phase(character)
            if self.failed or self.done:
                return at + 1
        return len(text)

    def take(self) -> str:
        """The arguments that came since the last time."""
        out, self._arguments = self._arguments, ""
        return out

    def _open(self, character: str) -> None:
        if character == "{":
            self._phase = self._field
        elif self._named_first and character not in "[,]" and not character.isspace():
            self._phase = self._first_name
            self._value = character
        elif not character.isspace() and character not in "[,":
            self.failed = True

    def _first_name(self, character: str) -> None:
        if character != "{":
            self._value += character
            self.failed = len(self._value) > 80
            return
        self.name, self.named = self._value.partition("[")[0].strip(), True
        self._key, self._ends_with_value = "arguments", True
        self._phase = self._inside
        self._begin_value(character)

    def _field(self, character: str) -> None:
        if character == '"':
            self._key, self._escaped = "", False
            self._phase = self._in_key
        elif character == "}":
            self._end()
        elif not character.isspace() and character != ",":
            self.failed = True

    def _in_key(self, character: str) -> None:
        if character == '"' and not self._escaped:
            self._phase = self._colon
            return
        self._escaped = character == "\\" and not self._escaped
        self._key += character
        self.failed = len(self._key) > 80

    def _colon(self, character: str) -> None:
        if character == ":":
            self._phase = self._before_value
        elif not character.isspace():
            self.failed = True

    def _before_value(self, character: str) -> None:
        if not character.isspace():
            self._phase = self._inside
            self._begin_value(character)

    def _begin_value(self, character: str) -> None:
        self._depth, self._string, self._escaped, self._value = 0, False, False, ""
        self._streams = self._key in _ARGUMENT_KEYS and character == "{"
        self._any = self._any or self._streams
        self._inside(character)

    def _inside(self, character: str) -> None:
        """Inside of a field's value."""
        if self._string:
            self._keep(character)
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._string = False
                self._end_value(not self._depth)
            return
        if not self._depth and character in ",}":  # after a number, true, false, null
            self._end_value(True)
            self._field(character)
            return
        self._keep(character)
        if character == '"':
            self._string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self._end_value(not self._depth)

    def _keep(self, character: str) -> None:
        if self._streams:
            self._arguments += character
        else:
            self._value += character
            self.failed = self.failed or len(self._value) > 1_000_000

    def _end_value(self, ended: bool) -> None:
        if not ended:
            return
        self._phase = self._field
        if not self._streams:
            self._take_value()
        if self._ends_with_value:
            self._end()

    def _take_value(self) -> None:
        try:
            value = json.loads(self._value)
        except (ValueError, RecursionError):
            self.failed = not self.named
            return
        if self._key in _NAME_KEYS and isinstance(value, str) and not self.named:
            self.name, self.named = value, True
        elif self._key in _ARGUMENT_KEYS and value is not None:
            # some models write the arguments as JSON in a string
            self._arguments += value if isinstance(value, str) else json.dumps(value)
            self._any = True

    def _end(self) -> None:
        if not self.named:
            self.failed = True
            return
        if not self._any:
            self._arguments += "{}"
        self.done = True


def _overlap(text: str, marker: str) -> int:
    """How many characters at the end of the text may begin the marker."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id() -> str:
    """Mistral's templates accept nine letters or digits only."""
    return secrets.token_hex(5)[:9]
