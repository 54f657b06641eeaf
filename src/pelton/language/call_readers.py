"""Readers of one call of a tool: as JSON, and between tags."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

_NAME_KEYS: Final = ("name", "function")
_ARGUMENT_KEYS: Final = ("arguments", "parameters")
_LONGEST_NAME: Final = 80
_LONGEST_VALUE: Final = 1_000_000

Schemas = Mapping[str, Mapping[str, Any]]  # of arguments, by the name of the function


class CallReader(Protocol):
    """Reads one call. `named`: its name is known; `failed`: it is no call; `done`: it is read to its end."""

    @property
    def name(self) -> str: ...
    @property
    def named(self) -> bool: ...
    @property
    def done(self) -> bool: ...
    @property
    def failed(self) -> bool: ...

    def feed(self, text: str) -> str:
        """Reads; what does not belong to the call comes back."""

    def take(self) -> str:
        """The arguments, as JSON, that came since the last time."""


class JsonReader:
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
        self._foreign = False  # the last character is not the call's

    def feed(self, text: str) -> str:
        for at, character in enumerate(text):
            self._phase(character)
            if self.failed or self.done:
                return text[at + (not self._foreign) :]
        return ""

    def take(self) -> str:
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
            self.failed = len(self._value) > _LONGEST_NAME
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
            self._foreign = self.done = self.named and self._any  # its last brace is missing
            self.failed = not self.done

    def _in_key(self, character: str) -> None:
        if character == '"' and not self._escaped:
            self._phase = self._colon
            return
        self._escaped = character == "\\" and not self._escaped
        self._key += character
        self.failed = len(self._key) > _LONGEST_NAME

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
            self.failed = self.failed or len(self._value) > _LONGEST_VALUE

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


@dataclass(frozen=True, slots=True)
class Tags:
    """How a call is written with tags. `after_name`: what ends the name."""

    call: str
    after_name: tuple[str, ...]
    key: str
    after_key: str
    value: str
    after_value: str
    after_call: str


FUNCTION_TAGS: Final = Tags("<function=", (">",), "<parameter=", ">", "", "</parameter>", "</function>")
KEY_TAGS: Final = Tags(
    "", ("\n", "<arg_key>", "</tool_call>"), "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>"
)  # fmt: skip


class TagReader:
    """Reads `<function=name><parameter=key>value</parameter></function>` (Qwen3-Coder), or
    `name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>` (GLM).

    Values are plain text; what they are is said by the schema of the arguments (`schemas`, by name of function)."""

    def __init__(self, tags: Tags, schemas: Schemas) -> None:
        self.name = ""
        self.named = self.done = self.failed = False
        self._tags = tags
        self._schemas = schemas
        self._buffer = ""
        self._read: Callable[[], bool] = self._head
        self._key = ""
        self._out = ""
        self._any = False

    def feed(self, text: str) -> str:
        self._buffer += text
        while self._buffer and self._read():
            pass
        return self._buffer if self.done or self.failed else ""

    def take(self) -> str:
        out, self._out = self._out, ""
        return out

    def _head(self) -> bool:
        """The name. False, here and below: more is needed."""
        start = self._buffer.lstrip()
        mark = self._tags.call
        if not start.startswith(mark):
            self.failed = not mark.startswith(start)
            return False
        ends = [at for end in self._tags.after_name if (at := start.find(end, len(mark))) >= 0]
        if not ends:
            self.failed = len(start) > len(mark) + _LONGEST_NAME
            return False
        self.name = start[len(mark) : min(ends)].strip().strip("\"'")
        self.named, self.failed = bool(self.name), not self.name
        if self.failed:
            return False
        self._buffer = start[min(ends) :].removeprefix(">")
        self._read = self._between
        return True

    def _between(self) -> bool:
        """The next key, or the end of the call."""
        self._buffer = self._buffer.lstrip()
        tags = self._tags
        if self._buffer.startswith(tags.key):
            at = self._buffer.find(tags.after_key)
            if at < 0:
                return False
            self._key = self._buffer[len(tags.key) : at].strip().strip("\"'")
            self._buffer = self._buffer[at + len(tags.after_key) :]
            self._read = self._value
            return True
        if any(mark.startswith(self._buffer) and mark != self._buffer for mark in (tags.key, tags.after_call)):
            return False
        self._buffer = self._buffer.removeprefix(tags.after_call)
        self._out += "}" if self._any else "{}"
        self.done = True
        return False

    def _value(self) -> bool:
        tags = self._tags
        at = self._buffer.find(tags.after_value)
        if at < 0:
            return False
        text = self._buffer[:at]
        self._buffer = self._buffer[at + len(tags.after_value) :]
        if tags.value:
            text = text.partition(tags.value)[2]
        text = text.removeprefix("\n").removesuffix("\n")
        value = value_of(text, self._schema())
        self._out += f"{', ' if self._any else '{'}{json.dumps(self._key)}: {json.dumps(value, ensure_ascii=False)}"
        self._any = True
        self._read = self._between
        return True

    def _schema(self) -> Any:
        properties = self._schemas.get(self.name, {}).get("properties")
        return properties.get(self._key) if isinstance(properties, Mapping) else None


class AnyReader:
    """Reads what begins as JSON as JSON, what begins as tags as tags."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._inner: CallReader | None = None

    @property
    def name(self) -> str:
        return self._inner.name if self._inner is not None else ""

    @property
    def named(self) -> bool:
        return self._inner is not None and self._inner.named

    @property
    def done(self) -> bool:
        return self._inner is not None and self._inner.done

    @property
    def failed(self) -> bool:
        return self._inner is not None and self._inner.failed

    def feed(self, text: str) -> str:
        if self._inner is None:
            text = text.lstrip()
            if not text:
                return ""
            self._inner = self._of(text[0])
        return self._inner.feed(text)

    def take(self) -> str:
        return self._inner.take() if self._inner is not None else ""

    def _of(self, first: str) -> CallReader:
        if first == "<" or first.isalpha() or first == "_":
            return TagReader(FUNCTION_TAGS if first == "<" else KEY_TAGS, self._schemas)
        return JsonReader(False)


def value_of(text: str, schema: Any) -> Any:
    """An argument that was written as text, as the type that its schema names. What does not fit stays text."""
    kinds = _kinds(schema, 0)
    if not kinds or kinds == {"string"}:
        return text
    told = {"True": True, "False": False, "None": None}.get(text.strip(), text)
    if told is text:
        try:
            told = json.loads(text, parse_constant=str)
        except (ValueError, RecursionError):
            return text
    return told if _kind(told) & kinds else text


def _kind(value: Any) -> set[str]:
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    return {int: {"number", "integer"}, str: {"string"}, list: {"array"}, dict: {"object"}}.get(type(value), {"null"})


def _kinds(schema: Any, depth: int) -> set[str]:
    """The types that a schema names; of one that says nothing of types, all but text."""
    if not isinstance(schema, Mapping) or depth > 8:
        return set()
    named = schema.get("type")
    kinds = {named} if isinstance(named, str) else set(named) if isinstance(named, list) else set()
    values = [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else [])]
    for value in values if not kinds else ():
        kinds |= _kind(value)
    for name in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(name) or ():
            kinds |= _kinds(part, depth + 1)
    return kinds or {"array", "object", "number", "integer", "boolean", "null"}
