"""What is wrong with a request is said in OpenAI's form, with the field and a fixed code."""

from __future__ import annotations

from typing import Any

import pytest
from echo_api import Api, user

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"top_p": 1.5}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"n": 1.5}, "n", "invalid_type"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "invalid_value"),
        ({"presence_penalty": -3}, "presence_penalty", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"word": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "invalid_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stop": ["a", ""]}, "stop", "invalid_value"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "invalid_value"),
        ({"seed": 2**64}, "seed", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hello"}, "messages", "invalid_type"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour", "unknown_parameter"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "unsupported_parameter"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
        ({"functions": [{"name": "f"}], "tools": [{"type": "function", "function": {"name": "f"}}]}, "functions", "invalid_value"),
        ({"functions": [{"name": "a b"}]}, "functions[0].name", "invalid_value"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call", "invalid_value"),
        ({"functions": [{"name": "f"}], "function_call": "required"}, "function_call", "invalid_value"),
        ({"function_call": "auto"}, "function_call", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_value"),
        ({"reasoning_effort": "some"}, "reasoning_effort", "invalid_value"),
        ({"verbosity": "loud"}, "verbosity", "invalid_value"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "unsupported_parameter"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type", "missing_required_parameter"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "invalid_value"),
        ({"service_tier": "best"}, "service_tier", "invalid_value"),
        ({"store": "yes"}, "store", "invalid_type"),
        ({"user": 5}, "user", "invalid_type"),
        ({"metadata": {"a": 5}}, "metadata", "invalid_type"),
        ({"metadata": {"a" * 65: "b"}}, "metadata", "invalid_value"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "missing_required_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"min_p": 2}, "min_p", "invalid_value"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "invalid_value"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(api: Api, more: dict[str, Any], param: str, code: str):
    reply = api.chat(**more)
    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == (param, code)
    assert reply.error["type"] == "invalid_request_error"


def test_an_unknown_field_comes_with_the_nearest_name(api: Api):
    assert "Did you mean 'temperature'?" in api.chat(temprature=1).error["message"]


def test_a_null_is_a_field_that_is_not_set(api: Api):
    assert api.chat(temperature=None, stop=None, tools=None, audio=None, n=None, max_tokens=2).status == 200


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(api: Api, missing: str):
    body = {"model": "echo", "messages": user("x")}
    del body[missing]
    error = api.ask(CHAT, body).error
    assert (error["param"], error["code"]) == (missing, "missing_required_parameter")


@pytest.mark.parametrize("model", ["gpt-4o", "org/name", "", "x" * 300, "echo@nothing", "../etc"])
def test_a_model_that_is_not_there_is_told(api: Api, model: str):
    reply = api.ask(CHAT, {"model": model, "messages": user("x")})
    assert reply.status in (400, 404)
    assert reply.error["param"] == "model"
    if reply.status == 404:
        assert reply.error["code"] == "model_not_found"


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe", b'{"model": "\\ud800"}', b"[" * 100_000,
        b'{"a":' * 100_000, b'{"model": NaN}', b'{"model": 1e999}', b'{"model": ["echo"]}',
    ],
    ids=range(13),
)  # fmt: skip
def test_a_body_that_is_no_request_is_told(api: Api, path: str, body: bytes):
    reply = api.ask(path, body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"


def test_lone_surrogates_are_refused_wherever_they_stand(api: Api):
    for body in (
        b'{"model": "echo", "messages": [{"role": "user", "content": "\\udc00 x"}]}',
        b'{"model": "echo", "messages": [{"role": "user", "content": "x"}], "stop": "\\ud83d!"}',
    ):
        assert api.ask(CHAT, body).status == 400


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(api: Api):
    reply = api.ask(CHAT, {"model": "small", "messages": user("x" * 100)})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "context_length_exceeded", "messages")
    message = reply.error["message"]
    assert message.startswith("This model's maximum context length is 64 tokens.")
    assert "resulted in 119 tokens" in message


def test_a_completion_that_would_not_fit_is_refused_with_all_numbers(api: Api):
    reply = api.ask(CHAT, {"model": "small", "messages": user("hello"), "max_tokens": 50})
    assert reply.error["code"] == "context_length_exceeded"
    assert "you requested 74 tokens (24 in the messages, 50 in the completion)" in reply.error["message"]
    reply = api.ask("/v1/completions", {"model": "small", "prompt": list(range(10)), "max_tokens": 55})
    assert "you requested 65 tokens (10 in the prompt, 55 in the completion)" in reply.error["message"]


def test_an_enormous_text_is_refused_before_it_is_read(api: Api):
    reply = api.ask("/v1/completions", {"model": "small", "prompt": "x" * 1_000_000})
    assert reply.error["code"] == "context_length_exceeded"
    assert "at least" in reply.error["message"]


def test_a_body_over_the_limit_is_refused(api: Api):
    reply = api.ask(CHAT, {"model": "echo", "messages": user("x" * 17 * 1024 * 1024)})
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")


def test_a_base_model_does_not_chat(api: Api):
    reply = api.ask(CHAT, {"model": "base", "messages": user("x")})
    assert reply.status == 400
    assert "base model" in reply.error["message"]


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"best_of": 1, "n": 2}, "best_of", "invalid_value"),
        ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt", "invalid_value"),
        ({"prompt": ["a", [1]]}, "prompt[1]", "invalid_type"),
        ({"prompt": [1.5]}, "prompt", "invalid_type"),
        ({"prompt": [-1]}, "prompt", "invalid_type"),
        ({"prompt": [999_999]}, "prompt", "invalid_value"),
        ({"prompt": {"a": 1}}, "prompt", "invalid_type"),
        ({"prompt": ["x"] * 300}, "prompt", "invalid_value"),
        ({"prompt": ["x"] * 100, "n": 3}, "prompt", "invalid_value"),
        ({"messages": []}, "messages", "unknown_parameter"),
    ],
)
def test_a_wrong_field_of_a_completion_is_named(api: Api, more: dict[str, Any], param: str, code: str):
    reply = api.complete(**{"prompt": "hello", **more})
    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == (param, code)


def test_another_method_or_path_is_told(api: Api):
    assert api.get(CHAT).status == 405
    assert api.ask("/v1/chat", {}).status == 404


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"include": ["everything"]}, "include[0]", "invalid_value"),
        ({"truncation": "middle"}, "truncation", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata", "invalid_type"),
        ({"max_tool_calls": 0}, "max_tool_calls", "invalid_value"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "text"}}]}, "tools[0].parameters.type", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "missing_required_parameter"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "invalid_value"),
    ],
)  # fmt: skip
def test_a_wrong_field_of_a_response_is_named(api: Api, more: dict[str, Any], param: str, code: str):
    reply = api.ask("/v1/responses", {"model": "echo", "input": "hello", **more})
    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == (param, code)
    assert param in reply.error["message"]
