"""Paths below /v1 that nothing is at, and methods that are not taken: told as OpenAI's clients read errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from pelton.server.openai import caller as callers
from pelton.server.openai.errors import ApiError

ROOT: Final = "/v1/"
MODELS: Final = "/v1/models/"
MISPLACED: Final = re.compile(  # as clients of Azure ask, and those whose base URL is not quite right
    r"(?:/openai(?:/v1|/deployments/[^/]+)?|/api|/api/v1|/v1|/v1/v1)?"
    r"(/chat/completions|/completions|/embeddings|/responses|/models|/audio/transcriptions|/audio/translations)/?"
)
CALLERS: Final = ("authorization", "api-key", "x-api-key", "x-stainless-lang", "openai-organization")
SHOWN: Final = 200  # characters of a path


def from_openai(request: Request) -> bool:
    """Whether the caller reads errors as OpenAI writes them, on a path that KServe's clients use as well."""
    return any(name in request.headers for name in CALLERS)


def refusal(request: Request, status: int, headers: Mapping[str, str]) -> Response | None:
    """The answer to a request that has no route (404) or another method (405). None: it is not this API's business."""
    path = request.url.path
    if status == 404 and (meant := MISPLACED.fullmatch(path)) is not None:
        told = (
            f"Unknown request URL: {request.method[:20]} {path[:SHOWN]}. Did you mean /v1{meant[1]}? The base URL of a client "
            "is http://HOST:PORT/v1, and the model is named in the body."
        )
        return _answer(ApiError(told, None, "unknown_url", status), headers, request)
    if not path.startswith(ROOT) or (path.startswith(MODELS) and not from_openai(request)):
        return None
    asked = f"{request.method[:20]} {path[:SHOWN]}"
    if status == 405:
        told = f"Not allowed to {asked}, but {headers.get('Allow', 'another method')}."
        error = ApiError(told, None, "method_not_supported", status)
    elif path.startswith(MODELS) and request.method in ("GET", "DELETE"):
        name = path.removeprefix(MODELS)[:100]
        error = ApiError(f"The model {name!r} does not exist.", "model", "model_not_found", status)
    else:
        told = f"Unknown request URL: {asked}. It is not served here; /openapi.json says what is."
        error = ApiError(told, None, "unknown_url", status)
    return _answer(error, headers, request)


def _answer(error: ApiError, headers: Mapping[str, str], request: Request) -> Response:
    return error.response({**headers, "x-request-id": callers.request_id(request)})
