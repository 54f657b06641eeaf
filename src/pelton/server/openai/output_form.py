"""What an output must look like: `response_format`, `tools` and `tool_choice`, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from pelton.server.openai.decoding import convert, unknown_field
from pelton.server.openai.errors import ApiError, invalid, missing, unsupported

Json = dict[str, Any]

SCHEMA_LIMIT: Final = 256 * 1024  # bytes of one JSON schema
TOOLS_LIMIT: Final = 1024 * 1024
FORMAT_NAME: Final = re.compile(r"[a-zA-Z0-9_\-]{1,64}")


@dataclass(frozen=True, slots=True)
class Form:
    """`kind` is "text", "json_object", "json_schema", or "regex" or "lark", whose source is `text`. `at`: the field that
    says so, `size`: its bytes."""

    kind: str = "text"
    schema: Json | None = None
    name: str = ""
    strict: bool | None = None
    at: str = "response_format"
    size: int = 0
    text: str = ""


TEXT: Final = Form()


class Function(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.\-]{1,64}$")]
    description: str = ""
    parameters: Json | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    function: Function


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request. `choice`: "auto", "required", or the name of a tool behind "!"; without tools "none"."""

    functions: tuple[Function, ...] = ()
    choice: str = "none"
    parallel: bool = True
    size: int = 0  # bytes of all

    @property
    def names(self) -> list[str]:
        """Of the tools that may be called."""
        return [] if self.choice == "none" else [function.name for function in self.functions]

    @property
    def forced(self) -> bool:
        return self.choice == "required" or bool(self.only)

    @property
    def only(self) -> str:
        """The one tool that must be called."""
        return self.choice[1:] if self.choice.startswith("!") else ""

    def told(self) -> list[Json]:
        """As chat templates take them."""
        return [{"type": "function", "function": _plain(function)} for function in self.functions]


NO_TOOLS: Final = Tools()


def form_of(value: Json | None, at: str = "response_format") -> Form:
    """`response_format`. Raises ApiError."""
    if value is None:
        return TEXT
    kind = value.get("type")
    if kind == "json_schema":
        inner = value.get("json_schema")
        if not isinstance(inner, dict):
            raise missing(f"{at}.json_schema")
        _only(value, ("type", "json_schema"), at)
        return schema_form(inner, f"{at}.json_schema")
    if kind not in ("text", "json_object"):
        raise invalid(
            f"Invalid value for '{at}.type': supported values are 'text', 'json_object' and 'json_schema'.",
            f"{at}.type",
        )
    _only(value, ("type",), at)
    return Form(kind, at=at)


def schema_form(inner: Json, at: str) -> Form:
    """A named JSON schema. Raises ApiError."""
    _only(inner, ("name", "description", "schema", "strict", "type"), at)
    name, schema, strict = inner.get("name"), inner.get("schema"), inner.get("strict")
    if not isinstance(name, str) or not FORMAT_NAME.fullmatch(name):
        raise invalid(f"Invalid value for '{at}.name': expected 1 to 64 letters, digits, '_' or '-'.", f"{at}.name")
    if strict is not None and not isinstance(strict, bool):
        raise invalid(f"Invalid type for '{at}.strict': expected a boolean.", f"{at}.strict", "invalid_type")
    if schema is None:
        return Form("json_object", None, name, strict, at)
    if not isinstance(schema, dict):
        raise invalid(f"Invalid type for '{at}.schema': expected an object.", f"{at}.schema", "invalid_type")
    size = _size(schema, SCHEMA_LIMIT, f"{at}.schema")
    return Form("json_schema", schema, name, strict, f"{at}.schema", size)


def tools_of(tools: list[Json], choice: Any, parallel: bool) -> Tools:
    """`tools`, `tool_choice` and `parallel_tool_calls`. Raises ApiError."""
    functions: list[Function] = []
    for index, raw in enumerate(tools):
        at = f"tools[{index}]"
        if raw.get("type") is None:
            raise missing(f"{at}.type")
        if raw["type"] != "function":
            raise unsupported(
                f"Unsupported value: '{at}.type' is {str(raw['type'])[:60]!r}; tools are functions here.", at
            )
        if raw.get("function") is None:
            raise missing(f"{at}.function")
        functions.append(convert(_without_nulls(raw), Tool, at).function)
    size = _size(tools, TOOLS_LIMIT, "tools") if functions else 0
    names = [function.name for function in functions]
    if len(set(names)) != len(names):
        raise invalid("Invalid value for 'tools': two of them have the same name.", "tools")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        names, choice = _allowed(choice, names)
        functions = [function for function in functions if function.name in names]
    return Tools(tuple(functions), _choice(choice, names), parallel, size)


def functions_of(functions: list[Json], choice: Any) -> Tools:
    """`functions` and `function_call`, the older form of tools: of them one call at most is made. Raises ApiError."""
    if isinstance(choice, dict):
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    elif choice == "required":
        choice = "?"
    try:
        return tools_of([{"type": "function", "function": one} for one in functions], choice, parallel=False)
    except ApiError as error:
        old = error.param or ""
        param = old.replace("tools", "functions").replace(".function", "", 1).replace("tool_choice", "function_call")
        message = str(error).replace(old, param).replace("in 'tools'", "in 'functions'")
        raise ApiError(message, param, error.code, error.status, error.kind) from None


def _allowed(choice: Json, names: list[str]) -> tuple[list[str], str]:
    """`{"type": "allowed_tools", "allowed_tools": {"mode", "tools"}}`, or flat: the others are as if not offered."""
    inner = choice.get("allowed_tools", choice)
    tools = inner.get("tools") if isinstance(inner, dict) else None
    mode = inner.get("mode", "auto") if isinstance(inner, dict) else None
    allowed = [_named(tool) for tool in tools] if isinstance(tools, list) else []
    if not allowed or mode not in ("auto", "required"):
        raise invalid(
            "Invalid value for 'tool_choice': allowed tools have a 'mode' ('auto' or 'required') and 'tools'.",
            "tool_choice",
        )
    for name in allowed:
        if name not in names:
            raise invalid(f"Invalid value for 'tool_choice': the tool {name!r} is not in 'tools'.", "tool_choice")
    return [name for name in names if name in allowed], mode


def _choice(choice: Any, names: list[str]) -> str:
    if choice is None or choice == "auto":
        return "auto" if names else "none"
    if choice == "none":
        return "none"
    if choice == "required" and names:
        return "required"
    named = _named(choice)
    if named is not None and named in names:
        return f"!{named}"
    if named is not None or choice == "required":
        what = f"the tool {named!r} is not" if named is not None else "there is none"
        raise invalid(f"Invalid value for 'tool_choice': {what} in 'tools'.", "tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "custom":
        raise unsupported("Unsupported value: 'tool_choice.type'; name a function.", "tool_choice")
    raise invalid(
        "Invalid value for 'tool_choice': supported values are 'none', 'auto', 'required' and a named function.",
        "tool_choice",
    )


def _named(choice: Any) -> str | None:
    """The function that is chosen: `{"type": "function", "function": {"name"}}`, or flat, as /v1/responses has it."""
    if not isinstance(choice, dict) or choice.get("type") != "function":
        return None
    inner = choice.get("function", choice)
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


def _only(value: Json, known: tuple[str, ...], at: str) -> None:
    for name, field in value.items():
        if name not in known and field is not None:
            raise unknown_field(name, known, at)


def _without_nulls(value: Any) -> Any:
    """A tool without the nulls that say "not set"; its parameters are left as they are."""
    if not isinstance(value, dict):
        return value
    return {
        name: _without_nulls(field) if name == "function" else field
        for name, field in value.items()
        if field is not None
    }


def _plain(function: Function) -> Json:
    made: Json = {"name": function.name, "description": function.description}
    made["parameters"] = function.parameters or {"type": "object", "properties": {}}
    if function.strict is not None:
        made["strict"] = function.strict
    return made


def _size(value: Any, limit: int, at: str) -> int:
    try:
        size = len(msgspec.json.encode(value))
    except (RecursionError, ValueError):
        raise invalid(f"Invalid value for '{at}': it is nested too deeply.", at) from None
    if size > limit:
        raise invalid(f"Invalid value for '{at}': it has {size} bytes; {limit} are taken.", at)
    return size
