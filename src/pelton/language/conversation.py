"""Messages as the OpenAI API defines them -> messages as chat templates expect them.

Templates want one text per message, arguments of tool calls as objects, and `system` for `developer`. A template that
knows no tools gets them described in the system message, in the form that `pelton.language.tools` reads back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from pelton.errors import InvalidInput, Unsupported
from pelton.language.card import Card

ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
Messages = Sequence[Mapping[str, Any]]

_DESCRIPTION: Final = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a JSON object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <arguments as JSON object>}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a template is given. `tools` is None where there are none, or the messages tell of them."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


def prepared(
    messages: Messages, tools: Sequence[Mapping[str, Any]] | None, card: Card, system: bool = True
) -> Prepared:
    """Checks and translates. `system`: the template takes a system message.

    Raises InvalidInput with the place, Unsupported for pictures and sound."""
    if not messages:
        raise InvalidInput("messages: there is none; send at least one")
    told = [_message(message, f"messages[{i}]", card) for i, message in enumerate(messages)]
    named = [dict(tool) for tool in tools] if tools else None
    if card.tools_in_template or card.tool_template:
        return Prepared(told, named)
    plain = _joined(told)
    return Prepared(_described(plain, named, system) if named else plain, None)


def _message(message: Mapping[str, Any], where: str, card: Card) -> dict[str, Any]:
    role = message.get("role")
    if role not in ROLES:
        raise InvalidInput(f"{where}.role: {role!r} is none of {', '.join(ROLES)}")
    if role == "developer" and "developer" not in card.chat_template:
        role = "system"
    out = {name: value for name, value in message.items() if value is not None}
    out |= {"role": role, "content": _content(message.get("content"), f"{where}.content")}
    calls = message.get("tool_calls")
    if calls:
        out["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    else:
        out.pop("tool_calls", None)
    return out


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise InvalidInput(f"{where}: a text or a list of parts is expected, not {type(content).__name__}")
    return "\n".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text", "output_text", "refusal") and isinstance(text, str):
        return text
    if kind in ("image_url", "input_image", "input_audio", "file", "input_file", "video_url"):
        raise Unsupported(f"{where}: this model reads text only, not {kind!r}")
    raise InvalidInput(f"{where}: a part has a type ('text') and a text, not {str(part)[:100]}")


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidInput(f"{where}: a call has a function with a name and arguments")
    arguments = function.get("arguments") or "{}"
    return {**call, "type": "function", "function": {**function, "arguments": _arguments(arguments)}}


def _arguments(given: Any) -> Any:
    """Arguments as an object. A model may have written what is none: it is shown that as the text it was."""
    if not isinstance(given, str):
        return given
    try:
        decoded = msgspec.json.decode(given)
    except (msgspec.DecodeError, RecursionError):
        return given
    return decoded if isinstance(decoded, dict) else given


def _joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages without tools in them. What a tool answered joins the user's message beside it: many templates insist that
    user and assistant take turns."""
    out: list[dict[str, Any]] = []
    answered = False  # the last one is what tools have answered
    for message in messages:
        from_tool = message["role"] in ("tool", "function", "ipython")
        plain = _plain(message)
        if out and plain["role"] == out[-1]["role"] == "user" and (from_tool or answered):
            out[-1] = {**out[-1], "content": f"{out[-1]['content']}\n{plain['content']}"}
        else:
            out.append(plain)
        answered = from_tool
    return out


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message without tools in it, for templates that know none."""
    role, content = message["role"], message["content"]
    if role in ("tool", "function", "ipython"):
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    if calls := message.pop("tool_calls", None):
        written = [
            f'<tool_call>\n{{"name": {_json(call["function"]["name"])}, '
            f'"arguments": {_json(call["function"]["arguments"])}}}\n</tool_call>'
            for call in calls
        ]
        message["content"] = "\n".join([*([content] if content else []), *written])
    return message


def _described(messages: list[dict[str, Any]], tools: list[dict[str, Any]], system: bool) -> list[dict[str, Any]]:
    """With the tools in the system message, or where the template takes none, in the first one of all."""
    text = _DESCRIPTION.format(tools="\n".join(map(_json, tools)))
    first = messages[0]
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    if not system and first["role"] == "user":
        return [{**first, "content": f"{text}\n\n{first['content']}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
