"""Tools (functions that a model may call): what is offered, which grammar forces a call, how a call is written.

Models write calls in the form that their chat template taught them:

hermes    <tool_call>{"name": ..., "arguments": {...}}</tool_call>     Hermes, Qwen, and whatever Pelton describes tools to
tags      <tool_call><function=...><parameter=...>...</parameter></function></tool_call>       Qwen3-Coder; a call that is
          forced is JSON there, so that every schema can be held to, and is read as such
llama3    {"name": ..., "parameters": {...}}                           alone, or after <|python_tag|>; several with ;
mistral   [TOOL_CALLS][{"name": ..., "arguments": {...}}]              or [TOOL_CALLS]name[ARGS]{...}
json      {"name": ..., "arguments": {...}}                            alone, in a list, or in a fence of Markdown

`pelton.language.tool_parser` reads them out of a stream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pelton.errors import InvalidInput, TooLarge, Unsupported
from pelton.language import schema as schemas
from pelton.language.card import Card, ToolStyle
from pelton.language.grammar_spec import GrammarSpec
from pelton.language.reasoning import Marks
from pelton.language.tokenizer import Tokenizer

MOST_TOOLS: Final = 128
MOST_CALLS: Final = 16  # in one answer, where a grammar forces them
MARKERS: Final[Mapping[ToolStyle, str]] = {
    "hermes": "<tool_call>",
    "tags": "<tool_call>",
    "llama3": "<|python_tag|>",
    "mistral": "[TOOL_CALLS]",
    "json": "",
}
END_MARKERS: Final = ("</tool_call>", "[ARGS]", "<|eom_id|>")
_NEWLINE: Final = r'"\n"'  # in a grammar
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")

Tools = Sequence[Mapping[str, Any]]


def style_of(template: str) -> ToolStyle:
    """How a model of this chat template writes calls."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<function=" in template and "<parameter=" in template:
        return "tags"
    if "<tool_call>" in template or not uses_tools(template):
        return "hermes"
    return "llama3" if "<|python_tag|>" in template or '"parameters": ' in template else "json"


def uses_tools(template: str) -> bool:
    """Whether a chat template shows the tools that it is given."""
    return re.search(r"\btools\b", template) is not None


def check(tools: Tools, where: str = "tools") -> dict[str, dict[str, Any]]:
    """The offered functions: name -> JSON schema of the arguments. Raises InvalidInput naming the place.

    Whether the schemas can be compiled, `pelton.language.grammar.check` of a forcing grammar tells."""
    if len(tools) > MOST_TOOLS:
        raise TooLarge(f"{where}: {len(tools)} tools; at most {MOST_TOOLS} are accepted")
    found: dict[str, dict[str, Any]] = {}
    for i, tool in enumerate(tools):
        place = f"{where}[{i}]"
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, Mapping):
            raise Unsupported(f"{place}: only tools of the type 'function' are served, not {tool.get('type')!r}")
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidInput(
                f"{place}.function.name: 1 to 64 letters, digits, '_', '.' or '-', not {str(name)[:80]!r}"
            )
        if name in found:
            raise InvalidInput(f"{place}.function.name: {name!r} is there twice")
        found[name] = _parameters(function, f"{place}.function.parameters")
    return found


def _parameters(function: Mapping[str, Any], where: str) -> dict[str, Any]:
    schema = function.get("parameters")
    if schema is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(schema, Mapping):
        raise InvalidInput(f"{where}: a JSON schema is an object")
    if schema.get("type", "object") != "object":
        raise InvalidInput(f"{where}.type: arguments are an object, not {schema.get('type')!r}")
    schemas.check(schema, where)
    if function.get("strict"):
        schemas.check_strict(schema, where)
    return {"type": "object", **schema}


def forcing_grammar(
    tools: Tools, card: Card, tokenizer: Tokenizer, only: str = "", parallel: bool = True
) -> GrammarSpec:
    """The grammar that forces a call: of any tool (tool_choice "required") or of one (`only`); `parallel`: or several.

    Raises InvalidInput where `only` is not offered, and what `check` raises."""
    functions = check(tools)
    if not functions:
        raise InvalidInput("tool_choice: there are no tools to choose from")
    if only and only not in functions:
        raise InvalidInput(f"tool_choice: there is no tool {only!r}; offered are {', '.join(functions)}")
    chosen = {only: functions[only]} if only else functions
    arguments = "parameters" if card.tool_style == "llama3" else "arguments"
    rules = [_start(card.tool_style, parallel, tokenizer), f"call: {' | '.join(f'f{i}' for i in range(len(chosen)))}"]
    for i, (name, schema) in enumerate(chosen.items()):
        head = f'{{"name": {json.dumps(name)}, "{arguments}": '
        rules.append(f'f{i}: {json.dumps(head)} a{i} "}}"')
        rules.append(f"a{i}: %json {json.dumps(schemas.bounded(_closed(schema)))}")
    return GrammarSpec("lark", "\n".join(rules))


def _closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments that are not listed help nobody, and of a function without any a model would make up some for ever."""
    listed = "properties" in schema and not {"patternProperties", "allOf", "anyOf", "oneOf", "$ref"} & set(schema)
    return {"additionalProperties": False, **schema} if listed else schema


def _start(style: ToolStyle, parallel: bool, tokenizer: Tokenizer) -> str:
    more = MOST_CALLS - 1 if parallel else 0
    if style in ("hermes", "tags"):
        one = f"{literal('<tool_call>', tokenizer)} {_NEWLINE} call {_NEWLINE} {literal('</tool_call>', tokenizer)}"
        return _repeated(one, _NEWLINE, more)
    if style == "llama3":
        return _repeated("call", _text("; "), more)
    if style == "mistral":
        return _listed(more, f"{literal('[TOOL_CALLS]', tokenizer)} ")
    return _listed(more) if parallel else "start: call"


def _repeated(one: str, between: str, more: int) -> str:
    return f"start: one ({between} one){{0,{more}}}\none: {one}" if more else f"start: one\none: {one}"


def _listed(more: int, before: str = "") -> str:
    rest = f" ({_text(', ')} call){{0,{more}}}" if more else ""
    return f'start: {before}"[" call{rest} "]"'


def literal(text: str, tokenizer: Tokenizer) -> str:
    """A marker in a grammar: the token of that name where there is one (a grammar's text is never matched by an added
    token, special or not), else its characters."""
    token = tokenizer.id_of(text)
    return _text(text) if token is None else f"<[{token}]>"


def _text(text: str) -> str:
    return json.dumps(text)


def shown(tokenizer: Tokenizer, calls: bool, marks: Marks | None) -> frozenset[int]:
    """Control tokens that a `TextStream` must show so that calls of tools, and thoughts, can be read."""
    names = [*MARKERS.values(), *END_MARKERS] if calls else []
    names += [marks.begin, marks.end] if marks is not None else []
    ids = (tokenizer.id_of(name) for name in names if name)
    return frozenset(token for token in ids if token in tokenizer.special_ids and token is not None)
