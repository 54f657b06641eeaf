"""One row to try a model with: the package's own example, else a recorded one, else the simplest that fits."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any, Final

import numpy as np

from pelton.engine import Served
from pelton.errors import PeltonError
from pelton.packages import golden
from pelton.transforms import FieldSpec
from pelton.types import Array, TensorSpec

SHORT: Final = 64  # elements of a tensor that are written out; longer ones are base64
QUESTION: Final = "Why is the sky blue?"  # to a language model
ANY_DIM: Final = 16  # stands for a dimension that may vary


def row_of(served: Served) -> dict[str, Any]:
    """The body of a call to `/predict/{model}`. Reads files: meant for a thread."""
    manifest = served.replica.package.manifest
    if manifest.example is not None or manifest.preprocess or served.language is not None:
        return quick(served)
    recorded = _recorded(served)
    return {
        spec.name: written(recorded[spec.name] if spec.name in recorded else zeros(spec), spec)
        for spec in served.replica.signature.inputs
    }


def quick(served: Served) -> dict[str, Any]:
    """The same without reading a file: zeros instead of what was recorded."""
    manifest = served.replica.package.manifest
    if manifest.example is not None:
        return dict(manifest.example)
    if served.language is not None:
        return {spec.name: QUESTION for spec in manifest.signature.inputs}
    if manifest.preprocess:
        return {field.name: _of_field(field) for field in served.replica.prepare.fields if field.required}
    return {spec.name: written(zeros(spec), spec) for spec in served.replica.signature.inputs}


def written(row: Array, spec: TensorSpec) -> Any:
    """One row of a tensor as JSON: nested lists where it is short, else base64 of its bytes."""
    if spec.type.kind == "bytes":
        return np.vectorize(lambda item: item.decode(errors="replace"), otypes=[object])(row).tolist()
    if row.size <= SHORT and spec.type.code and bool(np.isfinite(row).all()):
        values: Any = row.tolist()
        return values
    return base64.b64encode(np.ascontiguousarray(row).tobytes()).decode()


def zeros(spec: TensorSpec) -> Array:
    """A row of nothing."""
    shape = tuple(ANY_DIM if dim == -1 else dim for dim in spec.shape)
    return np.full(shape, b"text", object) if spec.type.kind == "bytes" else np.zeros(shape, spec.type.dtype)


def _recorded(served: Served) -> dict[str, Array]:
    package = served.replica.package
    if package.manifest.golden is None:
        return {}
    try:
        requests = golden.read(package.path(package.manifest.golden.file))
    except PeltonError:  # it was whole when the model was loaded; a page can do without
        return {}
    if not requests:
        return {}
    first = requests[0].inputs
    return {name: array[0] for name, array in first.items()} if served.replica.signature.batched else first


def _of_field(field: FieldSpec) -> Any:
    if field.kind == "tensor":
        spec = TensorSpec(field.name, field.datatype, field.shape)
        return written(zeros(spec), spec)
    if field.values:
        return field.values[0]
    simple: dict[str, Any] = {
        "number": 0.0,
        "integer": 0,
        "boolean": False,
        "image": {"b64": base64.b64encode(picture()).decode()},
        "audio": {"b64": base64.b64encode(sound()).decode()},
    }
    return simple.get(field.kind, "text")


def picture(side: int = 32) -> bytes:
    """A grey square as PNG."""
    lines = (b"\0" + b"\x80" * side) * side
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def sound(seconds: float = 0.5, rate: int = 16_000) -> bytes:
    """Silence as WAV, 16 bits mono."""
    samples = bytes(2 * int(seconds * rate))
    form = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    return (
        b"RIFF" + struct.pack("<I", 36 + len(samples)) + b"WAVEfmt " + struct.pack("<I", 16) + form
        + b"data" + struct.pack("<I", len(samples)) + samples
    )  # fmt: skip
