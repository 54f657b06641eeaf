"""The parts of the OpenAPI document that do not depend on the models: fixed routes, headers, errors, shared schemas."""

from __future__ import annotations

from typing import Any, Final

Json = dict[str, Any]

_ERROR: Final = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}


def _schema(kind: str, **more: Any) -> Json:
    return {"type": kind, **more}


def _object(required: tuple[str, ...] = (), **properties: Json) -> Json:
    schema: Json = {"type": "object", "properties": properties}
    return {**schema, "required": list(required)} if required else schema


_TEXT: Final = _schema("string")
_TENSOR: Final = {
    "name": _TEXT,
    "datatype": {"$ref": "#/components/schemas/Datatype"},
    "shape": _schema("array", items=_schema("integer", minimum=0)),
    "parameters": _schema("object"),
    "data": _schema("array", description="Row-major, flat or nested; left out where binary data follows."),
}
_SPECS: Final = _schema(
    "array",
    items=_object(
        ("name", "datatype", "shape"),
        name=_TEXT,
        datatype={"$ref": "#/components/schemas/Datatype"},
        shape=_schema("array", items=_schema("integer", minimum=-1)),
    ),
)

SCHEMAS: Final[Json] = {
    "Error": _object(("error",), error=_schema("string", description="What was wrong, and what to do.")),
    "Datatype": _schema(
        "string",
        enum=[
            "BOOL",
            "UINT8",
            "UINT16",
            "UINT32",
            "UINT64",
            "INT8",
            "INT16",
            "INT32",
            "INT64",
            "FP16",
            "FP32",
            "FP64",
            "BF16",
            "BYTES",
        ],
    ),
    "InferenceRequest": _object(
        ("inputs",),
        id=_TEXT,
        parameters=_object(
            binary_data_output=_schema("boolean"),
            timeout=_schema("integer", minimum=0, description="The caller's own deadline in microseconds."),
            priority=_schema("integer", minimum=0, description="0: default; 1: highest."),
        ),
        inputs=_schema("array", minItems=1, items=_object(("name", "shape", "datatype"), **_TENSOR)),
        outputs=_schema("array", items=_object(("name",), name=_TEXT, parameters=_schema("object"))),
    ),
    "InferenceResponse": _object(
        ("model_name", "model_version", "outputs"),
        model_name=_TEXT,
        model_version=_TEXT,
        id=_TEXT,
        outputs=_schema("array", items=_object(("name", "shape", "datatype"), **_TENSOR)),
    ),
    "Health": _object(("live", "ready", "name"), live=_schema("boolean"), ready=_schema("boolean"), name=_TEXT),
    "Ready": _object(("name", "ready"), name=_TEXT, ready=_schema("boolean")),
    "ServerMetadata": _object(
        ("name", "version", "extensions"), name=_TEXT, version=_TEXT, extensions=_schema("array", items=_TEXT)
    ),
    "ModelMetadata": _object(
        ("name", "platform", "inputs", "outputs"),
        name=_TEXT,
        versions=_schema("array", items=_TEXT),
        platform=_TEXT,
        inputs=_SPECS,
        outputs=_SPECS,
        properties=_schema("object", additionalProperties=_TEXT),
    ),
    "Statistics": _object(("model_stats",), model_stats=_schema("array", items=_schema("object"))),
    "RepositoryIndex": _schema(
        "array",
        items=_object(
            ("name", "version", "state", "reason"),
            name=_TEXT,
            version=_TEXT,
            state=_schema("string", enum=["READY", "LOADING", "UNAVAILABLE"]),
            reason=_TEXT,
        ),
    ),
}

HEADERS: Final[Json] = {
    "pelton-version": {"description": "The version that answered.", "schema": _TEXT},
    "pelton-batch-rows": {"description": "Rows of the batch that the call ran in.", "schema": _schema("integer")},
    "server-timing": {"description": "Milliseconds: queue, run, and prepare where there was any.", "schema": _TEXT},
    "x-request-id": {"description": "The client's own id, or a new one.", "schema": _TEXT},
    "Retry-After": {"description": "Seconds after which to try again.", "schema": _schema("integer", minimum=1)},
    "Pelton-Reason": {"description": "Why the call was refused, as one fixed word.", "schema": _TEXT},
}

REQUEST_HEADERS: Final[Json] = {
    "request-id": {
        "name": "x-request-id",
        "in": "header",
        "description": "Comes back in the answer and stands in the log; at most 128 printable ASCII characters.",
        "schema": _schema("string", maxLength=128),
    },
    "timeout": {
        "name": "pelton-timeout-ms",
        "in": "header",
        "description": "The caller's own deadline in milliseconds; default: the model's target.",
        "schema": _schema("number", exclusiveMinimum=0, maximum=86_400_000),
    },
    "trace": {
        "name": "traceparent",
        "in": "header",
        "description": "W3C trace context.",
        "schema": _TEXT,
    },
}


def _failure(text: str, example: str, headers: tuple[str, ...] = ()) -> Json:
    content = {"application/json": {**_ERROR["application/json"], "example": {"error": example}}}
    response: Json = {"description": text, "content": content}
    if headers:
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    return response


RESPONSES: Final[Json] = {
    "400": _failure("The input does not fit the model.", "the field 'age' is missing (a number)"),
    "404": _failure("No such model, version or path.", "unknown model 'chrun'; served here: churn"),
    "405": _failure("The path takes another method.", "DELETE is not taken at '/v2', but GET, HEAD"),
    "413": _failure("Over a limit, which is named.", "the body is larger than 67108864 bytes"),
    "500": _failure("The model failed.", "model 'churn' failed: RuntimeError"),
    "501": _failure("Valid, but not served here.", "explanations are not served here; use :predict"),
    "503": _failure(
        "Not now: the queue is full, the model is not ready, or the server stops.",
        "the queue of this model is full: an answer would take 41 ms, its target is 20 ms; try again in 21 ms",
        ("Retry-After", "Pelton-Reason"),
    ),
    "504": _failure("The caller's own deadline passed.", "the call's own deadline passed after 50 ms in the queue"),
}

_MODEL: Final = {"name": "model", "in": "path", "required": True, "schema": _TEXT}


def fixed_paths() -> Json:
    """Everything but inference."""
    paths: Json = {
        "/": _get("status", "Alive, for KServe's clients; the page for browsers.", _object(("status",), status=_TEXT)),
        "/models": _get("models", "Every model with its fields and figures.", _schema("object")),
        "/openapi.json": _get("openapi", "This document.", _schema("object")),
        "/metrics": _metrics(),
        "/v1/models": _get(
            "models_v1",
            "KServe v1: names. OpenAI: `data`, one object per model that answers.",
            _object(
                ("models", "object", "data"),
                models=_schema("array", items=_TEXT),
                object=_TEXT,
                data=_schema("array", items=_schema("object")),
            ),
        ),
        "/v2": _get("server_metadata", "Name, version, extensions.", _ref("ServerMetadata")),
        "/v2/health/live": _get("live", "200 as long as the process answers.", _ref("Health")),
        "/v2/health/ready": _get("ready", "503 while it stops, or a model loads or failed.", _ref("Health"), "503"),
        "/v2/models/stats": _get("statistics", "Statistics of all models.", _ref("Statistics")),
        "/v2/repository/index": _post("repository_index", "All models and their states.", _ref("RepositoryIndex")),
    }
    for path, operation, summary, schema in (
        ("/models/{model}/example", "example", "One row that the model takes.", _schema("object")),
        ("/v1/models/{model}", "model_ready_v1", "KServe v1: readiness.", _ref("Ready")),
        ("/v2/models/{model}", "model_metadata", "Inputs and outputs.", _ref("ModelMetadata")),
        ("/v2/models/{model}/ready", "model_ready", "Readiness.", _ref("Ready")),
        ("/v2/models/{model}/config", "model_config", "Configuration in Triton's form.", _schema("object")),
        ("/v2/models/{model}/stats", "model_statistics", "Statistics in Triton's form.", _ref("Statistics")),
    ):
        paths[path] = {"parameters": [_MODEL], **_get(operation, summary, schema, "404", "503")}
    for verb, summary in (
        ("load", "Loads the newest version beside what serves, then switches."),
        ("unload", "Takes the model out; what it has accepted is answered."),
    ):
        path = f"/v2/repository/models/{{model}}/{verb}"
        paths[path] = {"parameters": [_MODEL], **_post(verb, summary, _schema("object"), "400", "404", "501", "503")}
    return paths


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _get(operation: str, summary: str, schema: Json, *failures: str) -> Json:
    return {"get": _fixed(operation, summary, {"application/json": {"schema": schema}}, failures)}


def _post(operation: str, summary: str, schema: Json, *failures: str) -> Json:
    body = _fixed(operation, summary, {"application/json": {"schema": schema}}, failures)
    return {"post": {**body, "requestBody": {"content": {"application/json": {"schema": _schema("object")}}}}}


def _metrics() -> Json:
    text = {"text/plain": {"schema": _TEXT}, "application/openmetrics-text": {"schema": _TEXT}}
    return {"get": _fixed("metrics", "Prometheus' text form, or OpenMetrics.", text, ())}


def _fixed(operation: str, summary: str, content: Json, failures: tuple[str, ...]) -> Json:
    return {
        "operationId": operation,
        "tags": ["server"],
        "summary": summary,
        "responses": {
            "200": {"description": "OK", "content": content},
            **{status: {"$ref": f"#/components/responses/{status}"} for status in failures},
        },
    }
