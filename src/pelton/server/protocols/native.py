"""`POST /predict/{model}[/{version}]`: one row as people write it.

    {"age": 41, "country": "PT"}  ->  {"labels": [...]}         columns, pictures, sounds, text: as the package declares
    {"x": [0.1, 0.2, 0.3]}        ->  {"prob": [0.9, 0.1]}      tensors by name
    {"data": [0.1, 0.2, 0.3]}     ->  the same                  a model with one input

A tensor may also be a string: the base64 of its little-endian bytes in row-major order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import attrgetter
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import pybase64

from pelton.engine import Served
from pelton.errors import InvalidInput
from pelton.server.protocols.codec import (
    BAD_JSON,
    Answer,
    Asked,
    RowEncoder,
    bad_json,
    check_json_size,
    decode_json,
    encode,
)
from pelton.server.protocols.quick import ELEMENT, Quick, giver, only_input, taker, vector
from pelton.server.protocols.tensors import PACK_LIMIT, out_of_range, packer
from pelton.server.wire.connection import Request
from pelton.server.wire.limits import Limits
from pelton.types import Array, Call, TensorSpec

QUOTE: Final = 0x22

Fast = Callable[[bytes], list[Array]]  # raises msgspec.ValidationError for what it does not take


class NativeCodec:
    """Compiled for one version."""

    protocol = "native"

    def __init__(self, served: Served, limits: Limits) -> None:
        replica = served.replica
        self._limits = limits
        self._fields = frozenset(field.name for field in replica.prepare.fields)
        self._only = next(iter(self._fields)) if len(self._fields) == 1 else None
        self._rows = RowEncoder(served)
        self._fast: Fast | None = None
        self._fast_data: Fast | None = None
        self.quick = _quick(served)
        specs = replica.signature.inputs
        if replica.signature.batched and not replica.package.manifest.preprocess:
            self._fast = compile_fast(specs, [spec.name for spec in specs])
            if len(specs) == 1:
                self._fast_data = compile_fast(specs, ["data"])

    def decode(self, request: Request, body: bytes) -> Asked:
        check_json_size(body, self._limits)
        fast = self._fast_data if body.startswith(b'{"data"') else self._fast
        if fast is not None:
            try:
                return Asked(fast(body), 1)
            except msgspec.ValidationError:
                pass  # nested, base64, or wrong: the general way tells
            except BAD_JSON as error:
                raise bad_json(error) from None
        return Asked([], 1, self._general(body))

    def encode(self, call: Call, outputs: list[Array], context: Any) -> Answer:
        return Answer(self._rows.one(outputs, call.counts))

    def _general(self, body: bytes) -> dict[str, list[Any]]:
        row = decode_json(body, self._limits)
        if not isinstance(row, dict):
            raise InvalidInput(f"the body must be a JSON object with {self._expected()}, not {_kind(row)}")
        if self._only is not None and "data" in row and "data" not in self._fields and len(row) == 1:
            row = {self._only: row["data"]}
        return {name: [value] for name, value in row.items()}

    def _expected(self) -> str:
        return "the keys " + ", ".join(repr(name) for name in sorted(self._fields))


def _quick(served: Served) -> Quick | None:
    """`{"x": [numbers]}` or `{"data": [numbers]}`, and `{"y": [numbers]}` back."""
    spec = only_input(served)
    if spec is None:
        return None
    give = giver(served, b"{" + encode(served.replica.signature.outputs[0].name) + b":", b"}", one_row=True)
    named, data = (
        taker(
            spec,
            msgspec.defstruct("Row", [("values", vector(spec))], rename={"values": key}, forbid_unknown_fields=True),
            attrgetter("values"),
        )
        for key in (spec.name, "data")
    )

    def take(body: bytes) -> list[Array] | None:
        return data(body) if body.startswith(b'{"data"') else named(body)

    return Quick(take, give) if give is not None else None


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
    decode = msgspec.json.Decoder(msgspec.defstruct("Row", fields, rename=rename, forbid_unknown_fields=True)).decode
    if len(specs) == 1 and specs[0].shape:
        return _one_vector(specs[0], decode)
    takes = [(f"f{i}", spec, packer(spec.type.code, spec.elements), (1, *spec.shape)) for i, spec in enumerate(specs)]

    def fast(body: bytes) -> list[Array]:
        row = decode(body)
        inputs: list[Array] = []
        for field, spec, pack, shape in takes:
            value = getattr(row, field)
            values = value if spec.shape else [value]
            try:
                inputs.append(np.ndarray(shape, spec.type.dtype, pack(*values)))
            except (struct.error, OverflowError):
                raise out_of_range(spec, values) from None
        return inputs

    return fast


def _one_vector(spec: TensorSpec, decode: Callable[[bytes], Any]) -> Fast:
    """The hottest path of the house: one vector of numbers, straight from JSON into an array."""
    pack, shape, dtype, ndarray = packer(spec.type.code, spec.elements), (1, *spec.shape), spec.type.dtype, np.ndarray

    def fast(body: bytes) -> list[Array]:
        values = decode(body).f0
        try:
            return [ndarray(shape, dtype, pack(*values))]
        except (struct.error, OverflowError):
            raise out_of_range(spec, values) from None

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

    def fast(body: bytes) -> list[Array]:
        raw = memoryview(decode(body).f0)
        if raw[0] != QUOTE:
            raise msgspec.ValidationError
        try:
            data = pybase64.b64decode_as_bytearray(raw[1:-1], validate=True)
        except ValueError:
            raise msgspec.ValidationError from None
        if len(data) != size or (spec.type.kind == "float" and not spec.nan):
            raise msgspec.ValidationError  # the general way checks numbers and names what is wrong
        return [np.ndarray(shape, dtype, data)]

    return fast
