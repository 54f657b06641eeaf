"""The OpenAI API's part of the OpenAPI document: requests as they are checked here, answers by their published names."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from pelton.server.openai import asks

Json = dict[str, Any]

PREFIX: Final = "openai."  # before the names of schemas, which models have, too
TAG: Final = {
    "name": "openai",
    "description": "The OpenAI API for language, embedding and speech models, as OpenAI's clients use it.",
}
REFUSALS: Final = {
    "400": "A field is wrong or not served; `param` names it.",
    "404": "No such model, version or response.",
    "413": "The body is over a limit.",
    "429": "The answer would come too late; Retry-After says when to try again.",
    "500": "The model failed.",
    "503": "The model loads, its engine is being started again, or the server stops.",
}
STREAM: Final = {"text/event-stream": {"schema": {"type": "string"}}}
_TEXT: Final = {"type": "string"}


def paths_and_schemas() -> tuple[Json, Json]:
    """(paths, schemas)."""
    kinds = (asks.ChatAsk, asks.CompletionAsk, asks.ResponseAsk, asks.EmbeddingAsk)
    refs, components = msgspec.json.schema_components(kinds, ref_template=f"#/components/schemas/{PREFIX}{{name}}")
    schemas = {f"{PREFIX}{name}": schema for name, schema in components.items()}
    schemas[f"{PREFIX}Error"] = _error()
    paths: Json = {}
    for path, operation, summary, ref, streams in zip(
        ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"),
        ("chat_completions", "completions", "responses", "embeddings"),
        ("Continues a conversation.", "Continues a text.", "Answers, and keeps the answer.", "Texts to vectors."),
        refs,
        (True, True, True, False),
        strict=True,
    ):
        paths[path] = {"post": _operation(operation, summary, {"application/json": {"schema": ref}}, streams)}
    form = {"multipart/form-data": {"schema": _sound()}}
    for name, summary in (("transcriptions", "A sound to text."), ("translations", "A sound to English text.")):
        paths[f"/v1/audio/{name}"] = {"post": _operation(name, summary, form, False)}
    for verb, streams in (("generate", False), ("generate_stream", True)):
        path = f"/v2/models/{{model}}/{verb}"
        model = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
        body = {"application/json": {"schema": _generate()}}
        paths[path] = {"parameters": [model], "post": _operation(verb, "Triton's generate extension.", body, streams)}
    return paths, schemas


def _operation(operation: str, summary: str, body: Json, streams: bool) -> Json:
    error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{PREFIX}Error"}}}
    content = {"application/json": {"schema": {"type": "object"}}, **(STREAM if streams else {})}
    return {
        "operationId": f"openai.{operation}",
        "tags": ["openai"],
        "summary": summary,
        "requestBody": {"required": True, "content": body},
        "responses": {
            "200": {"description": "The answer.", "content": content},
            **{status: {"description": text, "content": error} for status, text in REFUSALS.items()},
        },
    }


def _error() -> Json:
    words = {name: {"type": ["string", "null"]} for name in ("param", "code")}
    error = {
        "type": "object",
        "properties": {"message": _TEXT, "type": _TEXT, **words},
        "required": ["message", "type", "param", "code"],
    }
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def _sound() -> Json:
    texts = dict.fromkeys(("model", "language", "prompt", "response_format"), _TEXT)
    return {
        "type": "object",
        "properties": {
            "file": {"type": "string", "contentMediaType": "application/octet-stream"},
            **texts,
            "temperature": {"type": "number", "minimum": 0, "maximum": 1},
            "timestamp_granularities[]": {"type": "array", "items": {"type": "string", "enum": ["word", "segment"]}},
        },
        "required": ["file", "model"],
    }


def _generate() -> Json:
    properties: Json = {"text_input": _TEXT, "id": _TEXT, "parameters": {"type": "object"}}
    return {"type": "object", "properties": properties, "required": ["text_input"]}
