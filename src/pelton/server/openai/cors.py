"""Browsers: pages of other origins may call the OpenAI API where the setting `cors_origins` names them.

None may by default: requests that no key protects would else be open to every page that a person on this machine looks at.
"""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pelton.server.openai.strays import ROOT

METHODS: Final = "GET, POST, DELETE, OPTIONS"
SECONDS: Final = "600"  # that a browser may remember a preflight's answer


def origins_of(setting: str) -> frozenset[str]:
    """Origins with commas between them, or *."""
    return frozenset(part.strip().rstrip("/").lower() for part in setting.split(",") if part.strip())


class Cors:
    """Answers preflights, and lets pages of the allowed origins read the answers of `app`."""

    def __init__(self, app: ASGIApp, origins: frozenset[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(ROOT):
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        allowed = self._allowed(asked.get("origin"))
        if allowed is None:
            await self._app(scope, receive, send)
        elif scope["method"] == "OPTIONS" and "access-control-request-method" in asked:
            await _preflight(asked, allowed)(scope, receive, send)
        else:
            await self._app(scope, receive, _telling(allowed, send))

    def _allowed(self, origin: str | None) -> str | None:
        """What `access-control-allow-origin` says. None: nothing, and the browser keeps the answer from its page."""
        if origin is None:
            return None
        if "*" in self._origins:
            return "*"
        return origin if origin.lower() in self._origins else None


def _preflight(asked: Headers, allowed: str) -> Response:
    headers = {
        "access-control-allow-origin": allowed,
        "access-control-allow-methods": METHODS,
        "access-control-allow-headers": asked.get("access-control-request-headers", "authorization, content-type"),
        "access-control-max-age": SECONDS,
        "vary": "origin, access-control-request-headers",
    }
    if asked.get("access-control-request-private-network") == "true":  # a page of the internet, a server at home
        headers["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=headers)


def _telling(allowed: str, send: Send) -> Send:
    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["access-control-allow-origin"] = allowed
            headers["access-control-expose-headers"] = "*"
            headers.add_vary_header("origin")
        await send(message)

    return told
