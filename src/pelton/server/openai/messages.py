"""Chat messages of a request, checked, in the form that chat templates take."""

from __future__ import annotations

import re
from typing import Any, Final

from pelton.server.openai.decoding import unknown_field
from pelton.server.openai.errors import invalid, missing, unsupported

Json = dict[str, Any]

REASONING: Final = ("reasoning_content", "reasoning")  # what a model thought before; servers disagree about the name
# role -> fields that it may have beside "role" and "content"
ROLES: Final = {
    "system": ("name",),
    "developer": ("name",),
    "user": ("name",),
    "assistant": ("name", "tool_calls", "refusal", "audio", "function_call", "annotations", *REASONING),
    "tool": ("tool_call_id", "name"),
    "function": ("name",),  # a tool, as it was told at first
}
EMPTY_ONLY: Final = ("audio", "annotations")  # come back from clients that resend what they got
PARTS: Final = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
OTHER_PARTS: Final = ("image_url", "input_audio", "file", "input_image", "input_file", "video_url", "audio_url")
TOOL_NAME: Final = re.compile(r"[a-zA-Z0-9_.\-]{1,128}")
MAX_CALLS: Final = 128


def checked(messages: list[Json], at: str = "messages") -> list[Json]:
    """Every message with its content as text; fields that are not set are left out. Raises ApiError."""
    made = [_message(message, f"{at}[{index}]") for index, message in enumerate(messages)]
    _check_calls(made, at)
    return made


def text_of(content: Any, at: str) -> str:
    """The text of a message: a string, or parts that are text. Raises ApiError."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"Invalid type for '{at}': expected a string or an array of parts.", at, "invalid_type")
    return "\n".join(_part(part, f"{at}[{index}]") for index, part in enumerate(content))


def _message(message: Json, at: str) -> Json:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(f"'{name}'" for name in ROLES)
        raise invalid(f"Invalid value for '{at}.role': supported values are {known}.", f"{at}.role")
    fields = {name: value for name, value in message.items() if value is not None}
    for name, value in fields.items():
        if name not in ("role", "content", *ROLES[role]):
            raise unknown_field(name, ("content", *ROLES[role]), at)
        if name in EMPTY_ONLY and value not in ({}, []):
            raise unsupported(f"Unsupported parameter: '{at}.{name}'. This server takes text and tools only.", at)
    content = fields.get("content")
    said = text_of(content, f"{at}.content") if content is not None else ""
    made: Json = {"role": role, "content": said}
    if "name" in fields:
        made["name"] = _string(fields["name"], f"{at}.name")
    if role == "tool":
        made["tool_call_id"] = _string(fields.get("tool_call_id"), f"{at}.tool_call_id")
    elif role == "function":
        made |= {"role": "tool", "tool_call_id": function_id(_string(fields.get("name"), f"{at}.name"))}
    if role == "assistant":
        _of_assistant(made, fields, at)
    elif content is None:
        raise missing(f"{at}.content")
    return made


def _of_assistant(made: Json, fields: Json, at: str) -> None:
    calls = fields.get("tool_calls")
    for name in REASONING:
        if name in fields:
            made["reasoning_content"] = _string(fields[name], f"{at}.{name}")
            break
    if "refusal" in fields and not made["content"]:
        made["content"] = _string(fields["refusal"], f"{at}.refusal")
    if calls is not None:
        if not isinstance(calls, list) or len(calls) > MAX_CALLS:
            raise invalid(f"Invalid type for '{at}.tool_calls': expected an array of at most {MAX_CALLS}.", at)
        if calls:
            made["tool_calls"] = [_call(call, f"{at}.tool_calls[{index}]") for index, call in enumerate(calls)]
    if "function_call" in fields and not calls:
        given = fields["function_call"]
        call = _call({"function": given}, f"{at}.function_call", f"{at}.function_call")
        made["tool_calls"] = [{**call, "id": function_id(call["function"]["name"])}]
    if not any(name in fields for name in ("content", "refusal", *REASONING)) and not made.get("tool_calls"):
        raise invalid(f"Invalid value for '{at}': an assistant's message has 'content' or 'tool_calls'.", at)


def function_id(name: str) -> str:
    """Functions, which were called one at a time, had no id of a call."""
    return f"call_{name}"


def _check_calls(messages: list[Json], at: str) -> None:
    """What tools answer follows the calls, and every call of earlier messages has its answer. Raises ApiError."""
    open_calls: dict[str, str] = {}  # id -> where it stands
    for index, message in enumerate(messages):
        place = f"{at}[{index}]"
        if message["role"] == "tool":
            name = message["tool_call_id"]
            if open_calls.pop(name, None) is None:
                raise invalid(
                    f"Invalid value for '{place}.tool_call_id': {name[:60]!r} is no call of the assistant's message before "
                    "it that still waits for its answer. A tool's message follows the message with its call.",
                    f"{place}.tool_call_id",
                )
            continue
        _check_answered(open_calls)
        calls = message.get("tool_calls", ())
        open_calls = {call["id"]: f"{place}.tool_calls[{number}]" for number, call in enumerate(calls) if "id" in call}
    _check_answered(open_calls)


def _check_answered(open_calls: dict[str, str]) -> None:
    for name, place in open_calls.items():
        raise invalid(
            f"Invalid value for '{place}': the call {name[:60]!r} has no answer. Send a message with the role 'tool' and "
            "this 'tool_call_id' after it, or leave the call out.",
            place,
        )


def _call(call: Any, at: str, inner: str = "") -> Json:
    if not isinstance(call, dict) or call.get("type", "function") != "function":
        raise invalid(f"Invalid value for '{at}': expected a call of a function.", at)
    function = call.get("function")
    inner = inner or f"{at}.function"
    if not isinstance(function, dict):
        raise missing(inner)
    name = tool_name(function.get("name"), f"{inner}.name")
    arguments = _string(function.get("arguments"), f"{inner}.arguments").strip() or "{}"
    made: Json = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if call.get("id") is not None:
        made["id"] = _string(call["id"], f"{at}.id")
    return made


def tool_name(name: Any, at: str) -> str:
    """Raises ApiError."""
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise invalid(f"Invalid value for '{at}': expected 1 to 128 letters, digits, '_', '-' or '.'.", at)
    return name


def _part(part: Any, at: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in OTHER_PARTS:
        raise unsupported(f"Unsupported value: '{at}.type' is {kind!r}; this model reads text only.", f"{at}.type")
    if not isinstance(kind, str) or kind not in PARTS:
        raise invalid(f"Invalid value for '{at}.type': supported values are 'text'.", f"{at}.type")
    return _string(part.get(PARTS[kind]), f"{at}.{PARTS[kind]}")


def _string(value: Any, at: str) -> str:
    if value is None:
        raise missing(at)
    if not isinstance(value, str):
        raise invalid(f"Invalid type for '{at}': expected a string.", at, "invalid_type")
    return value
