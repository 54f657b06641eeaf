"""Whatever is sent, the answer is an answer or an error in OpenAI's form: never a 5xx, never a hang."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
from echo_api import Api, user
from hypothesis import HealthCheck, given, settings

from pelton.errors import InvalidInput
from pelton.server.openai import asks, messages, multipart, output_form
from pelton.server.openai.decoding import ask as as_ask
from pelton.server.openai.decoding import json_object
from pelton.server.openai.errors import ApiError
from pelton.server.openai.response_items import items_of, messages_of
from pelton.server.openai.triton import GenerateAsk, Parameters

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)  # fmt: skip
NAMES = st.sampled_from(
    sorted(
        {
            "role", "content", "type", "text", "function", "name", "arguments", "tool_calls", "tool_call_id", "id", "output",
            "call_id", "format", "schema", "json_schema", "strict", "parameters", "include_usage", "properties",
        }
    )
)  # fmt: skip
WORDS = st.sampled_from(
    ["user", "assistant", "tool", "system", "text", "function", "json_schema", "json_object", "message"]
)
VALUES = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=8), inner, max_size=5),
    max_leaves=12,
)
KINDS = {
    asks.ChatAsk: (asks.CHAT_REFUSED, asks.CHAT_SAID),
    asks.CompletionAsk: (asks.COMPLETION_REFUSED, asks.COMPLETION_SAID),
    asks.EmbeddingAsk: (asks.EMBEDDING_REFUSED, asks.EMBEDDING_SAID),
    asks.ResponseAsk: (asks.RESPONSE_REFUSED, asks.RESPONSE_SAID),
    GenerateAsk: ({}, {}),
    Parameters: ({}, {}),
}


def told(error: ApiError) -> None:
    assert 400 <= error.status < 500
    assert json.loads(error.body())["error"]["message"]


@st.composite
def bodies(draw: Any) -> tuple[Any, dict[str, Any]]:
    kind = draw(st.sampled_from(list(KINDS)))
    names = st.sampled_from(sorted({*kind.__struct_fields__, *KINDS[kind][0], *KINDS[kind][1]})) | st.text(max_size=12)
    return kind, draw(st.dictionaries(names, VALUES, max_size=8))


@given(bodies())
@settings(max_examples=80, deadline=None)
def test_any_object_is_a_request_or_a_mistake_that_is_told(made: tuple[Any, dict[str, Any]]):
    kind, raw = made
    try:
        ask, ignored = as_ask(raw, kind, *KINDS[kind])
    except ApiError as error:
        told(error)
    else:
        assert isinstance(ask, kind)
        assert all(isinstance(name, str) for name in ignored)


@given(st.lists(st.dictionaries(NAMES | st.text(max_size=6), VALUES, max_size=5), max_size=4))
@settings(max_examples=80, deadline=None)
def test_any_messages_and_items_are_taken_or_told(given: list[dict[str, Any]]):
    try:
        for message in messages.checked(given):
            assert isinstance(message["content"], str)
    except ApiError as error:
        told(error)
    try:
        messages_of(items_of(given, lambda name: None))
    except ApiError as error:
        told(error)


@given(
    st.dictionaries(NAMES, VALUES, max_size=5), st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=3), VALUES
)
@settings(max_examples=80, deadline=None)
def test_any_forms_and_tools_are_taken_or_told(form: dict[str, Any], tools: list[dict[str, Any]], choice: Any):
    for take in (lambda: output_form.form_of(form), lambda: output_form.tools_of(tools, choice, True)):
        try:
            take()
        except ApiError as error:
            told(error)


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
@settings(max_examples=80, deadline=None)
def test_any_bytes_are_json_or_told(body: bytes):
    try:
        assert isinstance(json_object(body, 1000), dict)
    except ApiError as error:
        told(error)


@given(
    st.lists(
        st.sampled_from([b"--x", b"\r\n", b"--", b'Content-Disposition: form-data; name="a"', b"\r\n\r\n", b"v", b":"]),
        max_size=20,
    )
)
@settings(max_examples=80, deadline=None)
def test_any_form_is_read_or_told(parts: list[bytes]):
    try:
        form = multipart.read(b"multipart/form-data; boundary=x", b"".join(parts))
    except InvalidInput:
        return
    assert all(isinstance(value, bytes) for values in form.values() for value in values)


PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v2/models/echo/generate")


@given(
    st.sampled_from(PATHS),
    st.dictionaries(NAMES | st.sampled_from(["stop", "tools", "n", "seed", "logit_bias"]), VALUES, max_size=3),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_server_answers_everything(api: Api, path: str, more: dict[str, Any]):
    base: dict[str, Any] = {
        PATHS[0]: {"model": "echo", "messages": user("x"), "max_tokens": 2},
        PATHS[1]: {"model": "echo", "prompt": "x", "max_tokens": 2},
        PATHS[2]: {"model": "echo", "input": "x", "max_output_tokens": 2},
        PATHS[3]: {"model": "echo", "input": "x"},
        PATHS[4]: {"text_input": "x"},
    }[path]
    reply = api.ask(path, {**base, **more})
    assert reply.status < 500, reply.body
    assert reply.json
