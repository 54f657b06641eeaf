"""Items of the Responses API: input items as chat messages, and the text of a model as output items with their events."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pelton.language.reasoning import Thought
from pelton.language.tool_parser import CallPiece
from pelton.server.openai.errors import ApiError, invalid, unsupported
from pelton.server.openai.messages import text_of
from pelton.server.openai.readers import Part

Json = dict[str, Any]
Emit = Callable[[str, Json], None]

MESSAGE_FIELDS: Final = frozenset(("type", "role", "content", "id", "status", "phase"))
CALL_FIELDS: Final = frozenset(("type", "id", "call_id", "name", "arguments", "status", "namespace", "caller"))
REASONING_FIELDS: Final = frozenset(("type", "id", "summary", "content", "encrypted_content", "status"))
OUTPUT_FIELDS: Final = frozenset(("type", "id", "call_id", "output", "status", "caller"))


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(24)}"


def items_of(given: str | list[Json], find: Callable[[str], Json | None]) -> list[Json]:
    """The input as items, each with an id; references are replaced by what they refer to (`find`). Raises ApiError."""
    if isinstance(given, str):
        part = {"type": "input_text", "text": given}
        return [{"id": new_id("msg"), "type": "message", "role": "user", "status": "completed", "content": [part]}]
    return [_item(item, f"input[{index}]", find) for index, item in enumerate(given)]


def _item(item: Json, at: str, find: Callable[[str], Json | None]) -> Json:
    fields = {name: value for name, value in item.items() if value is not None}
    kind = fields.get("type", "message" if "role" in fields else "item_reference" if set(fields) == {"id"} else None)
    if kind == "item_reference":
        found = find(str(fields.get("id", "")))
        if found is None:
            raise ApiError(
                f"Item {str(fields.get('id'))[:80]!r} is not kept here (any more).", f"{at}.id", "item_not_found", 404
            )
        return found
    known = {
        "message": MESSAGE_FIELDS, "function_call": CALL_FIELDS, "function_call_output": OUTPUT_FIELDS,
        "reasoning": REASONING_FIELDS,
    }  # fmt: skip
    if not isinstance(kind, str) or kind not in known:
        raise unsupported(
            f"Unsupported value: '{at}.type' is {str(kind)[:60]!r}; messages, calls and reasoning are taken.",
            f"{at}.type",
        )
    for name in fields:
        if name not in known[kind]:
            raise ApiError(f"Unknown parameter: '{at}.{name[:60]}'.", f"{at}.{name[:60]}", "unknown_parameter")
    made = {"id": new_id(_prefix(kind)), **fields, "type": kind}
    if kind == "message":
        made.setdefault("status", "completed")
        if isinstance(made.get("content"), str):
            part = "output_text" if made.get("role") == "assistant" else "input_text"
            more: Json = {"annotations": [], "logprobs": []} if part == "output_text" else {}
            made["content"] = [{"type": part, "text": made["content"], **more}]
    return made


def _prefix(kind: str) -> str:
    return {"message": "msg", "function_call": "fc", "reasoning": "rs"}.get(kind, "fco")


def messages_of(items: Sequence[Json], at: str = "input") -> list[Json]:
    """Items as chat messages. Thoughts go into the assistant's message that follows them, and calls into the one before
    them. Raises ApiError."""
    made: list[Json] = []
    thought: list[str] = []
    for index, item in enumerate(items):
        place = f"{at}[{index}]"
        if item["type"] == "reasoning":
            thought.append(_thought_of(item, place))
            continue
        more: Json = {"reasoning_content": "\n".join(thought)} if any(thought) else {}
        thought.clear()
        if item["type"] == "message":
            more = more if item.get("role") == "assistant" else {}
            made.append({"role": item.get("role"), "content": item.get("content"), **more})
        elif item["type"] == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if made and made[-1]["role"] == "assistant" and not more:
                made[-1].setdefault("tool_calls", []).append(call)
            else:
                made.append({"role": "assistant", "content": None, "tool_calls": [call], **more})
        else:
            output = text_of(item.get("output"), f"{place}.output")
            made.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    if not made:
        raise invalid(f"Invalid value for '{at}': there is no input.", at)
    return made


def _thought_of(item: Json, at: str) -> str:
    """The text of a reasoning item; of one that is encrypted, or summed up, there is none."""
    parts = item.get("content") or []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise invalid(f"Invalid type for '{at}.content': expected an array of parts.", f"{at}.content", "invalid_type")
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))


class Output:
    """The items of one answer, made as its text comes; `emit(type, fields)` is told every event of a stream."""

    def __init__(self, emit: Emit) -> None:
        self.items: list[Json] = []
        self._emit = emit
        self._open: Json | None = None
        self._texts: list[str] = []  # of the open item
        self._logged: list[Json] = []

    def push(self, piece: Part, logprobs: Sequence[Json] = ()) -> None:
        """More of the answer."""
        if isinstance(piece, CallPiece):
            self._call(piece)
        elif isinstance(piece, Thought):
            self._thought(piece.text)
        else:
            self._text(piece, logprobs)

    def finish(self, status: str) -> None:
        """The end. An answer without anything is an empty message."""
        if not self.items:
            self._begin_message()
        self._close(status)

    def _thought(self, text: str) -> None:
        if self._open is None or self._open["type"] != "reasoning":
            self._close("completed")
            item = {"id": new_id("rs"), "type": "reasoning", "status": "in_progress", "summary": [], "content": []}
            self._begin(item)
            self._add_part({"type": "reasoning_text", "text": ""})
        assert self._open is not None
        self._texts.append(text)
        self._emit("response.reasoning_text.delta", {**self._inside(self._open), "delta": text})

    def _text(self, text: str, logprobs: Sequence[Json]) -> None:
        if self._open is None or self._open["type"] != "message":
            if not text.strip() and self.items:
                return  # white space around calls
            self._close("completed")
            self._begin_message()
        assert self._open is not None
        self._texts.append(text)
        self._logged.extend(logprobs)
        self._emit("response.output_text.delta", {**self._inside(self._open), "delta": text, "logprobs": logprobs})

    def _call(self, piece: CallPiece) -> None:
        if piece.id:
            self._close("completed")
            item = {
                "id": new_id("fc"), "type": "function_call", "status": "in_progress", "call_id": piece.id,
                "name": piece.name, "arguments": "",
            }  # fmt: skip
            self._begin(item)
        if piece.arguments and self._open is not None:
            self._texts.append(piece.arguments)
            place = {"item_id": self._open["id"], "output_index": len(self.items) - 1}
            self._emit("response.function_call_arguments.delta", {**place, "delta": piece.arguments})

    def _begin_message(self) -> None:
        item: Json = {
            "id": new_id("msg"),
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        self._begin(item)
        self._add_part({"type": "output_text", "text": "", "annotations": [], "logprobs": []})

    def _add_part(self, part: Json) -> None:
        assert self._open is not None
        self._emit("response.content_part.added", {**self._inside(self._open), "part": part})

    def _inside(self, item: Json) -> Json:
        """The place of the one part of an item."""
        return {"item_id": item["id"], "output_index": len(self.items) - 1, "content_index": 0}

    def _begin(self, item: Json) -> None:
        self._open, self._texts, self._logged = item, [], []
        self.items.append(item)
        self._emit("response.output_item.added", {"output_index": len(self.items) - 1, "item": dict(item)})

    def _close(self, status: str) -> None:
        item, self._open = self._open, None
        if item is None:
            return
        text = "".join(self._texts)
        place = {"item_id": item["id"], "output_index": len(self.items) - 1}
        item["status"] = status
        if item["type"] == "message":
            part = {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logged}
            item["content"] = [part]
            inside = self._inside(item)
            self._emit("response.output_text.done", {**inside, "text": text, "logprobs": self._logged})
            self._emit("response.content_part.done", {**inside, "part": part})
        elif item["type"] == "reasoning":
            part = {"type": "reasoning_text", "text": text}
            item["content"] = [part]
            self._emit("response.reasoning_text.done", {**self._inside(item), "text": text})
            self._emit("response.content_part.done", {**self._inside(item), "part": part})
        else:
            item["arguments"] = text
            done = {**place, "name": item["name"], "arguments": text}
            self._emit("response.function_call_arguments.done", done)
        self._emit("response.output_item.done", {"output_index": place["output_index"], "item": item})


def tool_of(raw: Mapping[str, Any]) -> Json:
    """A flat tool as chat has it."""
    if raw.get("type") != "function":
        return dict(raw)
    return {"type": "function", "function": {name: value for name, value in raw.items() if name != "type"}}
