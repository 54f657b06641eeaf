"""Errors as HTTP statuses. The only place that knows both."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from pelton import errors


class UnknownEncoding(errors.InvalidInput):
    """The body has a content-encoding that is not read here."""


STATUS: Final[tuple[tuple[type[errors.PeltonError], int], ...]] = (
    (errors.TooLarge, 413),
    (UnknownEncoding, 415),
    (errors.InvalidInput, 400),
    (errors.NotFound, 404),
    (errors.Unsupported, 501),
    (errors.Refused, 503),
    (errors.DeadlineExceeded, 504),
    (errors.Cancelled, 499),
    (errors.Untrusted, 403),
    (errors.Conflict, 409),
    (errors.PackageInvalid, 400),
    (errors.ModelFailed, 500),
)

MESSAGE_LIMIT: Final = 2000  # characters of an error: names in it may come from the caller

PHRASES: Final = {
    200: "OK", 204: "No Content", 302: "Found", 304: "Not Modified", 307: "Temporary Redirect", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 409: "Conflict",
    408: "Request Timeout", 411: "Length Required", 413: "Content Too Large", 414: "URI Too Long",
    415: "Unsupported Media Type", 417: "Expectation Failed", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 499: "Client Closed Request", 500: "Internal Server Error",
    501: "Not Implemented", 503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip


class HttpError(Exception):
    """A request that is wrong as HTTP, before any model is asked. The connection is closed after its answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def status_of(error: errors.PeltonError) -> int:
    """The HTTP status of an error."""
    for kind, status in STATUS:
        if isinstance(error, kind):
            return status
    return 500


def error_body(message: str) -> bytes:
    """The body that every protocol here uses for errors: `{"error": "..."}`. Lone surrogates are replaced, long ones cut."""
    if len(message) > MESSAGE_LIMIT:
        message = message[:MESSAGE_LIMIT] + "..."
    return msgspec.json.encode({"error": message.encode("utf-8", "replace").decode()})


def error_headers(error: errors.PeltonError) -> bytes:
    """Header lines of an error: when to try again, and the fixed word of the reason."""
    if not isinstance(error, errors.Refused):
        return b""
    seconds = max(1, math.ceil(error.retry_after))  # RFC 9110 allows whole seconds only
    return b"retry-after: %d\r\npelton-reason: %b\r\n" % (seconds, error.reason.encode())
