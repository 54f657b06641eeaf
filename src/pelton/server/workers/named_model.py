"""Which model a request of the OpenAI API is for: its name stands in the body."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from pelton.errors import PeltonError
from pelton.server.openai import multipart
from pelton.server.protocols.codec import decompress
from pelton.server.wire.request import Request

PATHS: Final = frozenset(
    (
        b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings", b"/v1/responses",
        b"/v1/responses/input_tokens",
        b"/v1/audio/transcriptions", b"/v1/audio/translations",
    )
)  # fmt: skip
KEPT: Final = re.compile(rb"/v1/responses/resp_([0-9a-f]{2})")


class _Named(msgspec.Struct):
    model: str = ""


def is_openai(target: bytes) -> bool:
    """Whether a POST there names its model in the body."""
    return target.partition(b"?")[0] in PATHS


def keeper_of(target: bytes) -> int | None:
    """The worker that keeps the response that a target is about."""
    found = KEPT.match(target)
    return int(found[1], 16) if found is not None else None


def named_in(request: Request, limit: int) -> str:
    """The model's name, without version or alias; "" where the body names none that can be read: whoever has the
    request says what is wrong with it. `limit`: bytes of a body after decompression."""
    body, encoding = request.body, request.header(b"content-encoding")
    try:
        if encoding is not None:
            body = decompress(body, encoding, limit)
        kind = request.header(b"content-type") or b""
        if b"multipart/form-data" in kind.lower():
            model = multipart.read(kind, body).get("model", [b""])[-1].decode()
        else:
            model = msgspec.json.decode(body, type=_Named).model
    except (PeltonError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return model.partition(":")[0].partition("@")[0]
