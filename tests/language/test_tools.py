from __future__ import annotations

import itertools
import json
import random

import pytest

pytest.importorskip("llguidance")

from pelton.errors import InvalidInput, Unsupported
from pelton.language import grammar, tools
from pelton.language.tool_parser import CallPiece, ToolParser

SCHEMA = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["Paris", "Rome"]}},
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
NAMES = {"weather": SCHEMA, "clock": {}}
STYLES = ("hermes", "tags", "llama3", "mistral", "json")


def parsed(style, text, size=1000):
    """(text, calls) of a text that comes in pieces."""
    numbers = itertools.count()
    parser = ToolParser(style, {"weather": {"properties": TYPES}, "clock": {}}, lambda: f"id{next(numbers)}")
    pieces = []
    for i in range(0, len(text), size):
        pieces += parser.push(text[i : i + size])
    pieces += parser.finish()
    for i, call in enumerate(parser.calls):
        own = [piece for piece in pieces if isinstance(piece, CallPiece) and piece.index == i]
        assert (own[0].id, own[0].name, own[0].arguments) == (call.id, call.name, "")
        assert not any(piece.id or piece.name for piece in own[1:])
        assert "".join(piece.arguments for piece in own) == call.arguments
    said = "".join(piece for piece in pieces if isinstance(piece, str))
    return said, [(call.name, call.arguments, call.complete) for call in parser.calls]


TYPES = {"city": {"type": "string"}, "days": {"type": "integer"}, "near": {"type": ["string", "null"]},
         "ok": {"type": "boolean"}, "more": {"anyOf": [{"type": "object"}, {"type": "null"}]}}  # fmt: skip
TAGGED = "".join(
    f"<parameter={name}>\n{text}\n</parameter>\n"
    for name, text in {
        "city": 'New "York"', "days": "3", "near": "null", "ok": "True", "more": '{"a": 1}', "other": "5",
    }.items()
)  # fmt: skip
PARIS = '{"city": "Paris \\"}{\\" ]"}'
CASES = [
    ("hermes", f'Wait.\n<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>', "Wait.\n", [("weather", PARIS, True)]),
    (
        "hermes",
        '<tool_call>{"name": "clock", "arguments": {}}</tool_call>\n<tool_call>{"arguments": {"a": [1]}, "name": "weather"}</tool_call>',
        "",
        [("clock", "{}", True), ("weather", '{"a": [1]}', True)],
    ),
    ("hermes", '<tool_call>{"name": "clock"}</tool_call> and then', "and then", [("clock", "{}", True)]),
    ("hermes", '<tool_call>{"name": "clock", "arguments": "{\\"a\\": 1}"}', "", [("clock", '{"a": 1}', True)]),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Pa', "", [("weather", '{"city": "Pa', False)]),
    ("hermes", '<tool_call>{"name": "clock", "arguments": {"a": 1}</tool_call> x', "x", [("clock", '{"a": 1}', True)]),
    ("hermes", '<tool_call>{"name": "clock", "arguments": {"a": 1}', "", [("clock", '{"a": 1}', True)]),
    ("hermes", '<tool_call>[{"name": "clock", "arguments": {}}, {"name": "weather", "arguments": {"city": "Rome"}}]</tool_call>', "", [("clock", "{}", True), ("weather", '{"city": "Rome"}', True)]),
    ("hermes", '<tool_call>{"name": "clock", "arguments": {}}</tool_call>\n{"a": 1}', '{"a": 1}', [("clock", "{}", True)]),
    ("hermes", '<tool_call>{"name": "clock", "arguments": {a}}</tool_call>', "", [("clock", "{a}", False)]),
    ("hermes", '<tool_call>{"name": "clock"', "", [("clock", "", False)]),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', None, []),
    ("hermes", "<tool_call>nonsense</tool_call> a < b <tool_ca", None, []),
    ("hermes", '<tool_call>\n<function=clock>\n</function>\n</tool_call>', "", [("clock", "{}", True)]),
    ("hermes", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>\n<tool_call>clock\n</tool_call>", "", [("weather", '{"city": "Rome"}', True), ("clock", "{}", True)]),
    ("tags", f"Wait.\n<tool_call>\n<function=weather>\n{TAGGED}</function>\n</tool_call>\n<tool_call>\n<function=clock>\n</function>\n</tool_call>", "Wait.\n", [("weather", '{"city": "New \\"York\\"", "days": 3, "near": null, "ok": true, "more": {"a": 1}, "other": "5"}', True), ("clock", "{}", True)]),
    ("tags", "<function=weather>\n<parameter=city>\n5\n</parameter>\n</function>\n</tool_call> and then", "and then", [("weather", '{"city": "5"}', True)]),
    ("tags", "<function=weather><parameter=days>many</parameter></function>", "", [("weather", '{"days": "many"}', True)]),
    ("tags", '<tool_call>{"name": "clock", "arguments": {}}</tool_call>', "", [("clock", "{}", True)]),
    ("tags", "<tool_call>\n<function=weather>\n<parameter=city>\nOs", "", [("weather", "", False)]),
    ("tags", "<tool_call>\n<function=unknown>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>", None, []),
    ("tags", "<tool_call>\nI think so, and go on and on about it without an end, and without any call at all.", None, []),
    ("tags", "a <function of x> and <tool_call>\n<func", None, []),
    ("llama3", '{"name": "clock", "parameters": {}}; {"name": "weather", "parameters": {"city": "Rome"}}', "", [("clock", "{}", True), ("weather", '{"city": "Rome"}', True)]),
    ("llama3", '<|python_tag|>{"name": "clock", "parameters": {}}', "", [("clock", "{}", True)]),
    ("llama3", '{"answer": 42}', None, []),
    ("llama3", 'I say {"name": "clock", "parameters": {}}', None, []),
    ("mistral", '[TOOL_CALLS][{"name": "clock", "arguments": {}}, {"name": "weather", "arguments": {"city": "Rome"}}]', "", [("clock", "{}", True), ("weather", '{"city": "Rome"}', True)]),
    ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}[TOOL_CALLS]clock{}', "", [("weather", '{"city": "Rome"}', True), ("clock", "{}", True)]),
    ("json", '```json\n{"name": "clock", "arguments": {}}\n```', "", [("clock", "{}", True)]),
    ("json", '[{"name": "clock", "arguments": null}, {"name": "weather", "parameters": {"city": "Rome"}}]', "", [("clock", "{}", True), ("weather", '{"city": "Rome"}', True)]),
    ("json", "[1, 2, 3]", None, []),
    ("json", "Plain text {here}.", None, []),
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("style", "text", "said", "calls"), CASES)
def test_calls_are_read_however_the_text_is_cut(style, text, said, calls, size):
    assert parsed(style, text, size) == (text if said is None else said, calls)


def test_arguments_stream_as_they_come():
    parser = ToolParser("hermes", NAMES)
    parser.push('<tool_call>{"name": "weather", "arguments": {"ci')
    assert [piece.arguments for piece in parser.push('ty": "Pa')] == ['ty": "Pa']
    assert parser.calls[0].id.startswith("call_")


def test_mistral_gets_ids_that_its_template_accepts():
    parser = ToolParser("mistral", NAMES)
    parser.push('[TOOL_CALLS][{"name": "clock", "arguments": {}}]')
    assert len(parser.calls[0].id) == 9
    assert parser.calls[0].id.isalnum()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("parallel", [True, False])
def test_a_forced_call_is_one_that_the_parser_reads(style, parallel, make_card, tokenizer, byte_level_json):
    spec = tools.forcing_grammar([WEATHER, CLOCK], make_card(tool_style=style), tokenizer, parallel=parallel)
    grammar.check(spec)
    vocabulary = grammar.Vocabulary(byte_level_json.decode(), tokenizer.vocab_size, (2,))
    chance = random.Random(3)
    counts = set()
    for _ in range(6):
        compiled, ids = vocabulary.compile(spec), []
        while len(allowed := compiled.allowed()):
            token = 2 if 2 in allowed and len(ids) > 150 else chance.choice(allowed)
            if token == 2:
                break
            ids.append(token)
            compiled.advance(token)
        said, calls = parsed(style, tokenizer.decode(ids))
        assert said.strip() == ""
        assert calls
        counts.add(len(calls))
        for name, arguments, complete in calls:
            assert complete
            assert json.loads(arguments) in ([{"city": "Paris"}, {"city": "Rome"}] if name == "weather" else [{}])
    assert parallel or counts == {1}


def test_a_named_tool_is_the_only_one(make_card, tokenizer):
    spec = tools.forcing_grammar([WEATHER, CLOCK], make_card(), tokenizer, only="clock")
    assert "clock" in spec.text
    assert "weather" not in spec.text
    with pytest.raises(InvalidInput, match="no tool 'radio'; offered are weather, clock"):
        tools.forcing_grammar([WEATHER, CLOCK], make_card(), tokenizer, only="radio")


def test_a_marker_that_is_a_control_token_is_forced_and_shown_as_that_token(make_card, byte_level_json):
    from pelton.language import Tokenizer

    raw = json.loads(byte_level_json)
    for entry in raw["added_tokens"]:
        entry["special"] = True
    special = Tokenizer(json.dumps(raw).encode())
    marker = special.id_of("<tool_call>")
    assert f"<[{marker}]>" in tools.forcing_grammar([CLOCK], make_card(), special).text
    assert tools.shown(special, True, None) == {marker}


@pytest.mark.parametrize(
    ("offered", "error", "why"),
    [
        ([{"type": "web_search"}], Unsupported, r"tools\[0\]: only tools of the type 'function'"),
        ([{"type": "function", "function": {"name": "a b"}}], InvalidInput, r"tools\[0\].function.name"),
        ([CLOCK, CLOCK], InvalidInput, r"tools\[1\].function.name: 'clock' is there twice"),
        (
            [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}],
            InvalidInput,
            r"tools\[0\].function.parameters.type",
        ),
        (
            [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}],
            InvalidInput,
            r"tools\[0\].function.parameters: with strict",
        ),
        ([CLOCK] * 129, InvalidInput, "129 tools"),
    ],
)
def test_tools_that_cannot_be_offered_are_refused_with_their_place(offered, error, why):
    with pytest.raises(error, match=why):
        tools.check(offered)


@pytest.mark.parametrize(
    ("template", "style", "shows"),
    [
        ("{{ tools }} <tool_call>", "hermes", True),
        ("{{ tools }} <tool_call> <function=x> <parameter=y>", "tags", True),
        ("{{ tools }} [TOOL_CALLS]", "mistral", True),
        ('{{ tools }} <|python_tag|> "parameters": ', "llama3", True),
        ("{{ tools }}", "json", True),
        ("{{ messages }}", "hermes", False),
    ],
)
def test_the_style_of_calls_is_read_from_the_template(template, style, shows):
    assert (tools.style_of(template), tools.uses_tools(template)) == (style, shows)
