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
from pelton.server.openai.endpoint import in_turn
from pelton.server.openai.errors import ApiError, invalid
from pelton.server.openai.output_form import Form, Tools

PLACE: Final = re.compile(r"^([a-z_]+[A-Za-z0-9_.$\[\]-]*)(?::|$)")
START: Final = "start: "


async def grammar_of(form: Form, tools: Tools, language: Language) -> GrammarSpec | None:
    """None: any text may come. Raises ApiError for a schema that cannot be held to."""
    if form.kind == "text" and not tools.names:
        return None
    return await in_turn(form.size + tools.size, lambda: _checked(form, tools, language))


def _checked(form: Form, tools: Tools, language: Language) -> GrammarSpec | None:
    try:
        return _made(form, tools, language)
    except InvalidInput as error:
        raise refusal(error, "tools" if tools.names else form.at) from None


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
        spec = _either(calling, spec)
    from pelton.language import grammar  # needs an extra

    grammar.check(spec, form.at if spec.kind == "json_schema" else "tools" if tools.forced else form.at)
    return spec


def _of(form: Form) -> GrammarSpec | None:
    if form.schema is not None:
        return schemas.json_schema(form.schema, bool(form.strict), form.at)
    return GrammarSpec("json_object") if form.kind == "json_object" else None


def _either(calling: GrammarSpec, answer: GrammarSpec) -> GrammarSpec:
    """A call of a tool, or an answer of the form."""
    schema = json.dumps(schemas.bounded(msgspec.json.decode(answer.text or b'{"type": "object"}')))
    rest = calling.text.removeprefix(START)
    return GrammarSpec("lark", f"start: calls | answer\ncalls: {rest}\nanswer: %json {schema}")


def refusal(error: PeltonError, param: str) -> ApiError:
    """What a schema, a template or a tokenizer refuses, with the field that its message names."""
    found = PLACE.match(str(error))
    return invalid(str(error), found[1] if found else param)
