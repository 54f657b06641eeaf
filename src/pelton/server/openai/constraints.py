"""The grammar that an output is held to: a JSON schema, a call of a tool, or either."""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec

from pelton.errors import InvalidInput, PeltonError
from pelton.language import GrammarSpec, Language
from pelton.language import schema as schemas
from pelton.language import tools as calls
from pelton.language.reasoning import Marks
from pelton.server.openai.endpoint import in_turn
from pelton.server.openai.errors import ApiError, invalid
from pelton.server.openai.output_form import Form, Tools

PLACE: Final = re.compile(r"^([a-z_]+[A-Za-z0-9_.$\[\]-]*)(?::|$)")
ASCII: Final = re.compile(r"\\.", re.S)
CLASSES: Final = {r"\d": "[0-9]", r"\w": "[0-9A-Za-z_]"}  # as in JavaScript, not all digits of the world
FIRST: Final = re.compile(r"^\s*\??start\s*:", re.M)  # the rule that a grammar begins with
SLASH: Final = re.compile(r"(\\.)|/", re.S)  # a slash that is not escaped, behind what is


async def grammar_of(
    form: Form, tools: Tools, language: Language, marks: Marks | None = None, inside: bool = False
) -> GrammarSpec | None:
    """None: any text may come. Thoughts between `marks` may come before what is held to a form; `inside`: the prompt has
    begun them.

    Raises ApiError for a schema that cannot be held to."""
    if form.kind == "text" and not tools.names:
        return None
    return await in_turn(form.size + tools.size, lambda: _checked(form, tools, language, marks, inside))


def _checked(form: Form, tools: Tools, language: Language, marks: Marks | None, inside: bool) -> GrammarSpec | None:
    try:
        spec = _made(form, tools, language)
    except InvalidInput as error:
        raise refusal(error, "tools" if tools.names else form.at) from None
    return spec if spec is None or marks is None else _thoughtful(spec, language, marks, inside)


def _made(form: Form, tools: Tools, language: Language) -> GrammarSpec | None:
    calling: GrammarSpec | None = None
    if tools.names:
        told = tools.told()
        calls.check(told)
        calling = calls.forcing_grammar(told, language.card, language.tokenizer, tools.only, tools.parallel)
    spec = calling if tools.forced else _of(form)
    if spec is None:
        return None
    if calling is not None and not tools.forced:
        spec = GrammarSpec("lark", f"start: calls | answer\n{_rule('calls', calling)}\n{_rule('answer', spec)}")
    from pelton.language import grammar  # needs an extra

    grammar.check(spec, form.at if spec.kind == "json_schema" else "tools" if tools.forced else form.at)
    return spec


def _rule(name: str, spec: GrammarSpec) -> str:
    """A grammar as a rule of another one."""
    if spec.kind == "lark":
        return FIRST.sub(f"{name}:", spec.text, count=1)
    if spec.kind == "regex":
        return f"{name}: /{_slashed(spec.text)}/"
    schema = schemas.bounded(msgspec.json.decode(spec.text or b'{"type": "object"}'))
    return f"{name}: %json {json.dumps(schema)}"


def _slashed(regex: str) -> str:
    return SLASH.sub(lambda found: found[1] or "\\/", regex)


def _thoughtful(spec: GrammarSpec, language: Language, marks: Marks, inside: bool) -> GrammarSpec:
    """The same with thoughts before it."""
    begin, end = (calls.literal(mark, language.tokenizer) for mark in (marks.begin, marks.end))
    any_text = "/(.|\\n)*/"
    thought = f"thought: {any_text} {end}" if end.startswith("<[") else f"thought[suffix={end}]: {any_text}"
    before = "thought space" if inside else f"({begin} thought space)?"
    rules = [f"start: {before} held", thought, "space: /[ \\n]{0,8}/", _rule("held", spec)]
    return GrammarSpec("lark", "\n".join(rules))


def _of(form: Form) -> GrammarSpec | None:
    if form.schema is not None:
        return schemas.json_schema(form.schema, bool(form.strict), form.at)
    if form.kind == "regex":
        return GrammarSpec("regex", ASCII.sub(lambda found: CLASSES.get(found[0], found[0]), form.text))
    if form.kind == "lark":
        from pelton.language import grammar  # needs an extra

        return GrammarSpec("lark", grammar.lark_of(form.text, form.at))
    return GrammarSpec("json_object") if form.kind == "json_object" else None


def refusal(error: PeltonError, param: str) -> ApiError:
    """What a schema, a template or a tokenizer refuses, with the field that its message names."""
    found = PLACE.match(str(error))
    return invalid(str(error), found[1] if found else param)
