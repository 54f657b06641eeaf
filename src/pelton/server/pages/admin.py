"""The admin API: every operation of `pelton.control` under one prefix, made of the one table of orders.

Requests become orders, answers and errors are JSON. The work is done in threads, a bounded number of them: the event
loop answers inference meanwhile.
"""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pelton.control.orders import OPERATIONS, Operation, Order, perform
from pelton.errors import InvalidInput
from pelton.server.pages.admin_auth import Denied, Gate
from pelton.server.pages.answers import answer, parameters, plain_failure
from pelton.server.site import Site

PREFIX: Final = "/admin/v1"
RUNNING: Final = 4  # orders at the same time, in threads
WAITING: Final = 32  # more than these are refused
JSON: Final = "application/json"

Endpoint = Callable[[Request], Awaitable[Response]]


def routes(site: Site) -> list[Route]:
    """All routes of the API."""
    admin = Admin(site)
    return [Route(PREFIX + one.path, admin.endpoint(one), methods=[one.verb]) for one in OPERATIONS]


class Admin:
    """Lets callers in, and has their orders carried out."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._gate = Gate(site.settings.admin_token)
        self._slots = asyncio.Semaphore(RUNNING)
        self._here = 0

    def endpoint(self, operation: Operation) -> Endpoint:
        """The page of one operation."""

        async def page(request: Request) -> Response:
            try:
                peer = request.client.host if request.client is not None else None
                actor = self._gate.check(request.headers, peer, time.monotonic())
            except Denied as error:
                headers = {401: {"www-authenticate": 'Bearer realm="pelton"'}, 429: {"retry-after": "60"}}
                return plain_failure(error.status, str(error), headers.get(error.status))
            if self._here >= RUNNING + WAITING:
                return plain_failure(429, "too many orders at the same time; try again", {"retry-after": "1"})
            order = await order_of(operation, request)
            self._here += 1
            try:
                async with self._slots:
                    result = await asyncio.to_thread(lambda: perform(self._site.control, order, actor))
            finally:
                self._here -= 1
            return answer(result, headers=_etag(result))

        return page


async def order_of(operation: Operation, request: Request) -> Order:
    """The order that a request is. Raises InvalidInput, naming the field."""
    fields = operation.order.__struct_fields__
    if operation.writes:
        if request.query_params:
            raise InvalidInput(f"{operation.verb} takes its fields as a JSON body, not in the address")
        _check_json(request)
        given = await parameters(request)
    else:
        given = dict(request.query_params)
    for key in given:
        if key in operation.in_path:
            raise InvalidInput(f"{key!r} stands in the path already")
        if key not in fields:
            free = [field for field in fields if field not in operation.in_path]
            near = difflib.get_close_matches(key, free, 1)
            known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(free) or 'none'}"
            raise InvalidInput(f"unknown field {key[:60]!r}; {known}")
    given.update(request.path_params)
    if "expect" in fields:
        _add_if_match(given, request.headers.get("if-match"))
    try:
        return msgspec.convert(given, operation.order, strict=operation.writes)
    except msgspec.ValidationError as error:
        raise InvalidInput(str(error)) from None


def _check_json(request: Request) -> None:
    """A form of a foreign page cannot send this content type without the browser asking first."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != JSON:
        raise InvalidInput(f"changes need the header `Content-Type: {JSON}`, also without a body")


def _add_if_match(given: dict[str, Any], header: str | None) -> None:
    """`If-Match: "7"` is the same as `expect` 7."""
    if header is None or header.strip() == "*":
        return
    digits = header.strip().removeprefix("W/").strip('"')
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise InvalidInput(f'If-Match takes a revision, such as "7", not {header[:60]!r}')
    if given.setdefault("expect", int(digits)) != int(digits):
        raise InvalidInput("If-Match and expect differ; send one of them")


def _etag(result: Any) -> dict[str, str]:
    revision = getattr(result, "revision", None)
    return {"etag": f'"{revision}"'} if isinstance(revision, int) else {}
