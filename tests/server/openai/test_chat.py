"""Chat completions over real HTTP, from a model that says its prompt again."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from echo_api import Api, user

SAID = "user\nhello"  # what the model says to "hello": its prompt, up to the token that ends a message


def deltas(events: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    return [choice for event in events for choice in event["choices"] if choice["index"] == index]


def text_of(events: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(choice["delta"].get("content", "") for choice in deltas(events, index))


def test_an_answer_has_text_usage_and_a_true_finish_reason(api: Api):
    reply = api.chat(temperature=0)
    told = reply.json
    assert reply.status == 200
    assert told["object"] == "chat.completion"
    assert told["model"] == "echo"
    assert told["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": SAID, "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    usage = told["usage"]
    assert usage["prompt_tokens"] == len("_user\nhello_\n_assistant\n")
    assert usage["completion_tokens"] == len("_user\nhello_")
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_headers_are_a_receipt(api: Api):
    headers = api.chat(temperature=0, max_tokens=4).headers
    assert headers["pelton-engine"] == "echo"
    assert len(headers["pelton-version"]) == 12
    assert headers["x-request-id"]
    assert headers["pelton-tokens"].endswith(";completion=4")
    assert [part.split(";")[0] for part in headers["server-timing"].split(", ")] == ["queue", "prefill", "decode"]


def test_the_body_carries_a_receipt_for_those_who_ask(api: Api):
    body = {"model": "echo", "messages": user("hello"), "temperature": 0, "max_tokens": 3}
    receipt = api.ask("/v1/chat/completions", body, pelton_receipt="true").json["receipt"]
    assert receipt["engine"] == "echo"
    assert receipt["model"].startswith("echo:")
    assert receipt["completion_tokens"] == 3
    assert receipt["decode_ms"] >= 0
    events = api.events("/v1/chat/completions", body, pelton_receipt="true")
    assert events[-1]["receipt"]["completion_tokens"] == 3
    assert "receipt" not in api.ask("/v1/chat/completions", body).json


def test_a_stream_says_the_same_and_its_chunks_are_of_the_exact_form(api: Api):
    events = api.chat_events(temperature=0)
    assert text_of(events) == SAID
    first, last = events[0], events[-1]
    assert first["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    for event in events:
        assert event["object"] == "chat.completion.chunk"
        assert event["id"] == first["id"]
        assert event["created"] == first["created"]
        assert "usage" not in event
        assert [c["finish_reason"] for c in event["choices"]] == ["stop" if event is last else None]


def test_usage_comes_in_a_chunk_of_its_own_behind_the_last(api: Api):
    events = api.chat_events(temperature=0, stream_options={"include_usage": True})
    assert all(event["usage"] is None for event in events[:-1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == api.chat(temperature=0).json["usage"] | {
        "prompt_tokens_details": events[-1]["usage"]["prompt_tokens_details"]
    }


def test_max_tokens_ends_an_answer_with_length(api: Api):
    for name in ("max_tokens", "max_completion_tokens"):
        choice = api.chat(temperature=0, **{name: 5}).json["choices"][0]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"] == SAID[:4]  # the first token is a control token, which is no text


def test_an_answer_may_fill_the_context_and_no_more(api: Api):
    body = {"model": "small", "messages": user("hello"), "temperature": 0, "ignore_eos": True}
    told = api.ask("/v1/chat/completions", body).json
    assert told["usage"]["total_tokens"] == 64
    assert told["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stop", ["lo", ["zzz", "lo"], ["l", "lo"]])
def test_a_stop_string_ends_the_answer_and_is_not_in_it(api: Api, stop: Any):
    choice = api.chat(temperature=0, stop=stop).json["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == ("user\nhe" if stop == ["l", "lo"] else "user\nhel")


def test_a_stop_string_across_tokens_is_not_in_a_stream_either(api: Api):
    events = api.chat_events(temperature=0, stop="hell")
    assert text_of(events) == "user\n"
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_what_only_begins_like_a_stop_string_is_said(api: Api):
    assert text_of(api.chat_events(temperature=0, stop="hellish")) == SAID


def test_text_beyond_ascii_arrives_whole(api: Api):
    text = "Grüße, 世界 🐟"
    assert api.chat(text, temperature=0).json["choices"][0]["message"]["content"] == f"user\n{text}"
    events = api.chat_events(text, temperature=0)
    assert text_of(events) == f"user\n{text}"
    assert all("\ufffd" not in json.dumps(event, ensure_ascii=False) for event in events)


def test_several_choices_come_with_their_index_and_one_usage(api: Api):
    told = api.chat(temperature=0, n=3).json
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in told["choices"]} == {SAID}
    alone = api.chat(temperature=0).json["usage"]
    assert told["usage"]["prompt_tokens"] == alone["prompt_tokens"]
    assert told["usage"]["completion_tokens"] == 3 * alone["completion_tokens"]


def test_choices_of_a_stream_are_told_apart_by_their_index(api: Api):
    events = api.chat_events(temperature=0, n=3, stream_options={"include_usage": True})
    for index in range(3):
        own = deltas(events, index)
        assert own[0]["delta"]["role"] == "assistant"
        assert own[-1]["finish_reason"] == "stop"
        assert text_of(events, index) == SAID
    assert sum(len(event["choices"]) == 0 for event in events) == 1


def test_the_same_seed_gives_the_same_and_choices_differ(api: Api):
    told = [api.chat("a long enough text", seed=5, n=2, max_tokens=20).json["choices"] for _ in range(2)]
    assert told[0] == told[1]
    assert told[0][0]["message"] != told[0][1]["message"]
    other = api.chat("a long enough text", seed=6, max_tokens=20).json["choices"]
    assert other[0]["message"] != told[0][0]["message"]


def test_without_a_seed_answers_differ(api: Api):
    said = {api.chat("a long enough text", max_tokens=20).json["choices"][0]["message"]["content"] for _ in range(4)}
    assert len(said) > 1


def test_a_bias_forces_a_token(api: Api):
    choice = api.chat(temperature=0, max_tokens=3, logit_bias={str(ord("x")): 100}).json["choices"][0]
    assert choice["message"]["content"] == "xxx"


def test_logprobs_go_with_the_text_token_by_token(api: Api):
    choice = api.chat(temperature=0, logprobs=True, top_logprobs=2).json["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content[1:]) == SAID
    assert bytes(byte for entry in content[1:] for byte in entry["bytes"]).decode() == SAID
    for entry in content:
        assert entry["logprob"] == pytest.approx(-math.log(2))
        assert entry["top_logprobs"][0]["token"] == entry["token"]
        assert len(entry["top_logprobs"]) == 2
    assert choice["logprobs"]["refusal"] is None


def test_logprobs_without_top_ones(api: Api):
    content = api.chat(temperature=0, logprobs=True).json["choices"][0]["logprobs"]["content"]
    assert all(entry["top_logprobs"] == [] for entry in content)


def test_logprobs_of_a_stream_stop_where_its_text_does(api: Api):
    events = api.chat_events(temperature=0, logprobs=True, stop="hell")
    logged = [e for choice in deltas(events) if choice["logprobs"] for e in choice["logprobs"]["content"]]
    assert "".join(entry["token"] for entry in logged[1:]) == "user\n" == text_of(events)


def test_parts_of_text_and_all_roles_are_taken(api: Api):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "audio": None, "annotations": []},
        {"role": "user", "content": "d"},
    ]
    told = api.ask("/v1/chat/completions", {"model": "echo", "messages": messages, "temperature": 0}).json
    assert told["choices"][0]["message"]["content"] == "system\nBe brief."


def test_a_caller_cannot_write_control_tokens(api: Api):
    told = api.chat("<|im_end|>", temperature=0).json
    assert told["choices"][0]["message"]["content"] == "user\n<|im_end|>"


def test_what_cannot_change_an_answer_is_taken_and_said(api: Api):
    reply = api.chat(
        temperature=0, user="u", store=True, metadata={"a": "b"}, service_tier="auto", prompt_cache_key="k",
        safety_identifier="s", modalities=["text"], verbosity="medium", parallel_tool_calls=True,
    )  # fmt: skip
    assert reply.status == 200
    assert reply.headers["pelton-ignored"].split(", ") == [
        "user", "store", "metadata", "service_tier", "prompt_cache_key", "safety_identifier",
    ]  # fmt: skip


def test_versions_and_keys_are_taken(api: Api):
    version = api.chat(max_tokens=1).headers["pelton-version"]
    body = {"messages": user("hello"), "max_tokens": 1}
    for model in (f"echo:{version}", "echo:" + version[:6]):
        reply = api.ask("/v1/chat/completions", {"model": model, **body}, authorization="Bearer sk-1")
        assert reply.status == 200, reply.body
        assert reply.json["model"] == model
    refused = api.ask("/v1/chat/completions", {"model": "echo:ffff", **body})
    assert (refused.status, refused.error["code"]) == (404, "model_not_found")


def test_keys_are_never_logged(api: Api):
    body = {"model": "echo", "messages": user("hello"), "max_tokens": 1}
    secret = "sk-very-secret-42"
    for headers in ({"authorization": f"Bearer {secret}"}, {"api_key": secret}, {"x_api_key": secret}):
        assert api.ask("/v1/chat/completions", body, **headers).status == 200
        assert api.ask("/v1/chat/completions", {**body, "n": "x"}, **headers).status == 400
    assert secret not in api.log.read_text()


def test_a_prefix_is_cached_within_a_tenant_only(api: Api):
    text = "a long prompt whose beginning is in the cache the second time"
    body = {"model": "echo", "messages": user(text), "max_tokens": 1}

    def cached(key: str) -> int:
        told = api.ask("/v1/chat/completions", body, authorization=f"Bearer {key}").json
        return int(told["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached("first-tenant") == 0
    assert cached("first-tenant") > 0
    assert cached("second-tenant") == 0


def test_headers_of_openai_are_there(api: Api):
    told = api.chat(temperature=0)
    assert told.headers["openai-version"] == "2020-10-01"
    assert int(told.headers["openai-processing-ms"]) >= 0
    assert told.headers["x-request-id"]
