"""The Responses API over real HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from echo_api import Api, Reply

PATH = "/v1/responses"
SAID = "user\nhello"
TOOL = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def respond(api: Api, given: Any = "hello", headers: dict[str, str] | None = None, **more: Any) -> Reply:
    return api.ask(PATH, {"model": "echo", "input": given, "temperature": 0, **more}, **(headers or {}))


def text_of(reply: Reply) -> str:
    assert reply.status == 200, reply.body
    return "".join(p["text"] for item in reply.json["output"] if item["type"] == "message" for p in item["content"])


def stream(api: Api, **more: Any) -> list[dict[str, Any]]:
    body = {"model": "echo", "input": "hello", "temperature": 0, "stream": True, **more}
    response = api.send("POST", PATH, body)
    text = response.read().decode()
    assert response.status == 200, text
    events = []
    for block in text.split("\n\n")[:-1]:
        kind, data = block.split("\n")
        told = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {told['type']}"
        events.append(told)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def test_an_answer_is_a_message(api: Api):
    told = respond(api).json
    assert told["object"] == "response"
    assert told["status"] == "completed"
    [item] = told["output"]
    assert item["type"] == "message"
    assert item["content"] == [{"type": "output_text", "text": SAID, "annotations": [], "logprobs": []}]
    assert told["usage"]["output_tokens"] == len("_user\nhello_")
    assert told["usage"]["total_tokens"] == told["usage"]["input_tokens"] + told["usage"]["output_tokens"]


def test_instructions_come_first(api: Api):
    assert text_of(respond(api, instructions="Be brief.")) == "system\nBe brief."


def test_items_of_all_kinds_are_taken(api: Api):
    items = [
        {"role": "user", "content": "weather?"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "in Oslo"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}', "id": "fc_1"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "It rains.", "annotations": []}]},
    ]  # fmt: skip
    assert text_of(respond(api, items)) == "user\nweather?"


def test_a_cut_answer_is_incomplete_and_says_why(api: Api):
    told = respond(api, max_output_tokens=4).json
    assert told["status"] == "incomplete"
    assert told["incomplete_details"] == {"reason": "max_output_tokens"}
    assert told["output"][0]["status"] == "incomplete"


def test_a_stream_has_all_events_in_order(api: Api):
    events = stream(api)
    kinds = [event["type"] for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert "".join(event["delta"] for event in events[4:-4]) == SAID == events[-4]["text"]
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert events[-1]["response"]["usage"]["output_tokens"] == len("_user\nhello_")


def test_a_cut_stream_ends_incomplete(api: Api):
    assert stream(api, max_output_tokens=4)[-1]["type"] == "response.incomplete"


def test_a_forced_call_is_an_item(api: Api):
    told = respond(api, tools=[TOOL], tool_choice="required", parallel_tool_calls=False).json
    [item] = told["output"]
    assert item["type"] == "function_call"
    assert (item["name"], json.loads(item["arguments"])) == ("weather", {"city": "Oslo"})
    assert told["tools"][0]["name"] == "weather"
    events = stream(api, tools=[TOOL], tool_choice={"type": "function", "name": "weather"}, parallel_tool_calls=False)
    kinds = [event["type"] for event in events]
    assert kinds[2] == "response.output_item.added"
    assert "response.function_call_arguments.delta" in kinds
    [done] = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert json.loads(done["arguments"]) == {"city": "Oslo"}


def test_an_answer_is_held_to_a_schema(api: Api):
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "name": "form", "schema": schema, "strict": True}
    reply = respond(api, text={"format": form})
    assert json.loads(text_of(reply)) == {"a": 1}
    assert reply.json["text"]["format"]["name"] == "form"


def test_logprobs_come_where_they_are_asked_for(api: Api):
    told = respond(api, include=["message.output_text.logprobs"], top_logprobs=1).json
    entries = told["output"][0]["content"][0]["logprobs"]
    assert "".join(entry["token"] for entry in entries[1:]) == SAID
    assert len(entries[0]["top_logprobs"]) == 1


def test_a_conversation_goes_on_by_id(api: Api):
    first = respond(api, "one").json
    second = respond(api, "two", previous_response_id=first["id"]).json
    assert second["previous_response_id"] == first["id"]
    assert second["usage"]["input_tokens"] > first["usage"]["total_tokens"]
    items = api.get(f"{PATH}/{second['id']}/input_items?order=asc").json["data"]
    said = [part["text"] for item in items for part in item["content"]]
    assert said == ["one", "user\none", "two"]


def test_items_can_be_referred_to(api: Api):
    first = respond(api, "one").json
    item = {"type": "item_reference", "id": first["output"][0]["id"]}
    reply = respond(api, [{"role": "user", "content": "one"}, item, {"role": "user", "content": "two"}])
    assert reply.status == 200
    assert respond(api, [{"type": "item_reference", "id": "msg_none"}]).error["code"] == "item_not_found"


def test_what_is_kept_can_be_read_and_deleted(api: Api):
    made = respond(api).json
    assert api.get(f"{PATH}/{made['id']}").json == made
    with api.send("DELETE", f"{PATH}/{made['id']}") as response:
        assert json.loads(response.read()) == {"id": made["id"], "object": "response", "deleted": True}
    assert api.get(f"{PATH}/{made['id']}").status == 404
    reply = respond(api, previous_response_id=made["id"])
    assert (reply.status, reply.error["code"]) == (400, "previous_response_not_found")


def test_what_shall_not_be_kept_is_not(api: Api):
    made = respond(api, store=False).json
    assert made["store"] is False
    assert api.get(f"{PATH}/{made['id']}").status == 404


def test_another_tenant_reads_nothing(api: Api):
    made = respond(api, headers={"authorization": "Bearer mine"}).json
    assert api.get(f"{PATH}/{made['id']}", authorization="Bearer mine").status == 200
    assert api.get(f"{PATH}/{made['id']}", authorization="Bearer other").status == 404
    assert api.get(f"{PATH}/{made['id']}").status == 404
    reply = respond(api, previous_response_id=made["id"], headers={"authorization": "Bearer other"})
    assert reply.error["code"] == "previous_response_not_found"


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"background": True}, "background", "unsupported_parameter"),
        ({"truncation": "middle"}, "truncation", "invalid_value"),
        ({"conversation": "c"}, "conversation", "unsupported_parameter"),
        ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
        ({"reasoning": {"effort": "some"}}, "reasoning.effort", "invalid_value"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type", "invalid_value"),
        ({"text": {"form": 1}}, "text.form", "unknown_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "unsupported_parameter"),
        ({"input": [{"type": "reasoning", "id": "r", "content": "x"}]}, "input[0].content", "invalid_type"),
        ({"input": [{"type": "computer_call", "id": "c"}]}, "input[0].type", "unsupported_parameter"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type", "unsupported_parameter"),
        ({"input": [{"role": "user", "content": "x", "what": 1}]}, "input[0].what", "unknown_parameter"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": 5}, "input", "invalid_type"),
        ({"max_output_tokens": 9000}, "input", "context_length_exceeded"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "invalid_value"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"metadata": {"a": "x" * 600}}, "metadata", "invalid_value"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(api: Api, more: dict[str, Any], param: str, code: str):
    reply = respond(api, **{"given": "hello", **({"given": more.pop("input")} if "input" in more else {}), **more})
    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == (param, code)


def test_input_is_counted_without_an_answer(api: Api):
    asked = {"model": "echo", "input": "hello", "instructions": "Be brief."}
    told = api.ask("/v1/responses/input_tokens", asked).json
    usage = api.ask("/v1/responses", {**asked, "max_output_tokens": 16}).json["usage"]
    assert told == {"object": "response.input_tokens", "input_tokens": usage["input_tokens"]}
    assert api.ask("/v1/responses/input_tokens", {"model": "echo"}).error["param"] == "input"


def test_items_of_the_input_come_in_pages(api: Api):
    parts = [{"role": "user", "content": str(number)} for number in range(5)]
    name = api.ask("/v1/responses", {"model": "echo", "input": parts, "max_output_tokens": 16}).json["id"]

    def page(query: str) -> Any:
        return api.get(f"/v1/responses/{name}/input_items?{query}").json

    first = page("limit=2&order=asc")
    assert [item["content"][0]["text"] for item in first["data"]] == ["0", "1"]
    assert (first["has_more"], first["last_id"]) == (True, first["data"][1]["id"])
    last = page(f"limit=3&order=asc&after={first['last_id']}")
    assert [item["content"][0]["text"] for item in last["data"]] == ["2", "3", "4"]
    assert not last["has_more"]
    assert [item["content"][0]["text"] for item in page("limit=1")["data"]] == ["4"]
    for query, param in (("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=x", "after")):
        reply = api.get(f"/v1/responses/{name}/input_items?{query}")
        assert (reply.status, reply.error["param"]) == (400, param)


def test_what_is_kept_does_not_stream(api: Api):
    name = api.ask("/v1/responses", {"model": "echo", "input": "x", "max_output_tokens": 16}).json["id"]
    assert api.get(f"/v1/responses/{name}?stream=true").error["param"] == "stream"
    assert api.get(f"/v1/responses/{name}?stream=false").status == 200
