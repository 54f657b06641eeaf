"""Answers of the pages: JSON with the Content-Type that all clients accept, and errors in the one form of the house."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pelton.errors import InvalidInput, PeltonError, Refused, TooLarge
from pelton.server.protocols.status import error_body, error_headers, status_of

BODY_LIMIT = 1024 * 1024  # of requests that only carry parameters
JSON = "application/json"  # exactly: some clients show an error's text only then


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Any JSON-able value. Nobody may keep it: it is the state of now."""
    return Response(
        msgspec.json.encode(value), status, media_type=JSON, headers={"cache-control": "no-store", **(headers or {})}
    )


def failure(error: PeltonError, **also: Any) -> Response:
    """An error of the house; `also` are further keys beside "error"."""
    lines = error_headers(error).decode().splitlines()
    headers = dict(line.split(": ", 1) for line in lines)
    if also:
        return answer({"error": str(error), **also}, status_of(error), headers)
    return Response(error_body(str(error)), status_of(error), headers, JSON)


def plain_failure(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error that only HTTP knows."""
    return Response(error_body(message), status, headers, JSON)


def not_ready(reason: str) -> Refused:
    """503 with Retry-After, and the reason as a fixed word."""
    return Refused(reason, retry_after=1.0, reason="not_ready")


async def parameters(request: Request) -> dict[str, Any]:
    """The body of a request that may be empty: a JSON object. Raises InvalidInput."""
    body = await request.body()
    if len(body) > BODY_LIMIT:
        raise TooLarge(f"the body has {len(body)} bytes; {BODY_LIMIT} are enough for parameters")
    if not body.strip():
        return {}
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInput("the body must be empty or a JSON object")
    return value
