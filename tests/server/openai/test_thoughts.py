"""Models that think before they answer: their thoughts are told apart from the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from echo_api import Api, user
from test_published_schema import check

CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "thinker", "messages": user(text), "temperature": 0, **more}


def opened(text: str, **more: Any) -> dict[str, Any]:
    """Its prompt begins the thoughts."""
    return asked(text, chat_template_kwargs={"open": True}, **more)


def message(reply: Any) -> dict[str, Any]:
    assert reply.status == 200, reply.body
    check("CreateChatCompletionResponse", reply.json)
    return reply.json["choices"][0]["message"]


def streamed(api: Api, body: dict[str, Any]) -> tuple[str, str]:
    """(thoughts, answer)"""
    deltas = [choice["delta"] for event in api.events(CHAT, body) for choice in event["choices"]]
    return (
        "".join(delta.get("reasoning_content") or "" for delta in deltas),
        "".join(delta.get("content") or "" for delta in deltas),
    )


CASES = [
    (asked("<think>\nLet me see.\n</think>\n\nYes."), "Let me see.", "Yes."),
    (asked("<think>\n\n</think>\n\nYes."), "", "Yes."),
    (asked("Yes <think>."), "", "Yes <think>."),
    (asked("<think"), "", "<think"),
    (opened("I see.</think>Yes."), "I see.", "Yes."),
    (opened("<think>I see.</think>Yes."), "I see.", "Yes."),
    (opened("I never end </thin"), "I never end </thin", ""),
]


@pytest.mark.parametrize(("body", "thought", "said"), CASES)
def test_thoughts_are_told_apart_whole_and_streamed(api: Api, body: dict[str, Any], thought: str, said: str):
    told = message(api.ask(CHAT, body))
    assert (told.get("reasoning_content", ""), told["content"] or "") == (thought, said)
    assert "reasoning_content" not in told or thought
    assert streamed(api, body) == (thought, said)


def test_tokens_of_thoughts_are_counted(api: Api):
    body = asked("<think>1234</think>5678")
    usage = api.ask(CHAT, body).json["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == len("<think>1234</think>")
    assert usage["completion_tokens"] == len(body["messages"][0]["content"]) + 1
    last = api.events(CHAT, {**body, "stream_options": {"include_usage": True}})[-1]
    assert last["usage"]["completion_tokens_details"] == usage["completion_tokens_details"]


def test_a_call_after_thoughts_is_a_call(api: Api):
    body = asked(f"<think>Hm.</think>{CALL}", tools=[WEATHER])
    reply = api.ask(CHAT, body)
    told = message(reply)
    assert (told["reasoning_content"], told["content"]) == ("Hm.", None)
    assert json.loads(told["tool_calls"][0]["function"]["arguments"]) == {"city": "Oslo"}
    assert reply.json["choices"][0]["finish_reason"] == "tool_calls"


def test_half_of_a_call_is_text(api: Api):
    half = '<tool_call>\n{"name": "weather", "arguments": {"city": "Os'
    for text in (half, '<tool_call>\n{"name": "weather", "arguments": {city}}\n</tool_call>'):
        reply = api.ask(CHAT, asked(f"Wait. {text}", tools=[WEATHER]))
        told = message(reply)
        assert "tool_calls" not in told
        assert told["content"] == f"Wait. {text}".removesuffix("\n</tool_call>")
        assert reply.json["choices"][0]["finish_reason"] == "stop"
        events = api.events(CHAT, asked(text, tools=[WEATHER]))
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
    cut = api.ask(CHAT, asked(half, tools=[WEATHER], max_tokens=len(half) - 10)).json["choices"][0]
    assert (cut["finish_reason"], cut["message"]["tool_calls"][0]["function"]["arguments"]) == (
        "length",
        '{"city": "Os',
    )


def test_a_form_holds_the_answer_and_leaves_the_thoughts_free(api: Api):
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    for body in (opened('I see.</think>{"a": 2'), asked('<think>I see.</think>{"a": 2')):
        told = message(api.ask(CHAT, {**body, "response_format": form}))
        assert told["reasoning_content"] == "I see."
        assert json.loads(told["content"]) == {"a": 1}
    told = message(api.ask(CHAT, asked('{"a": 2', response_format=form)))
    assert json.loads(told["content"]) == {"a": 1}
    forced = message(api.ask(CHAT, opened("Hm.</think>x", tools=[WEATHER], tool_choice="required", max_tokens=200)))
    assert forced["reasoning_content"] == "Hm."
    assert forced["tool_calls"][0]["function"]["name"] == "weather"


def test_responses_have_an_item_of_reasoning(api: Api):
    body = {"model": "thinker", "input": "<think>Let me see.</think>Yes.", "temperature": 0}
    made = api.ask("/v1/responses", body).json
    check("Response", made)
    assert [item["type"] for item in made["output"]] == ["reasoning", "message"]
    assert made["output"][0]["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    assert made["output"][1]["content"][0]["text"] == "Yes."
    assert made["usage"]["output_tokens_details"]["reasoning_tokens"] == len("<think>Let me see.</think>")
    again = api.ask("/v1/responses", {"model": "thinker", "input": [*made["output"], {"role": "user", "content": "x"}]})
    assert again.status == 200, again.body
    more = api.ask("/v1/responses", {"model": "thinker", "input": "x", "previous_response_id": made["id"]})
    assert more.status == 200, more.body


def test_a_streamed_response_tells_its_reasoning_in_order(api: Api):
    body = {"model": "thinker", "input": "<think>Hm.</think>Yes.", "temperature": 0, "stream": True}
    text = api.send("POST", "/v1/responses", body).read().decode()
    events = [json.loads(block.partition("data: ")[2]) for block in text.split("\n\n")[:-1]]
    kinds = list(dict.fromkeys(event["type"] for event in events))
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.reasoning_text.delta", "response.reasoning_text.done", "response.content_part.done",
        "response.output_item.done", "response.output_text.delta", "response.output_text.done", "response.completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(event["delta"] for event in events if event["type"] == "response.reasoning_text.delta") == "Hm."
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == "Yes."
