"""What clients of other servers send beside OpenAI's fields: served, told as ignored, or refused with the mend."""

from __future__ import annotations

import json
from typing import Any

import pytest
from echo_api import Api, user

from pelton.server.openai.foreign import FOREIGN

CHAT = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
GBNF = 'root ::= "x" tail\ntail ::= [0-9] "!"'
LARK = 'start: "x" tail\ntail: /[0-9]/ "!"'


def said(reply: Any) -> str:
    assert reply.status == 200, reply.body
    choice = reply.json["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


@pytest.mark.parametrize("ask", [Api.chat, Api.complete])
@pytest.mark.parametrize(
    ("more", "fits"),
    [
        ({"guided_json": SCHEMA}, lambda text: json.loads(text) == {"a": 1}),
        ({"guided_json": json.dumps(SCHEMA)}, lambda text: json.loads(text) == {"a": 1}),
        ({"structured_outputs": {"json": SCHEMA}}, lambda text: json.loads(text) == {"a": 1}),
        ({"guided_choice": ["yes, é", "no"]}, lambda text: text in ("yes, é", "no")),
        ({"structured_outputs": {"choice": ["no"], "json": None}}, lambda text: text == "no"),
        ({"guided_regex": "a/b[0-9]{2}"}, lambda text: text.startswith("a/b") and len(text) == 5),
        ({"structured_outputs": {"regex": r"[\da]\d{2}"}}, lambda text: text.isascii() and len(text) == 3),
        ({"guided_grammar": LARK}, lambda text: text[0] + text[2] == "x!"),
        ({"guided_grammar": GBNF}, lambda text: text[0] + text[2] == "x!"),
        ({"structured_outputs": {"json_object": True}}, lambda text: text.startswith("{")),
    ],
)
def test_an_output_is_held_to_a_form(api: Api, ask: Any, more: dict[str, Any], fits: Any):
    assert fits(said(ask(api, **{"temperature": 0, "max_tokens": 300, **more})))


def test_thoughts_come_before_any_form(api: Api):
    for more in ({"guided_regex": "a/b"}, {"guided_choice": ["a/b"]}, {"guided_grammar": 'start: "a/b"'}):
        body = {"model": "thinker", "messages": user("<think>Hm.</think>x"), "temperature": 0, **more}
        told = api.ask(CHAT, body).json["choices"][0]["message"]
        assert (told["reasoning_content"], told["content"]) == ("Hm.", "a/b")
    hidden = api.ask(CHAT, {**body, "include_reasoning": False}).json["choices"][0]["message"]
    assert (hidden.get("reasoning_content"), hidden["content"]) == (None, "a/b")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"type": "nothing"}}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar"),
        ({"guided_grammar": "root ::= ("}, "guided_grammar"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
        ({"stop_token_ids": [100_000]}, "stop_token_ids"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
    ],
)
def test_a_form_that_cannot_be_is_named(api: Api, more: dict[str, Any], param: str):
    reply = api.chat(**more)
    assert (reply.status, reply.error["param"]) == (400, param), reply.error


def test_other_stops(api: Api):
    assert said(api.chat("hello", temperature=0, stop_token_ids=[ord("l")])) == "user\nhe"
    assert said(api.chat("hello", temperature=0, stop="ll", include_stop_str_in_output=True)) == "user\nhell"
    assert said(api.complete("hello", temperature=0, stop="l", include_stop_str_in_output=True)) == "hel"
    assert said(api.complete("hello", temperature=0, stop_token_ids=[ord("l")])) == "he"


def test_what_changes_nothing_is_told_as_ignored(api: Api):
    reply = api.chat(
        temperature=0, skip_special_tokens=True, use_beam_search=False, length_penalty=1.0, cache_prompt=True
    )
    assert said(reply) == "user\nhello"
    assert reply.headers["pelton-ignored"].split(", ") == [
        "skip_special_tokens", "use_beam_search", "length_penalty", "cache_prompt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_tokens", 5), ("truncate_prompt_tokens", 10), ("skip_special_tokens", False), ("repeat_penalty", 1.2), ("min_tokens", True)],
)  # fmt: skip
def test_what_would_change_something_is_refused_with_the_mend(api: Api, name: str, value: Any):
    error = api.chat(**{name: value}).error
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert FOREIGN[name].why in error["message"]


def test_effort_goes_to_a_template_that_knows_it_and_is_told_as_ignored_otherwise(api: Api):
    reply = api.chat(temperature=0, reasoning_effort="high", verbosity="low")
    assert reply.headers["pelton-ignored"] == "verbosity, reasoning_effort"
    assert "pelton-ignored" not in api.chat(reasoning_effort="none").headers
    body = {"model": "thinker", "messages": user("I see.</think>Yes."), "temperature": 0}
    for effort, thought in (("high", "I see."), ("none", None)):
        reply = api.ask(CHAT, {**body, "reasoning_effort": effort})
        assert "pelton-ignored" not in reply.headers
        assert reply.json["choices"][0]["message"].get("reasoning_content") == thought
    reply = api.ask(
        "/v1/responses", {"model": "echo", "input": "x", "reasoning": {"effort": "low"}, "text": {"verbosity": "low"}}
    )
    assert reply.headers["pelton-ignored"] == "text.verbosity, reasoning.effort"
    assert reply.json["reasoning"]["effort"] == "low"
