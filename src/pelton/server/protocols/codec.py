"""What every inference protocol provides: bytes -> what is asked, outputs -> bytes."""

from __future__ import annotations

import zlib
from typing import Any, Final, Protocol

import msgspec

from pelton.engine import Served
from pelton.errors import InvalidInput, TooLarge
from pelton.server.protocols.quick import Quick
from pelton.server.protocols.status import UnknownEncoding
from pelton.server.wire.limits import Limits
from pelton.server.wire.request import Request
from pelton.types import Array, Call, Fields


class Asked(msgspec.Struct):
    """A decoded request. Either `inputs` (tensors) or `fields` (values for the package's preprocessing) is set.

    `context` is the protocol's own and comes back to `encode`. `timeout` is in seconds, 0: the model's target.
    """

    inputs: list[Array]
    rows: int
    fields: Fields | None = None
    context: Any = None
    timeout: float = 0.0
    priority: int = 0


class Answer(msgspec.Struct):
    """The body of a 200, its content type, and further header lines."""

    body: bytes
    content_type: bytes = b"application/json"
    headers: bytes = b""


class Codec(Protocol):
    """A protocol compiled for one served version."""

    protocol: str
    quick: Quick | None  # the shortest way, where this model has one

    def decode(self, request: Request, body: bytes) -> Asked:
        """Raises InvalidInput and its kin for a body that is not what the model takes."""

    def encode(self, call: Call, outputs: list[Array], context: Any) -> Answer:
        """The answer to a call that succeeded."""


_json: Final = msgspec.json.Decoder()
# Too deep; not UTF-8: neither is a DecodeError.
BAD_JSON: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def decode_json(body: bytes | memoryview, limits: Limits) -> Any:
    """JSON as Python values. Depth, size and encoding errors are the caller's."""
    check_json_size(body, limits)
    try:
        return _json.decode(body)
    except BAD_JSON as error:
        raise bad_json(error) from None


def check_json_size(body: bytes | memoryview, limits: Limits) -> None:
    if len(body) > limits.json:
        raise TooLarge(
            f"the JSON has {len(body)} bytes, this server takes {limits.json}: send large tensors in binary form"
        )


def bad_json(error: Exception) -> InvalidInput:
    """What is wrong with the JSON, for its sender."""
    if isinstance(error, RecursionError):
        return InvalidInput("the JSON is nested too deeply")
    if isinstance(error, msgspec.ValidationError):
        return InvalidInput(str(error))
    return InvalidInput(f"the body is not valid JSON: {error}")


def decompress(body: bytes, encoding: bytes, limit: int) -> bytes:
    """A gzip or deflate (zlib structure) body, refused once it grows beyond `limit` bytes."""
    name = encoding.strip().lower()
    if name == b"identity":
        return body
    if name not in (b"gzip", b"x-gzip", b"deflate"):
        raise UnknownEncoding(f"content-encoding {encoding[:40].decode('latin-1')!r} is not read: use gzip or deflate")
    inflater = zlib.decompressobj(31 if name != b"deflate" else 15)
    try:
        data = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not valid {name.decode()}: {error}") from None
    if len(data) > limit:
        raise TooLarge(f"the body is larger than {limit} bytes after decompression")
    if not inflater.eof or inflater.unused_data:
        raise InvalidInput(f"the {name.decode()} body is cut short, or has bytes behind its end")
    return data


class RowEncoder:
    """Outputs of one row, or of many, as JSON values."""

    def __init__(self, served: Served) -> None:
        specs = served.replica.signature.outputs
        self._finish = served.replica.finish
        self._names = tuple(spec.name for spec in specs)
        self._keys = tuple(msgspec.json.encode(spec.name) + b":" for spec in specs)
        self.batched = served.replica.signature.batched
        manifest = served.replica.package.manifest
        self.plain = not manifest.postprocess and all(spec.type.code for spec in specs)  # no BYTES, no BF16
        self.single = self.plain and len(specs) == 1
        self._single_row = self.single and self.batched
        self._open = b"{" + self._keys[0]

    def one(self, outputs: list[Array], counts: tuple[int, ...] | None) -> bytes:
        """One JSON object: output or field name -> value of the row."""
        if self._single_row and counts is None:
            return self._open + encode(outputs[0][0].tolist()) + b"}"
        if self.plain and counts is None and self.batched:
            parts = [key + encode(output[0].tolist()) for key, output in zip(self._keys, outputs, strict=True)]
            return b"{" + b",".join(parts) + b"}"
        return encode(self._finish(outputs, counts)[0])

    def many(self, outputs: list[Array], counts: tuple[int, ...] | None) -> bytes:
        """A JSON list with one entry per instance: the value where the model has a single plain output, else objects."""
        if self.single and counts is None and self.batched:
            return encode(outputs[0].tolist())
        return encode(self._finish(outputs, counts))


encode: Final = msgspec.json.Encoder().encode
