"""`GET /openapi.json`: OpenAPI 3.1, made from the models that are served, with their own fields, ranges and examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec

from pelton import __version__
from pelton.server.pages import openapi_chat
from pelton.server.pages.cards import EXAMPLE_LIMIT, Card
from pelton.server.pages.openapi_admin import SECURITY, paths_and_schemas
from pelton.server.pages.openapi_routes import HEADERS, REQUEST_HEADERS, RESPONSES, SCHEMAS, fixed_paths

VERSION: Final = {"$ref": "#/components/parameters/version"}
ANSWER_HEADERS: Final = ("pelton-version", "pelton-batch-rows", "server-timing", "x-request-id")
FAILURES: Final = ("400", "404", "413", "500", "501", "503", "504")

Json = dict[str, Any]


def document(cards: Sequence[tuple[Card, float]]) -> Json:
    """The document. `cards`: every served version with its target in seconds, by name."""
    schemas = dict(SCHEMAS)
    paths: Json = {}
    for card, _ in cards:
        schemas[f"{card.name}.row"] = card.row
        schemas[f"{card.name}.answer"] = card.answer
        paths.update(_model_paths(card))
    paths.update(fixed_paths())
    admin_paths, admin_schemas = paths_and_schemas()
    paths.update(admin_paths)
    schemas.update(admin_schemas)
    chat_paths, chat_schemas = openapi_chat.paths_and_schemas()
    paths.update(chat_paths)
    schemas.update(chat_schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pelton",
            "version": __version__,
            "summary": "Live calls to models within a latency target.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            *({"name": card.name, "description": _about(card, target)} for card, target in cards),
            {"name": "server", "description": "Health, metadata, statistics, repository, metrics."},
            openapi_chat.TAG,
            {"name": "admin", "description": "Versions, deployments, rollouts, audit. On this machine, or by token."},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": RESPONSES,
            "headers": HEADERS,
            "securitySchemes": SECURITY,
            "parameters": {**REQUEST_HEADERS, "version": _VERSION_PARAMETER},
        },
    }


_VERSION_PARAMETER: Final = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "A version of the model, or the first characters of one.",
    "schema": {"type": "string"},
}


def _about(card: Card, target: float) -> str:
    text = card.description or f"A model of the runtime {card.runtime}."
    return f"{text} Version {card.version}; 99 of 100 answers within {target * 1e3:g} ms."


def _model_paths(card: Card) -> Json:
    name = card.name
    forms = (
        (f"/predict/{name}", f"/predict/{name}/{{version}}", "predict", _native(card)),
        (
            f"/v1/models/{name}:predict",
            f"/v1/models/{name}/versions/{{version}}:predict",
            "predict_v1",
            _v1(card),
        ),
        (f"/v2/models/{name}/infer", f"/v2/models/{name}/versions/{{version}}/infer", "infer", _v2(card)),
    )
    paths: Json = {}
    for plain, versioned, operation, body in forms:
        paths[plain] = {"post": _operation(f"{operation}.{name}", name, body)}
        paths[versioned] = {"parameters": [VERSION], "post": _operation(f"{operation}.{name}.version", name, body)}
    return paths


def _operation(operation: str, tag: str, body: tuple[str, Json, Json]) -> Json:
    summary, request, answer = body
    return {
        "operationId": operation,
        "tags": [tag],
        "summary": summary,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in REQUEST_HEADERS],
        "requestBody": {"required": True, "content": request},
        "responses": {
            "200": {
                "description": "The answer.",
                "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in ANSWER_HEADERS},
                "content": answer,
            },
            **{status: {"$ref": f"#/components/responses/{status}"} for status in FAILURES},
        },
    }


def _native(card: Card) -> tuple[str, Json, Json]:
    return (
        "One row as people write it.",
        _json({"$ref": f"#/components/schemas/{card.name}.row"}, card.example, card.name),
        _json({"$ref": f"#/components/schemas/{card.name}.answer"}),
    )


def _v1(card: Card) -> tuple[str, Json, Json]:
    fields = [field.name for field in card.fields]
    instance: Json = {"$ref": f"#/components/schemas/{card.name}.row"}
    if len(fields) == 1:
        instance = {
            "anyOf": [{"$ref": f"#/components/schemas/{card.name}.row/properties/{_pointer(fields[0])}"}, instance]
        }
    schema = {
        "type": "object",
        "oneOf": [
            {
                "required": ["instances"],
                "properties": {"instances": {"type": "array", "items": instance, "minItems": 1}},
            },
            {"required": ["inputs"], "properties": {"inputs": {"type": ["object", "array"]}}},
        ],
    }
    answer = {
        "type": "object",
        "required": ["predictions"],
        "properties": {"predictions": {"type": "array", "description": "One per instance, in order."}},
    }
    return (
        "KServe v1: many rows in one call.",
        _json(schema, {"instances": [card.example]} if card.example else None),
        _json(answer),
    )


def _v2(card: Card) -> tuple[str, Json, Json]:
    request = _json({"$ref": "#/components/schemas/InferenceRequest"}, _v2_example(card))
    binary: Json = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    summary = "Open Inference Protocol v2, JSON or binary tensors (header Inference-Header-Content-Length)."
    return summary, {**request, **binary}, {**_json({"$ref": "#/components/schemas/InferenceResponse"}), **binary}


def _v2_example(card: Card) -> Json:
    """The row as tensors; files (base64 in a row) and long tensors go better as binary tensors and have none."""
    tensors = []
    kinds = {field.name: field.kind for field in card.fields}
    for name, datatype, shape in card.tensors:
        value = (card.example or {}).get(name)
        is_file = isinstance(value, dict) or kinds.get(name) in ("image", "audio")
        if value is None or is_file or (isinstance(value, str) and datatype != "BYTES"):
            return {}
        sizes = _sizes(value)
        if card.batched:
            value, sizes = [value], [1, *sizes]
        tensors.append({"name": name, "shape": sizes[: len(shape)], "datatype": datatype, "data": value})
    return {"inputs": tensors}


def _sizes(value: Any) -> list[int]:
    return [len(value), *_sizes(value[0])] if isinstance(value, list) and value else []


def _json(schema: Json, example: Json | None = None, model: str = "") -> Json:
    content: Json = {"schema": schema}
    if example and len(msgspec.json.encode(example)) <= EXAMPLE_LIMIT:
        content["example"] = example
    elif model:
        content["examples"] = {"example": {"summary": "The model's own", "externalValue": f"/models/{model}/example"}}
    return {"application/json": content}


def _pointer(name: str) -> str:
    """A name as part of a JSON pointer in a URI (RFC 6901)."""
    return quote(name.replace("~", "~0").replace("/", "~1"), safe="~")
