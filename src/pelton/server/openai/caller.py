"""What the headers of a request say about who calls and how the call should be treated."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
from starlette.requests import Request

from pelton.server import call_headers

NO: Final = frozenset(("", "0", "false", "no"))


class Caller(msgspec.Struct, frozen=True):
    """Times are seconds. `tenant` tells keys apart without keeping them; "" where none was sent."""

    received: float
    tenant: str = ""
    request_id: str = ""
    timeout: float = 0.0
    priority: int = 0
    trace: str = ""
    key: bytes | None = None  # calls of one key go to one version while a canary runs
    receipt: bool = False  # the answer shall carry one


def of(request: Request, received: float) -> Caller:
    """Raises InvalidInput for a header that makes no sense."""
    headers = _Headers(request)
    return Caller(
        received,
        tenant_of(headers),
        call_headers.request_id(headers),
        call_headers.timeout_of(headers),
        call_headers.priority_of(headers),
        call_headers.trace_of(headers),
        headers.header(call_headers.KEY),
        request.headers.get("pelton-receipt", "").strip().lower() not in NO,
    )


def request_id(request: Request) -> str:
    """The caller's own, or a new one."""
    return call_headers.request_id(_Headers(request))


def tenant(request: Request) -> str:
    """Who calls."""
    return tenant_of(_Headers(request))


def tenant_of(headers: call_headers.Headers) -> str:
    """A name made of the API key, which itself is neither kept nor logged."""
    given = headers.header(b"authorization")
    key = b""
    if given is not None:
        scheme, _, rest = given.strip().partition(b" ")
        key = rest.strip() if scheme.lower() == b"bearer" else given.strip()
    key = key or headers.header(b"api-key") or headers.header(b"x-api-key") or b""
    return f"key-{hashlib.sha256(key).hexdigest()[:12]}" if key else ""


class _Headers:
    """Headers of an ASGI request in the form of the wire."""

    special = True

    def __init__(self, request: Request) -> None:
        self._headers = request.headers.raw

    def header(self, name: bytes) -> bytes | None:
        for key, value in self._headers:
            if key == name:
                return value
        return None
