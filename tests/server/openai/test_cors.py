"""What a browser is told about pages of other origins."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from pelton.server.openai.cors import Cors, origins_of

PAGE = "https://page.example"


def ask(origins: str, method: str = "POST", path: str = "/v1/chat/completions", **headers: str) -> dict[str, str]:
    """The head of the answer, with its status."""
    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    told: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        told.append(message)

    asyncio.run(Cors(PlainTextResponse("answer"), origins_of(origins))(scope, receive, send))
    head = {name.decode(): value.decode() for name, value in told[0]["headers"]}
    return {"status": str(told[0]["status"]), **head}


def preflight(origins: str, origin: str = PAGE, **more: str) -> dict[str, str]:
    return ask(origins, "OPTIONS", origin=origin, access_control_request_method="POST", **more)


@pytest.mark.parametrize(("origins", "allowed"), [("*", "*"), (f"http://other, {PAGE}/", PAGE)])
def test_a_preflight_allows_what_the_client_will_send(origins: str, allowed: str):
    told = preflight(origins, access_control_request_headers="authorization,x-stainless-lang")
    assert told["status"] == "204"
    assert told["access-control-allow-origin"] == allowed
    assert told["access-control-allow-headers"] == "authorization,x-stainless-lang"
    assert "POST" in told["access-control-allow-methods"]


def test_an_answer_may_be_read_with_all_its_headers():
    told = ask(PAGE, origin=PAGE)
    assert (told["status"], told["access-control-allow-origin"]) == ("200", PAGE)
    assert told["access-control-expose-headers"] == "*"
    assert told["vary"] == "origin"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://page.example.evil"])
def test_pages_of_other_origins_are_told_nothing(origin: str):
    assert "access-control-allow-origin" not in preflight(PAGE, origin)
    assert "access-control-allow-origin" not in ask(PAGE, origin=origin)


def test_other_protocols_are_not_opened():
    assert "access-control-allow-origin" not in ask("*", path="/admin/models", origin=PAGE)


def test_a_caller_that_is_no_browser_is_answered_as_ever():
    assert "access-control-allow-origin" not in ask("*")
