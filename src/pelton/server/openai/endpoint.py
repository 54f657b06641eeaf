"""What all endpoints have in common: reading the body, finding the model, turning errors into answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pelton.engine import Served
from pelton.errors import InvalidInput, ModelFailed, NotFound, PeltonError
from pelton.language import Language
from pelton.runtimes.language import Facts
from pelton.server.openai import caller as callers
from pelton.server.openai import errors
from pelton.server.openai.caller import Caller
from pelton.server.openai.decoding import json_object
from pelton.server.openai.errors import ApiError
from pelton.server.openai.stream import Application
from pelton.server.protocols.codec import decompress
from pelton.server.site import Site
from pelton.types import ModelRef

log = logging.getLogger(__name__)

PROTOCOL: Final = "openai"
LONG_TEXT: Final = 8192  # characters: what is longer becomes tokens in a thread

T = TypeVar("T")
Answer = Callable[[dict[str, Any], Caller], Awaitable[Application]]


class Target(NamedTuple):
    """The version that answers; `route` and `key` as a split has chosen (`Pick`)."""

    served: Served
    route: int = 0
    key: int = 0


class Endpoint:
    """One route that takes JSON: calls `answer` with the body as an object, and answers what it raises."""

    def __init__(self, site: Site, answer: Answer) -> None:
        self._site = site
        self._answer = answer

    async def __call__(self, request: Request) -> Application:
        clock = self._site.engine.clock
        received, name, headers = clock(), "", {}
        try:
            caller = callers.of(request, received)
            headers = {"x-request-id": caller.request_id}
            raw = json_object(await body_of(request, self._site), self._site.limits.json)
            name = str(raw.get("model", ""))[:200]
            return await self._answer(raw, caller)
        except ClientDisconnect:
            return Response()
        except Exception as error:  # noqa: BLE001 - every error is answered, in one form
            return self._failure(error, name, received, headers)

    def _failure(self, error: Exception, name: str, received: float, headers: dict[str, str]) -> Response:
        if not isinstance(error, (ApiError, PeltonError)):
            log.exception("answering a request for model %r failed", name)
        told = errors.of(error)
        own = error if isinstance(error, PeltonError) else _own(told)
        self._site.engine.reject(name.partition(":")[0].partition("@")[0], PROTOCOL, own, received)
        return told.response(headers)


def _own(error: ApiError) -> PeltonError:
    """An error of this protocol as one of the house, for the record."""
    return InvalidInput(str(error)) if error.status < 500 else ModelFailed(str(error))


async def body_of(request: Request, site: Site) -> bytes:
    """The body, without its content-encoding. Raises PeltonError."""
    body = await request.body()
    encoding = request.headers.get("content-encoding")
    if encoding is None:
        return body
    return decompress(body, encoding.encode("latin-1"), site.limits.body)


async def find(site: Site, model: str, key: bytes | None) -> Target:
    """The version that `model` names: "name", "name:version" or "name@alias". Raises ApiError, Refused."""
    engine = site.engine
    try:
        ref = ModelRef.parse(model)
        version = ref.version
        if ref.alias:
            package = await asyncio.to_thread(site.fleet.registry.resolve, ref)
            version = package.version
        served = engine.resolve(ref.name, version)
    except (NotFound, InvalidInput) as error:
        known = ", ".join(sorted(engine.directory.current())[:20]) or "none"
        raise ApiError(
            f"The model {model[:100]!r} does not exist here, or its version does not serve; served here: {known}.",
            "model",
            "model_not_found",
            404,
        ) from error
    target = Target(*served.split.pick(key)) if served.split is not None and not version else Target(served)
    task = asyncio.current_task()
    if task is not None:  # that of the request: its text still has to become tokens
        target.served.expect(task)
    return target


def language_of(served: Served) -> tuple[Language, Facts]:
    """Raises ApiError where the model is no language model."""
    language, facts = served.language, served.engine_facts
    if language is None or facts is None:
        raise ApiError(
            f"The model {served.name!r} is no language model; GET /v1/models says what each one is.",
            "model",
            "model_not_supported",
        )
    return language, facts


async def in_turn(size: int, work: Callable[[], T]) -> T:
    """Runs `work` here, or in a thread where it would keep the event loop busy. `size`: characters that it reads."""
    return work() if size <= LONG_TEXT else await asyncio.to_thread(work)
