"""KServe v1, the prediction form of TensorFlow Serving: `POST /v1/models/{model}[/versions/{version}]:predict`.

    {"instances": [[...], [...]]}               one input
    {"instances": [{"age": 41}, {"age": 23}]}   named fields, one object per instance
    {"inputs": {"age": [41, 23]}}               the same by columns
Bytes inside JSON may be `{"b64": "..."}`. Answer: {"predictions": [...]}, one per instance, in order.
"""

from __future__ import annotations

import itertools
from typing import Any

import msgspec

from pelton.engine import Served
from pelton.errors import InvalidInput, TooLarge
from pelton.server.protocols.codec import BAD_JSON, Answer, Asked, RowEncoder, bad_json, check_json_size, decode_json
from pelton.server.protocols.native import vector_type
from pelton.server.protocols.quick import Quick
from pelton.server.protocols.tensors import array_of
from pelton.server.wire.limits import Limits
from pelton.server.wire.request import Request
from pelton.types import Array, Call

MAX_INSTANCES = 65_536


class KserveCodec:
    """Compiled for one version."""

    protocol = "kserve_v1"
    quick: Quick | None = None

    def __init__(self, served: Served, limits: Limits) -> None:
        replica = served.replica
        self._limits = limits
        self._fields = tuple(field.name for field in replica.prepare.fields)
        self._rows = RowEncoder(served)
        self._spec = replica.signature.inputs[0]
        self._decode: msgspec.json.Decoder[Any] | None = None
        spec = self._spec
        plain = replica.signature.batched and not replica.package.manifest.preprocess
        if plain and len(replica.signature.inputs) == 1 and spec.fixed and len(spec.shape) == 1 and spec.type.code:
            fields = [("instances", list[vector_type(spec)])]  # type: ignore[misc]  # a type made from the signature
            self._decode = msgspec.json.Decoder(msgspec.defstruct("Body", fields, forbid_unknown_fields=True))

    def decode(self, request: Request, body: bytes) -> Asked:
        check_json_size(body, self._limits)
        if self._decode is not None:
            try:
                instances = self._decode.decode(body).instances
                if instances:
                    return self._vectors(instances)
            except msgspec.ValidationError:
                pass  # another form, or wrong: the general way tells
            except BAD_JSON as error:
                raise bad_json(error) from None
        fields = self._general(decode_json(body, self._limits))
        return Asked([], len(next(iter(fields.values()))), fields)

    def encode(self, call: Call, outputs: list[Array], context: Any) -> Answer:
        return Answer(b'{"predictions":' + self._rows.many(outputs, call.counts) + b"}")

    def _vectors(self, instances: list[list[Any]]) -> Asked:
        rows = len(instances)
        if rows > MAX_INSTANCES:
            raise TooLarge(f"{rows} instances in one call; at most {MAX_INSTANCES}")
        flat = instances[0] if rows == 1 else list(itertools.chain.from_iterable(instances))
        return Asked([array_of(flat, (rows, *self._spec.shape), self._spec)], rows)

    def _general(self, body: Any) -> dict[str, list[Any]]:
        if not isinstance(body, dict):
            raise InvalidInput('the body must be a JSON object with "instances" or "inputs"')
        unknown = set(body) - {"instances", "inputs", "signature_name", "parameters"}
        if unknown:
            raise InvalidInput(f'unknown key {min(unknown)[:60]!r}; the body takes "instances" or "inputs"')
        if ("instances" in body) == ("inputs" in body):
            raise InvalidInput('the body needs either "instances" or "inputs"')
        value = body["instances"] if "instances" in body else body["inputs"]
        if isinstance(value, dict) and "inputs" in body:
            fields = self._columns(value)
        elif isinstance(value, list):
            fields = self._instances(value)
        else:
            raise InvalidInput('"instances" must be a list; "inputs" a list or an object of lists')
        rows = len(next(iter(fields.values()), ()))
        if rows == 0:
            raise InvalidInput("the body has no instances")
        if rows > MAX_INSTANCES:
            raise TooLarge(f"{rows} instances in one call; at most {MAX_INSTANCES}")
        return fields

    def _columns(self, columns: dict[str, Any]) -> dict[str, list[Any]]:
        lengths = {len(values) if isinstance(values, list) else -1 for values in columns.values()}
        if -1 in lengths or len(lengths) > 1:
            raise InvalidInput('"inputs" must give each field a list, and all lists the same length')
        return {name: [_unwrap(value) for value in values] for name, values in columns.items()}

    def _instances(self, instances: list[Any]) -> dict[str, list[Any]]:
        first = _unwrap(instances[0]) if instances else None
        if not isinstance(first, dict):
            return {self._only(): [_unwrap(instance) for instance in instances]}
        columns: dict[str, list[Any]] = {}
        for position, instance in enumerate(instances):
            if not isinstance(instance, dict):
                raise InvalidInput(f"instance {position} must be an object, as instance 0 is")
            for name, value in instance.items():
                column = columns.get(name)
                if column is None:
                    if name not in self._fields:
                        known = ", ".join(map(repr, self._fields))
                        raise InvalidInput(
                            f"instance {position}: unknown field {name[:60]!r}; this model takes {known}"
                        )
                    column = columns[name] = [msgspec.UNSET] * len(instances)
                column[position] = _unwrap(value)
        return columns

    def _only(self) -> str:
        if len(self._fields) != 1:
            raise InvalidInput(f"this model takes {', '.join(map(repr, self._fields))}: make each instance an object")
        return self._fields[0]


def _unwrap(value: Any) -> Any:
    """TensorFlow Serving's way to put bytes into JSON."""
    if isinstance(value, dict) and value.keys() == {"b64"}:
        return value["b64"]
    return value
