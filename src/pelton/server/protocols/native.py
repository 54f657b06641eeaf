"""`POST /predict/{model}[/{version}]`: one row as people write it.

    {"age": 41, "country": "PT"}  ->  {"labels": [...]}         columns, pictures, sounds, text: as the package declares
    {"x": [0.1, 0.2, 0.3]}        ->  {"prob": [0.9, 0.1]}      tensors by name
    {"data": [0.1, 0.2, 0.3]}     ->  the same                  a model with one input

A tensor may also be a string: the base64 of its little-endian bytes in row-major order.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import pybase64

from pelton.engine import Served
from pelton.errors import InvalidInput
from pelton.server.protocols.codec import Answer, Asked, RowEncoder, check_json_size, decode_json, encode
from pelton.server.protocols.quick import ELEMENT, ELSEWHERE, Quick, giver, only_input, taker
from pelton.server.protocols.tensors import PACK_LIMIT, packer
from pelton.server.wire.limits import Limits
from pelton.server.wire.request import Request
from pelton.types import Array, Call, TensorSpec

QUOTE: Final = 0x22

Fast = Callable[[bytes], list[Array] | None]  # None for what it does not take: the general way tells


class NativeCodec:
    """Compiled for one version."""

    protocol = "native"

    def __init__(self, served: Served, limits: Limits) -> None:
        replica = served.replica
        self._limits = limits
        self._fields = frozenset(field.name for field in replica.prepare.fields)
        self._only = next(iter(self._fields)) if len(self._fields) == 1 else None
        self._rows = RowEncoder(served)
        specs = replica.signature.inputs
        plain = replica.signature.batched and not replica.package.manifest.preprocess
        self._fast = compile_fast(specs, [spec.name for spec in specs]) if plain else None
        self._fast_data = compile_fast(specs, ["data"]) if plain and len(specs) == 1 else None
        self.quick = self._quick(served)

    def decode(self, request: Request, body: bytes) -> Asked:
        check_json_size(body, self._limits)
        fast = self._fast_data if body.startswith(b'{"data"') else self._fast
        inputs = fast(body) if fast is not None else None
        return Asked([], 1, self._general(body)) if inputs is None else Asked(inputs, 1)

    def encode(self, call: Call, outputs: list[Array], context: Any) -> Answer:
        return Answer(self._rows.one(outputs, call.counts))

    def _general(self, body: bytes) -> dict[str, list[Any]]:
        row = decode_json(body, self._limits)
        if not isinstance(row, dict):
            raise InvalidInput(f"the body must be a JSON object with {self._expected()}, not {_kind(row)}")
        if self._only is not None and "data" in row and "data" not in self._fields and len(row) == 1:
            row = {self._only: row["data"]}
        return {name: [value] for name, value in row.items()}

    def _quick(self, served: Served) -> Quick | None:
        """`{"x": [numbers]}` or `{"data": [numbers]}`, and `{"y": [numbers]}` back."""
        named, data = self._fast, self._fast_data
        if only_input(served) is None or named is None or data is None:
            return None

        def take(body: bytes) -> list[Array] | None:
            return data(body) if body.startswith(b'{"data"') else named(body)

        give = giver(served, b"{" + encode(served.replica.signature.outputs[0].name) + b":", b"}", one_row=True)
        return Quick(take, give) if give is not None else None

    def _expected(self) -> str:
        return "the keys " + ", ".join(repr(name) for name in sorted(self._fields))


def _kind(value: Any) -> str:
    return {list: "a list", str: "a string", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def compile_fast(specs: tuple[TensorSpec, ...], keys: list[str]) -> Fast | None:
    """A decoder for the common forms, or None: fixed vectors of numbers, or one fixed tensor as base64."""
    if len(specs) == 1 and specs[0].fixed and len(specs[0].shape) > 1 and specs[0].type.code:
        return _base64_tensor(specs[0], keys[0])
    if all(spec.fixed and len(spec.shape) <= 1 and spec.type.code and spec.elements <= PACK_LIMIT for spec in specs):
        return _vectors(specs, keys)
    return None


def _vectors(specs: tuple[TensorSpec, ...], keys: list[str]) -> Fast:
    fields = [(f"f{i}", vector_type(spec)) for i, spec in enumerate(specs)]
    rename = {f"f{i}": key for i, key in enumerate(keys)}
    form = msgspec.defstruct("Row", fields, rename=rename, forbid_unknown_fields=True)
    if len(specs) == 1 and specs[0].shape:
        return taker(specs[0], form, attrgetter("f0"))
    decode = msgspec.json.Decoder(form).decode
    takes = [(f"f{i}", spec, packer(spec.type.code, spec.elements), (1, *spec.shape)) for i, spec in enumerate(specs)]

    def fast(body: bytes) -> list[Array] | None:
        try:
            row = decode(body)
            inputs: list[Array] = []
            for field, spec, pack, shape in takes:
                value = getattr(row, field)
                inputs.append(np.ndarray(shape, spec.type.dtype, pack(*(value if spec.shape else (value,)))))
        except ELSEWHERE:
            return None
        return inputs

    return fast


def vector_type(spec: TensorSpec) -> Any:
    """The type that msgspec checks one row of a fixed scalar or vector against."""
    element: Any = ELEMENT[spec.type.kind]
    if not spec.shape:
        return element
    return Annotated[list[element], msgspec.Meta(min_length=spec.shape[0], max_length=spec.shape[0])]


def _base64_tensor(spec: TensorSpec, key: str) -> Fast:
    shape_of_row = msgspec.defstruct("Row", [("f0", msgspec.Raw)], rename={"f0": key}, forbid_unknown_fields=True)
    decode: Callable[[bytes], Any] = msgspec.json.Decoder(shape_of_row).decode
    size, shape, dtype = spec.elements * spec.type.size, (1, *spec.shape), spec.type.dtype

    def fast(body: bytes) -> list[Array] | None:
        try:
            raw = memoryview(decode(body).f0)
            data = pybase64.b64decode_as_bytearray(raw[1:-1], validate=True) if raw[0] == QUOTE else b""
        except (*ELSEWHERE, ValueError):
            return None
        if len(data) != size or (spec.type.kind == "float" and not spec.nan):
            return None  # the general way checks numbers and names what is wrong
        return [np.ndarray(shape, dtype, data)]

    return fast
