"""Forms of an output as vLLM's clients ask for them: `structured_outputs`, and `guided_json` and its kin before that."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

import msgspec

from pelton.server.openai.asks import SamplingAsk
from pelton.server.openai.decoding import unknown_field
from pelton.server.openai.errors import invalid
from pelton.server.openai.output_form import Form, schema_form

KINDS: Final = ("json", "regex", "choice", "grammar", "json_object")
MOST_CHOICES: Final = 1000


def guided(ask: SamplingAsk, form: Form) -> Form:
    """The form that is asked for so, or else `form`. Raises ApiError where there are two."""
    given = {f"guided_{kind}": value for kind in KINDS[:4] if (value := getattr(ask, f"guided_{kind}")) is not None}
    for kind, value in (ask.structured_outputs or {}).items():
        if kind not in KINDS:
            raise unknown_field(kind, KINDS, "structured_outputs")
        if value is not None and value is not False:
            given[f"structured_outputs.{kind}"] = value
    if not given:
        return form
    at, value = next(iter(given.items()))
    if len(given) > 1 or form.kind != "text":
        other = [*given, form.at][1]
        raise invalid(f"Invalid value for '{at}': '{other}' says what the output must look like, too; send one.", at)
    return _form(at.rpartition("guided_")[2].rpartition(".")[2], value, at)


def _form(kind: str, value: Any, at: str) -> Form:
    if kind == "json_object":
        return Form("json_object", at=at)
    if kind == "json":
        form = schema_form({"name": "guided", "schema": _schema(value, at)}, at)
        return replace(form, at=at)
    if kind == "choice":
        if not isinstance(value, list) or not 0 < len(value) <= MOST_CHOICES or not all(map(_is_text, value)):
            raise invalid(f"Invalid value for '{at}': expected an array of 1 to {MOST_CHOICES} texts.", at)
        text = "start: " + " | ".join(json.dumps(one, ensure_ascii=False) for one in value)
        return Form("lark", at=at, text=text, size=len(text))
    if not _is_text(value):
        raise invalid(f"Invalid type for '{at}': expected a string.", at, "invalid_type")
    return Form("regex" if kind == "regex" else "lark", at=at, text=value, size=len(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _schema(value: Any, at: str) -> Any:
    """A schema may come as JSON in a string."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError) as error:
        raise invalid(f"Invalid value for '{at}': it is not valid JSON: {error}.", at) from None
