"""The shortest way through a protocol: one row of the model's only input, in its plainest form, and back.

What is only a matter of speed lives here. `take` answers None for everything that it does not take, also for what is
wrong, and `give` for an output that is not what the signature says: the protocol's general way then tells.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np

from pelton.engine import Served
from pelton.server.protocols.tensors import PACK_LIMIT, packer
from pelton.types import Array, TensorSpec

ELEMENT: Final = {"float": float, "int": int, "bool": bool}
LARGEST: Final = 64 * 1024  # bytes of a body; larger ones are bound by other work
ELSEWHERE: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError, struct.error, OverflowError)

_encode: Final = msgspec.json.Encoder().encode


class Quick(NamedTuple):
    """A body -> one row of inputs, and the outputs of one row -> a body."""

    take: Callable[[bytes], list[Array] | None]
    give: Callable[[list[Array]], bytes | None]


def only_input(served: Served) -> TensorSpec | None:
    """The model's input, where it has one that is a fixed vector of numbers and nothing prepares it."""
    replica = served.replica
    signature = replica.signature
    if replica.package.manifest.preprocess or not signature.batched or len(signature.inputs) != 1:
        return None
    spec = signature.inputs[0]
    fits = spec.fixed and len(spec.shape) == 1 and spec.type.code and 0 < spec.elements <= PACK_LIMIT
    return spec if fits else None


def taker(spec: TensorSpec, form: Any, values_of: Callable[[Any], list[Any]]) -> Callable[[bytes], list[Array] | None]:
    """`form`: the msgspec type of a body, strict in every part; `values_of` finds the row in it."""
    decode = msgspec.json.Decoder(form).decode
    pack, shape, dtype, ndarray = packer(spec.type.code, spec.elements), (1, *spec.shape), spec.type.dtype, np.ndarray

    def take(body: bytes) -> list[Array] | None:
        if len(body) > LARGEST:
            return None
        try:
            return [ndarray(shape, dtype, pack(*values_of(decode(body))))]
        except ELSEWHERE:
            return None

    return take


def giver(served: Served, start: bytes, end: bytes, one_row: bool) -> Callable[[list[Array]], bytes | None] | None:
    """Puts the only output between `start` and `end`, where it is fixed numbers; `one_row`: without the row dimension."""
    replica = served.replica
    specs = replica.signature.outputs
    if len(specs) != 1 or not specs[0].fixed or not specs[0].type.code or replica.package.manifest.postprocess:
        return None
    shape = (1, *specs[0].shape)

    def give(outputs: list[Array]) -> bytes | None:
        output = outputs[0]
        if output.shape != shape:
            return None
        return start + _encode(output[0].tolist() if one_row else output.ravel().tolist()) + end

    return give


def vector(spec: TensorSpec) -> Any:
    """The type of the values of a fixed vector."""
    element: Any = ELEMENT[spec.type.kind]
    return Annotated[list[element], msgspec.Meta(min_length=spec.elements, max_length=spec.elements)]
