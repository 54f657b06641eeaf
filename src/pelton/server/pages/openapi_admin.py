"""The admin API's part of the OpenAPI document, made of the one table of orders."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from pelton.control.orders import OPERATIONS, Operation
from pelton.server.pages.admin import PREFIX

Json = dict[str, Any]

PARTS: Final = "admin."  # before the names of schemas, which models have, too
REFUSALS: Final = {
    "400": "A field is wrong; the message names it.",
    "401": "The token is missing or wrong.",
    "403": "Without a token only programs on the server's machine are answered; pages of other sites never.",
    "404": "No such model, version, alias, rollout or webhook.",
    "409": "Somebody else was first: it is at another revision, or its state does not allow the change.",
    "429": "Too many orders, or wrong tokens, at the same time.",
    "503": "The store cannot be reached or is locked; try again.",
}
SECURITY: Final[Json] = {"admin": {"type": "http", "scheme": "bearer", "description": "The setting admin_token."}}


def paths_and_schemas() -> tuple[Json, Json]:
    """(paths, schemas) of all operations."""
    orders = [operation.order for operation in OPERATIONS]
    answers = [operation.answer_type() for operation in OPERATIONS]
    refs, components = msgspec.json.schema_components(
        [*orders, *answers], ref_template=f"#/components/schemas/{PARTS}{{name}}", schema_hook=_anything
    )
    schemas = {f"{PARTS}{name}": schema for name, schema in components.items()}
    paths: Json = {}
    for operation, order, answer in zip(OPERATIONS, refs, refs[len(OPERATIONS) :], strict=False):
        properties = schemas[order["$ref"].rpartition("/")[2]]["properties"]
        paths.setdefault(PREFIX + operation.path, {})[operation.verb.lower()] = _operation(
            operation, properties, answer
        )
    for order in refs[: len(OPERATIONS)]:  # their fields stand in the operations
        schemas.pop(order["$ref"].rpartition("/")[2], None)
    return paths, schemas


def _anything(kind: type) -> Json:
    """The schema of values that are whatever JSON holds."""
    if kind is object:
        return {"description": "Whatever JSON holds."}  # an empty schema is not taken for one
    raise NotImplementedError(kind)


def _operation(operation: Operation, properties: Json, answer: Json) -> Json:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": properties[name]} for name in operation.in_path
    ]
    others = {name: schema for name, schema in properties.items() if name not in operation.in_path}
    required = [
        field.encode_name
        for field in msgspec.structs.fields(operation.order)
        if field.required and field.name not in operation.in_path
    ]
    described: Json = {
        "operationId": f"admin.{operation.method}",
        "tags": ["admin"],
        "summary": (operation.order.__doc__ or "").partition("\n")[0],
        "security": [{"admin": []}, {}],
        "parameters": parameters,
    }
    if operation.writes:
        if "expect" in properties:
            parameters.append(
                {
                    "name": "If-Match",
                    "in": "header",
                    "required": False,
                    "description": 'The revision that the caller saw, such as "7"; the same as the field expect.',
                    "schema": {"type": "string"},
                }
            )
        body = {"type": "object", "properties": others, "required": required, "additionalProperties": False}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    else:
        parameters += [
            {"name": name, "in": "query", "required": name in required, "schema": schema}
            for name, schema in others.items()
        ]
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    described["responses"] = {
        "200": {"description": "Done.", "content": {"application/json": {"schema": answer}}},
        **{status: {"description": told, "content": error} for status, told in REFUSALS.items()},
    }
    return described
