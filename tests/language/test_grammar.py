from __future__ import annotations

import json
import random

import pytest

pytest.importorskip("llguidance")

from pelton.errors import InvalidInput, TooLarge
from pelton.language import GrammarSpec, grammar
from pelton.language.schema import json_schema

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ENDS = (0, 2)


@pytest.fixture(scope="module")
def vocabulary(byte_level_json, tokenizer):
    return grammar.Vocabulary(byte_level_json.decode(), tokenizer.vocab_size + 3, ENDS)


def drawn(compiled, tokenizer, seed, most=400):
    """A random output that the grammar allows: (text, how it ended)."""
    chance = random.Random(seed)
    ids = []
    while len(ids) < most:
        allowed = compiled.allowed()
        assert all(token < tokenizer.vocab_size for token in allowed)
        if not len(allowed):
            return tokenizer.decode(ids), "complete"
        ends = [token for token in allowed if token in ENDS]
        assert bool(ends) == compiled.complete
        token = chance.choice(ends if ends and len(ids) > 60 else list(allowed))
        if token in ENDS:
            return tokenizer.decode(ids), "end"
        ids.append(token)
        compiled.advance(token)
    return tokenizer.decode(ids), "cut"


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_drawn_fits_the_schema(seed, vocabulary, tokenizer):
    text, how = drawn(grammar.compile(json_schema(PERSON, strict=True), vocabulary), tokenizer, seed)
    assert how == "complete"
    found = json.loads(text)
    assert list(found) == ["name", "age"]
    assert 0 <= found["age"] <= 99
    assert len(found["name"]) <= 8


@pytest.mark.parametrize(
    ("spec", "fits"),
    [
        (GrammarSpec("regex", "[ab]{2,4}c"), lambda text: text[-1] == "c" and set(text[:-1]) <= set("ab")),
        (GrammarSpec("lark", 'start: "yes" | "no"'), lambda text: text in ("yes", "no")),
        (GrammarSpec("json_schema", '{"enum": ["red", "green"]}'), lambda text: json.loads(text) in ("red", "green")),
    ],
)
def test_expressions_and_grammars_hold_too(spec, fits, vocabulary, tokenizer):
    for seed in range(4):
        text, how = drawn(grammar.compile(spec, vocabulary), tokenizer, seed)
        assert how != "cut"
        assert fits(text)


def test_a_json_object_is_an_object_and_ends_only_when_it_is_whole(vocabulary, tokenizer):
    compiled = grammar.compile(GrammarSpec("json_object"), vocabulary)
    assert not set(ENDS) & set(compiled.allowed())
    for token in tokenizer.encode('{"a": [1'):
        assert token in compiled.allowed()
        compiled.advance(token)
    assert not compiled.complete
    for token in tokenizer.encode("]}"):
        compiled.advance(token)
    assert compiled.complete
    assert len(compiled.allowed()) == 0


def test_the_end_is_allowed_where_an_output_is_complete_but_may_go_on(vocabulary, tokenizer):
    compiled = grammar.compile(GrammarSpec("regex", "a+"), vocabulary)
    compiled.advance(tokenizer.encode("a")[0])
    assert set(ENDS) <= set(compiled.allowed())
    compiled.advance(2)
    assert len(compiled.allowed()) == 0


def test_white_space_has_an_end(vocabulary, tokenizer):
    compiled = grammar.compile(GrammarSpec("json_object"), vocabulary)
    compiled.advance(tokenizer.encode("{")[0])
    space = tokenizer.encode("\n")[0]
    for _ in range(100):
        if space not in compiled.allowed():
            return
        compiled.advance(space)
    pytest.fail("an output of white space alone goes on for ever")


def test_a_token_that_is_not_allowed_is_refused(vocabulary, tokenizer):
    compiled = grammar.compile(GrammarSpec("json_object"), vocabulary)
    with pytest.raises(InvalidInput, match="does not allow"):
        compiled.advance(tokenizer.encode("x")[0])


def test_outputs_of_one_grammar_do_not_share_their_state(vocabulary, tokenizer):
    spec = GrammarSpec("regex", "abc")
    one, other = grammar.compile(spec, vocabulary), grammar.compile(spec, vocabulary)
    one.advance(tokenizer.encode("a")[0])
    assert list(one.allowed()) != list(other.allowed())


def test_what_is_allowed_is_counted_once_for_a_place(vocabulary):
    compiled = grammar.compile(GrammarSpec("json_object"), vocabulary)
    assert compiled.allowed() is compiled.allowed()


DEEP = {"type": "integer"}
for _ in range(80):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "objekt"}, "^body.schema: Invalid type: objekt"),
        (
            {"properties": {"a": {"items": {"not": {}}}}},
            r"^body.schema.properties.a.items: Unimplemented keys: \[\"not\"",
        ),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "no"}}}, r"^body.schema.\$defs.x: Invalid type: no"),
        ({"properties": {"a": {"type": "string", "pattern": "((("}}}, "properties.a: regex parse error"),
        ({"$ref": "#/$defs/none"}, "none"),
        (DEEP, "more than 64 deep"),
        ({"properties": {f"p{i}": {} for i in range(5001)}}, "more than 5000 properties"),
    ],
)
def test_a_schema_that_cannot_be_compiled_is_refused_with_the_place(schema, why):
    with pytest.raises(InvalidInput, match=why):
        grammar.check(json_schema(schema, where="body.schema"), "body.schema")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"additionalProperties": True}, "schema: with strict, 'additionalProperties'"),
        ({"required": ["name"]}, "schema.required: .* 'age' is missing"),
        ({"type": "array"}, "must have the type 'object'"),
        ({"properties": {"name": {"type": "object"}}, "required": ["name"]}, "schema.properties.name: with strict"),
    ],
)
def test_strict_schemas_follow_the_rules_of_strict(change, why):
    assert json_schema(PERSON, strict=True)
    with pytest.raises(InvalidInput, match=why):
        json_schema(PERSON | change, strict=True)
    json_schema(PERSON | change)


@pytest.mark.parametrize(
    "spec",
    [
        GrammarSpec("regex", "(ab"),
        GrammarSpec("lark", "start: missing"),
        GrammarSpec("json_schema", "{"),
        GrammarSpec("json_schema", "[]"),
    ],
)
def test_what_is_no_grammar_is_refused_before_and_while_compiling(spec, vocabulary):
    for refuse in (grammar.check, vocabulary.compile):
        with pytest.raises(InvalidInput):
            refuse(spec)


def test_a_grammar_of_endless_text_is_refused():
    with pytest.raises(TooLarge, match="at most"):
        grammar.check(GrammarSpec("regex", "a" * 600_000))


def test_a_package_brings_its_vocabulary(make_package):
    compiled = grammar.compile(GrammarSpec("regex", "a"), grammar.Vocabulary.read(make_package().folder))
    assert len(compiled.allowed())
