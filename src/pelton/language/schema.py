"""JSON schemas of callers: limits, OpenAI's "strict" rules, and the place of what is wrong. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from pelton.errors import InvalidInput, TooLarge
from pelton.language.grammar_spec import GrammarSpec

TEXT_LIMIT: Final = 512 * 1024  # characters
DEPTH_LIMIT: Final = 64
PROPERTY_LIMIT: Final = 5_000
# Models that write white space tend to go on with it for ever.
WHITE_SPACE: Final = {"whitespace_flexible": True, "whitespace_pattern": "[ \\n]{0,16}"}
_ONE: Final = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")
_LIST: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions")

Schema = Mapping[str, Any]


def json_schema(schema: Any, strict: bool = False, where: str = "schema") -> GrammarSpec:
    """A caller's schema as a grammar. `where` is its place in the request, for messages.

    Raises InvalidInput (TooLarge) naming the place. `pelton.language.grammar.check` finds what cannot be compiled."""
    if not isinstance(schema, Mapping):
        raise InvalidInput(f"{where}: a JSON schema is an object, not {type(schema).__name__}")
    check(schema, where)
    if strict:
        check_strict(schema, where)
    return GrammarSpec("json_schema", msgspec.json.encode(schema).decode())


def check(schema: Any, where: str) -> None:
    """Limits of depth and size. Raises InvalidInput."""
    properties = 0
    for path, part in parts(schema, where):
        if isinstance(named := part.get("properties"), Mapping):
            properties += len(named)
        if properties > PROPERTY_LIMIT:
            raise TooLarge(f"{path}: the schema has more than {PROPERTY_LIMIT} properties")


def check_strict(schema: Any, where: str) -> None:
    """OpenAI's strict mode: every object lists all its properties as required and forbids others."""
    if not isinstance(schema, Mapping) or schema.get("type") != "object":
        raise InvalidInput(f"{where}: with strict, the schema must have the type 'object'")
    for path, part in parts(schema, where):
        kinds = part.get("type")
        if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds) and "properties" not in part:
            continue
        if part.get("additionalProperties") is not False:
            raise InvalidInput(f"{path}: with strict, 'additionalProperties' must be given and be false")
        named, required = part.get("properties") or {}, part.get("required") or []
        missing = [name for name in named if name not in required]
        if missing:
            raise InvalidInput(f"{path}.required: with strict, it must name every property; {missing[0]!r} is missing")


def parts(schema: Any, where: str) -> Iterator[tuple[str, Schema]]:
    """The schema and all schemas in it, each with its place. Raises InvalidInput where it is nested too deep."""
    todo: list[tuple[str, Any, int]] = [(where, schema, 0)]
    while todo:
        path, part, depth = todo.pop()
        if depth > DEPTH_LIMIT:
            raise TooLarge(f"{path[:200]}: the schema is nested more than {DEPTH_LIMIT} deep")
        if not isinstance(part, Mapping):
            continue
        yield path, part
        inner = [(f"{path}.{name}", part[name]) for name in _ONE if name in part]
        for name in _LIST:
            if isinstance(part.get(name), list):
                inner += [(f"{path}.{name}[{i}]", item) for i, item in enumerate(part[name])]
        for name in _NAMED:
            if isinstance(part.get(name), Mapping):
                inner += [(f"{path}.{name}.{key}", item) for key, item in part[name].items()]
        todo += [(place, item, depth + 1) for place, item in reversed(inner)]


def bounded(schema: Schema) -> dict[str, Any]:
    """The schema for the compiler: white space between the parts of the output has an end."""
    return {**schema, "x-guidance": dict(WHITE_SPACE)}
