"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.responses import Response

from pelton import errors
from pelton.server.protocols.status import MESSAGE_LIMIT, error_headers, status_of

INVALID: Final = "invalid_request_error"
INTERNAL: Final = "internal error; the log of the server has the details"


class ApiError(Exception):
    """A request that is answered with an error. `param`: the field that is wrong; `code`: a fixed word for programs."""

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400, kind: str = INVALID
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status
        self.kind = kind
        self.headers: dict[str, str] = {}

    def object(self) -> dict[str, Any]:
        """The value of `error`."""
        message = str(self)
        if len(message) > MESSAGE_LIMIT:
            message = message[:MESSAGE_LIMIT] + "..."
        message = message.encode("utf-8", "replace").decode()
        return {"message": message, "type": self.kind, "param": self.param, "code": self.code}

    def body(self) -> bytes:
        return msgspec.json.encode({"error": self.object()})

    def response(self, headers: dict[str, str] | None = None) -> Response:
        """The whole answer. Never compressed."""
        return Response(self.body(), self.status, {**self.headers, **(headers or {})}, "application/json")


def unsupported(message: str, param: str | None) -> ApiError:
    """A field, or a value of one, that exists and is not served here or not by this model."""
    return ApiError(message, param, "unsupported_parameter")


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """A value that cannot be."""
    return ApiError(message, param, code)


def missing(param: str) -> ApiError:
    """A field that must be there."""
    return ApiError(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


# error of the house -> type and code of OpenAI; the first that fits
KINDS: Final[tuple[tuple[type[errors.PeltonError], str, str | None], ...]] = (
    (errors.NotFound, INVALID, "model_not_found"),
    (errors.TooLarge, INVALID, "request_too_large"),
    (errors.Unsupported, INVALID, "unsupported_value"),
    (errors.ExtraMissing, INVALID, "unsupported_value"),
    (errors.InvalidInput, INVALID, "invalid_value"),
    (errors.NotReady, "service_unavailable", "model_not_ready"),
    (errors.Draining, "service_unavailable", "server_stopping"),
    (errors.Refused, "rate_limit_error", "rate_limit_exceeded"),
    (errors.DeadlineExceeded, "timeout_error", "deadline_exceeded"),
    (errors.Cancelled, INVALID, "cancelled"),
)
STATUS: Final = {"model_not_found": 404, "rate_limit_exceeded": 429, "unsupported_value": 400}


def of(error: Exception) -> ApiError:
    """Any error as one of OpenAI's: what the house has not raised on purpose is a 500 without details."""
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, errors.PeltonError):
        return ApiError(INTERNAL, None, None, 500, "server_error")
    for kind, name, code in KINDS:
        if isinstance(error, kind):
            param = "model" if code == "model_not_found" else None
            made = ApiError(str(error), param, code, STATUS.get(code or "", status_of(error)), name)
            break
    else:
        made = ApiError(str(error), None, "model_failed", max(500, status_of(error)), "server_error")
    lines = error_headers(error).decode().splitlines()
    made.headers = dict(line.split(": ", 1) for line in lines)
    return made
