"""JSON Schema (2020-12) of one row of a model, and of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from pelton.packages import Manifest
from pelton.packages import preprocess as pre
from pelton.types import DATATYPES, TensorSpec

if TYPE_CHECKING:
    from pelton.server.pages.cards import Field

Json = dict[str, Any]

ELEMENT: Final = {"float": "number", "int": "integer", "bool": "boolean", "bytes": "string"}
TRANSCRIPT: Final[dict[str, Json]] = {
    "text": {"type": "string"},
    "language": {"type": "string"},
    "duration": {"type": "number", "description": "Seconds."},
    "segments": {"type": "array", "items": {"type": "object"}},
}
MEDIA: Final = {"image": "image/*", "audio": "audio/*"}


def row_schema(fields: Sequence[Field]) -> Json:
    """An object with one property per field."""
    return {
        "type": "object",
        "properties": {field.name: field_schema(field) for field in fields},
        "required": [field.name for field in fields if field.required],
        "additionalProperties": False,
    }


def field_schema(field: Field) -> Json:
    """One field: what it may hold, and what people should know of it."""
    if field.kind == "tensor":
        schema = tensor_schema(TensorSpec(field.name, field.datatype, field.shape), True)
    elif field.kind in MEDIA:
        text = {"type": "string", "contentEncoding": "base64", "contentMediaType": MEDIA[field.kind]}
        schema = {"oneOf": [text, {"type": "object", "properties": {"b64": text}, "required": ["b64"]}]}
    elif field.kind in ("number", "integer", "boolean"):
        schema = {"type": field.kind}
        if field.least is not None:
            schema["minimum"] = field.least
        if field.most is not None:
            schema["maximum"] = field.most
    else:
        schema = {"type": "string"}
        if field.values:
            schema["examples" if field.open else "enum"] = list(field.values)
    if field.description:
        schema["description"] = field.description
    if field.default is not None:
        schema["default"] = field.default
    return schema


def tensor_schema(spec: TensorSpec, raw: bool = False) -> Json:
    """Nested lists of the row's shape; `raw`: base64 of the little-endian bytes is taken too."""
    kind = DATATYPES[spec.datatype].kind
    schema: Json = {"type": ELEMENT[kind]}
    for dim in reversed(spec.shape):
        schema = {"type": "array", "items": schema}
        if dim >= 0:
            schema |= {"minItems": dim, "maxItems": dim}
    if raw and kind != "bytes":
        return {"anyOf": [schema, {"type": "string", "contentEncoding": "base64"}]}
    return schema


def answer_schema(manifest: Manifest) -> Json:
    """One property per answer."""
    windows = any(isinstance(block, pre.Audio) and block.window for block in manifest.preprocess)
    used = {block.output for block in manifest.postprocess}
    properties: Json = {}
    for block in manifest.postprocess:
        spec = manifest.signature.output(block.output)
        schema = _block_schema(block, spec)
        joins = isinstance(block, pre.Labels) and block.over_rows != "none"
        properties[block.field] = schema if joins or not windows else {"type": "array", "items": schema}
    for spec in manifest.signature.outputs:
        if spec.name not in used:
            schema = _numbers_or_null(spec)
            properties[spec.name] = {"type": "array", "items": schema} if windows else schema
    return {"type": "object", "properties": properties, "required": list(properties)}


def _block_schema(block: pre.Postprocess, spec: TensorSpec) -> Json:
    if isinstance(block, pre.Ctc):
        return {"type": "string"}
    if isinstance(block, pre.Labels):
        label: Json = {"type": "string"}
        if block.labels:
            label["enum"] = list(block.labels)
        one = {
            "type": "object",
            "properties": {"label": label, "score": {"type": "number"}},
            "required": ["label", "score"],
        }
        return {"type": "array", "items": one, "description": "The best labels, best first."}
    if isinstance(block, pre.Transcript):
        return dict(TRANSCRIPT[block.part])
    single = isinstance(block, pre.Value) and block.index is not None
    return _numbers_or_null(TensorSpec(spec.name, spec.datatype) if single else spec)


def _numbers_or_null(spec: TensorSpec) -> Json:
    """JSON has no NaN: such numbers are null in answers."""
    schema = tensor_schema(spec)
    leaf = schema
    while "items" in leaf:
        leaf = leaf["items"]
    if leaf["type"] == "number":
        leaf["type"] = ["number", "null"]
    return schema
