"""Outputs that are held to a form: JSON, a schema, calls of tools."""

from __future__ import annotations

import json
from typing import Any

import pytest
from echo_api import Api, user

CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": [42]}, "sure": {"const": True}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


def schema_format(schema: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema, **more}}


def message(reply: Any) -> dict[str, Any]:
    assert reply.status == 200, reply.body
    return reply.json["choices"][0]["message"]


def test_an_answer_is_held_to_a_schema(api: Api):
    told = message(api.chat(temperature=0, response_format=schema_format()))
    assert json.loads(told["content"]) == {"answer": 42, "sure": True}
    told = message(api.chat(temperature=0, response_format=schema_format(strict=True)))
    assert json.loads(told["content"]) == {"answer": 42, "sure": True}


def test_an_answer_is_held_to_json(api: Api):
    told = message(api.chat('{"a": [1, 2]}', temperature=0, max_tokens=400, response_format={"type": "json_object"}))
    assert told["content"].startswith("{")


def test_a_stream_is_held_to_a_schema_too(api: Api):
    events = api.chat_events(temperature=0, response_format=schema_format())
    text = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])
    assert json.loads(text) == {"answer": 42, "sure": True}


def test_text_is_a_format_too(api: Api):
    assert message(api.chat(temperature=0, response_format={"type": "text"}))["content"] == "user\nhello"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (schema_format(name="a b"), "response_format.json_schema.name"),
        (schema_format(schema=[]), "response_format.json_schema.schema"),
        (schema_format(schema={"type": "elephant"}), "response_format.json_schema.schema"),
        (schema_format(schema={"type": "object", "properties": {"a": {}}}, strict=True), "response_format.json_schema.schema"),
        (schema_format(strict="yes"), "response_format.json_schema.strict"),
        ({"type": "json_object", "schema": {}}, "response_format.schema"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_held_to_is_refused_with_its_place(api: Api, given: Any, param: str):
    reply = api.chat(response_format=given)
    assert reply.status == 400
    assert str(reply.error["param"]).startswith(param)


@pytest.mark.parametrize("depth", [70, 2000])
def test_a_schema_of_great_depth_is_refused(api: Api, depth: int):
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    body = {"model": "echo", "messages": user("x"), "response_format": schema_format(schema)}
    text = b'{"a":' * depth + b"1" + b"}" * depth
    reply = api.ask(
        CHAT, body if depth < 100 else b'{"model": "echo", "messages": [], "response_format": ' + text + b"}"
    )
    assert reply.status == 400


def test_calls_are_read_out_of_the_text(api: Api):
    body = {
        "model": "echo",
        "messages": [{"role": "system", "content": f"{CALL}\n{CALL}"}, *user("x")],
        "tools": [WEATHER],
    }
    told = api.ask(CHAT, {**body, "temperature": 0}).json["choices"][0]
    assert told["finish_reason"] == "tool_calls"
    assert called(told) == [("weather", {"city": "Oslo"})] * 2
    assert told["message"]["content"].startswith("system\n")
    first = api.ask(CHAT, {**body, "temperature": 0, "parallel_tool_calls": False}).json["choices"][0]
    assert first["finish_reason"] == "tool_calls"
    assert called(first) == [("weather", {"city": "Oslo"})]
    assert first["message"]["content"] == "system\n"
    events = api.events(CHAT, {**body, "temperature": 0})
    pieces = [call for e in events for choice in e["choices"] for call in choice["delta"].get("tool_calls", ())]
    assert [(piece["index"], piece["function"]["name"]) for piece in pieces if "id" in piece] == [
        (0, "weather"), (1, "weather"),
    ]  # fmt: skip
    for index in (0, 1):
        text = "".join(piece["function"]["arguments"] for piece in pieces if piece["index"] == index)
        assert json.loads(text) == {"city": "Oslo"}
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def called(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    calls = choice["message"]["tool_calls"]
    assert all(call["type"] == "function" and call["id"] for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_can_be_forced(api: Api, choice: Any):
    other = {"type": "function", "function": {"name": "other"}}
    tools = [WEATHER] if choice == "required" else [other, WEATHER]
    reply = api.chat(temperature=0, tools=tools, tool_choice=choice, parallel_tool_calls=False, max_tokens=200)
    told = reply.json["choices"][0]
    assert told["finish_reason"] == "tool_calls"
    [(name, arguments)] = called(told)
    assert name == "weather"
    assert arguments["city"] in ("Rome", "Oslo")
    assert told["message"]["content"] is None


def test_a_forced_call_streams_its_name_and_then_its_arguments(api: Api):
    events = api.chat_events(temperature=0, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    choices = [choice for event in events for choice in event["choices"]]
    pieces = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert pieces[0]["function"] == {"name": "weather", "arguments": ""}
    assert pieces[0]["type"] == "function"
    assert pieces[0]["id"]
    assert all(piece["index"] == 0 for piece in pieces)
    assert all("id" not in piece for piece in pieces[1:])
    assert json.loads("".join(piece["function"]["arguments"] for piece in pieces))["city"] in ("Rome", "Oslo")
    assert choices[-1]["finish_reason"] == "tool_calls"
    assert not any(choice["delta"].get("content") for choice in choices)


def test_without_a_choice_there_are_no_calls(api: Api):
    told = message(api.chat(CALL, temperature=0, tools=[WEATHER], tool_choice="none"))
    assert "tool_calls" not in told


def test_tools_and_a_schema_together_give_one_or_the_other(api: Api):
    reply = api.chat(temperature=0, tools=[WEATHER], response_format=schema_format(), max_tokens=300)
    told = message(reply)
    assert told.get("tool_calls") or json.loads(told["content"]) == {"answer": 42, "sure": True}


def test_a_conversation_with_calls_and_their_results_is_taken(api: Api):
    messages = [
        *user("weather?"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    reply = api.ask(CHAT, {"model": "echo", "messages": messages, "tools": [WEATHER], "max_tokens": 5})
    assert reply.status == 200, reply.body


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "f", "colour": 1}}]}, "tools[0].function.colour"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [WEATHER] * 129}, "tools"),
    ],
)
def test_tools_that_cannot_be_are_refused(api: Api, more: dict[str, Any], param: str):
    reply = api.chat(**more)
    assert reply.status == 400
    assert str(reply.error["param"]).startswith(param)


def test_arguments_of_an_earlier_call_may_be_what_the_model_wrote_even_if_it_is_no_json(api: Api):
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Os'}}
    messages = [
        *user("x"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "?"},
    ]
    reply = api.ask(CHAT, {"model": "echo", "messages": messages, "max_tokens": 5})
    assert reply.status == 200, reply.body


def test_only_the_allowed_tools_can_be_called(api: Api):
    other = {"type": "function", "function": {"name": "other"}}
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    calls = message(api.chat(temperature=0, tools=[other, WEATHER], tool_choice=choice))["tool_calls"]
    assert {call["function"]["name"] for call in calls} == {"weather"}
    allowed["tools"] = [{"type": "function", "function": {"name": "another"}}]
    assert api.chat(tools=[other, WEATHER], tool_choice=choice).error["param"] == "tool_choice"


def test_functions_are_the_older_form_of_tools(api: Api):
    asked = {"functions": [WEATHER["function"]], "function_call": {"name": "weather"}, "temperature": 0}
    reply = api.chat(**asked)
    told = message(reply)
    assert "tool_calls" not in told
    assert told["function_call"]["name"] == "weather"
    assert list(json.loads(told["function_call"]["arguments"])) == ["city"]
    assert reply.json["choices"][0]["finish_reason"] == "function_call"
    deltas = [choice["delta"] for event in api.chat_events(**asked) for choice in event["choices"]]
    calls = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert [call["name"] for call in calls if "name" in call] == ["weather"]
    assert "".join(call["arguments"] for call in calls) == told["function_call"]["arguments"]
    history = [*user("hello"), told, {"role": "function", "name": "weather", "content": "rain"}]
    assert api.ask(CHAT, {"model": "echo", "messages": history, "max_tokens": 1}).status == 200
    free = message(api.chat(functions=[WEATHER["function"]], function_call="none", temperature=0))
    assert "function_call" not in free


ASKED_FOR = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
ANSWER = {"role": "tool", "tool_call_id": "c1", "content": "rain"}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ([ANSWER], "messages[1].tool_call_id"),
        ([{"role": "assistant", "tool_calls": [ASKED_FOR]}], "messages[1].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": [ASKED_FOR]}, *user("and?")], "messages[1].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": [ASKED_FOR]}, ANSWER, ANSWER], "messages[3].tool_call_id"),
        ([{"role": "assistant", "tool_calls": [ASKED_FOR]}, {**ANSWER, "tool_call_id": "c2"}], "messages[2].tool_call_id"),
        ([{"role": "function", "name": "weather", "content": "rain"}], "messages[1].tool_call_id"),
    ],
)  # fmt: skip
def test_calls_and_answers_of_tools_belong_together(api: Api, more: list[Any], param: str):
    reply = api.ask(CHAT, {"model": "echo", "messages": [*user("hello"), *more]})
    assert (reply.status, reply.error["param"]) == (400, param)
