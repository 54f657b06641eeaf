"""Completions over real HTTP, from a model that says its prompt again, token for token."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from echo_api import Api

from pelton.server.openai.completions import likeliest


def test_a_text_is_continued(api: Api):
    reply = api.complete("abc", temperature=0, max_tokens=7)
    told = reply.json
    assert told["object"] == "text_completion"
    assert told["choices"] == [{"index": 0, "text": "abcabca", "logprobs": None, "finish_reason": "length"}]
    assert told["usage"]["prompt_tokens"] == 3
    assert told["usage"]["completion_tokens"] == 7


def test_sixteen_tokens_are_the_default(api: Api):
    assert api.complete("abc", temperature=0).json["usage"]["completion_tokens"] == 16


def test_tokens_are_taken_as_a_prompt(api: Api):
    told = api.complete([97, 98], temperature=0, max_tokens=3).json
    assert told["choices"][0]["text"] == "aba"


@pytest.mark.parametrize("prompts", [["ab", "c"], [[97, 98], [99]]])
def test_several_prompts_have_their_choices_in_order(api: Api, prompts: Any):
    told = api.complete(prompts, temperature=0, max_tokens=2, n=2).json
    assert [(choice["index"], choice["text"]) for choice in told["choices"]] == [
        (0, "ab"), (1, "ab"), (2, "cc"), (3, "cc"),
    ]  # fmt: skip
    assert told["usage"]["prompt_tokens"] == 3
    assert told["usage"]["completion_tokens"] == 8


def test_a_stream_says_the_same(api: Api):
    events = api.events(
        "/v1/completions",
        {"model": "echo", "prompt": ["ab", "c"], "temperature": 0, "max_tokens": 4, "stream_options": {"include_usage": True}},
    )  # fmt: skip
    for index, text in enumerate(("abab", "cccc")):
        own = [choice for event in events for choice in event["choices"] if choice["index"] == index]
        assert "".join(choice["text"] for choice in own) == text
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["length"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 8


def test_echo_says_the_prompt_first(api: Api):
    assert api.complete("abc", echo=True, temperature=0, max_tokens=2).json["choices"][0]["text"] == "abcab"
    assert api.complete([97, 98], echo=True, temperature=0, max_tokens=2).json["choices"][0]["text"] == "abab"


def test_echo_may_be_all(api: Api):
    told = api.complete("abc", echo=True, max_tokens=0, logprobs=1).json
    choice = told["choices"][0]
    assert choice["text"] == "abc"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
    assert told["usage"]["completion_tokens"] == 0


def test_logprobs_have_offsets_that_point_into_the_text(api: Api):
    choice = api.complete("aß€", echo=True, temperature=0, max_tokens=6, logprobs=2).json["choices"][0]
    text, logprobs = choice["text"], choice["logprobs"]
    assert text == "aß€aß€"
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == [0, 1, 2, 2, 3, 3, 3, 4, 5, 5, 6, 6]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert token.startswith("bytes:") or text[offset : offset + 1] == token
    assert logprobs["token_logprobs"][1:] == pytest.approx([-math.log(2)] * 11)
    assert all(token in top for token, top in zip(logprobs["tokens"][1:], logprobs["top_logprobs"][1:], strict=True))


def test_logprobs_of_a_stream_are_those_of_the_whole(api: Api):
    body = {"model": "echo", "prompt": "abc", "echo": True, "temperature": 0, "max_tokens": 4, "logprobs": 1}
    whole = api.ask("/v1/completions", body).json["choices"][0]["logprobs"]
    parts = [c["logprobs"] for event in api.events("/v1/completions", body) for c in event["choices"] if c["logprobs"]]
    for name, values in whole.items():
        assert [value for part in parts for value in part[name]] == values


def test_the_token_that_ends_an_answer_has_its_logprob_too(api: Api):
    told = api.complete([97, 257], echo=True, temperature=0, max_tokens=5, logprobs=1).json
    choice = told["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"]["tokens"] == ["a", "<|im_end|>", "a", "<|im_end|>"]
    assert choice["text"] == "a<|im_end|>a"


def test_zero_logprobs_tell_the_chosen_token_only(api: Api):
    logprobs = api.complete("abc", temperature=0, max_tokens=2, logprobs=0).json["choices"][0]["logprobs"]
    assert [list(top) for top in logprobs["top_logprobs"]] == [["a"], ["b"]]


def test_a_base_model_completes(api: Api):
    told = api.ask("/v1/completions", {"model": "base", "prompt": "abc", "max_tokens": 3, "temperature": 0}).json
    assert told["choices"][0]["text"] == "abc"


def test_best_of_more_tells_n_of_them_and_counts_them_all(api: Api):
    assert len(api.complete("abc", n=2, best_of=2, max_tokens=1).json["choices"]) == 2
    told = api.complete(["abc", "d"], n=1, best_of=3, max_tokens=2, echo=True, temperature=0).json
    assert [(choice["index"], choice["text"]) for choice in told["choices"]] == [(0, "abcab"), (1, "ddd")]
    assert [choice["logprobs"] for choice in told["choices"]] == [None, None]
    assert told["usage"]["completion_tokens"] == 2 * 3 * 2


def test_the_best_are_those_whose_tokens_are_likeliest_on_average():
    def logged(*values: float) -> Any:
        return [SimpleNamespace(logprobs=SimpleNamespace(chosen=value)) for value in values]

    choices: Any = [SimpleNamespace(index=index) for index in range(4)]
    told = {0: logged(-1.0, -1.0, -1.0), 1: logged(-2.0), 2: logged(-3.0), 3: logged(-0.5)}
    assert [choice.index for choice in likeliest(choices, told, 2, 1)] == [0, 3]


def test_triton_generates(api: Api):
    reply = api.ask(
        "/v2/models/echo/generate", {"text_input": "abc", "id": "7", "parameters": {"temperature": 0, "max_tokens": 4}}
    )
    told = reply.json
    assert told["text_output"] == "abca"
    assert told["model_name"] == "echo"
    assert told["id"] == "7"
    assert "details" not in told
    details = api.ask(
        "/v2/models/echo/generate", {"text_input": "abc", "parameters": {"temperature": 0, "stop": ["c"], "details": True}}
    ).json["details"]  # fmt: skip
    assert details["finish_reason"] == "stop_sequence"
    assert [entry["text"] for entry in details["logprobs"]] == ["a", "b"]


def test_triton_streams(api: Api):
    body = {"text_input": "abc", "parameters": {"temperature": 0, "max_tokens": 4, "details": True}}
    response = api.send("POST", "/v2/models/echo/generate_stream", body)
    assert response.headers["content-type"].startswith("text/event-stream")
    import json

    events = [json.loads(block.removeprefix("data: ")) for block in response.read().decode().split("\n\n") if block]
    assert "".join(event["text_output"] for event in events) == "abca"
    assert events[-1]["details"] == {"finish_reason": "length"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"text_input": 5}, 422),
        ({"text_input": "x", "parameters": {"temperature": 9}}, 422),
        ({"text_input": "x", "parameters": {"what": 9}}, 422),
        ({"text_input": "", "parameters": {}}, 422),
    ],
)
def test_tritons_errors_are_texts(api: Api, body: Any, status: int):
    for verb in ("generate", "generate_stream"):
        reply = api.ask(f"/v2/models/echo/{verb}", body)
        assert reply.status == status
        assert isinstance(reply.json["error"], str)
    assert api.ask("/v2/models/nothing/generate", {"text_input": "x"}).status == 404
