"""Answers that wait for generations: whole ones, and streams of server-sent events. A client that leaves is noticed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pelton.errors import PeltonError
from pelton.server.openai import errors
from pelton.server.openai.run import Choice, Logged

log = logging.getLogger(__name__)

UNREAD_LIMIT: Final = 1024 * 1024  # bytes that may wait for a reader; one that is slower is cut off
HEAD: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-store",
    "x-accel-buffering": "no",  # proxies pass each event on at once
}
DONE: Final = b"data: [DONE]\n\n"
encode: Final = msgspec.json.Encoder().encode


Refusal = Callable[[Exception, dict[str, str]], Response]


def refused(error: Exception, headers: dict[str, str]) -> Response:
    """An error as a whole answer, with these headers."""
    return errors.of(error).response(headers)


class Work(Protocol):
    """What an answer waits for."""

    def start(self) -> None: ...

    def leave(self) -> None:
        """Nobody waits any more."""


class EventStream:
    """An answer in parts, as an ASGI application. `push` from the event loop; each push goes out at once.

    The head is sent with the first event: what fails before it is answered with its own status.
    """

    def __init__(self, headers: dict[str, str]) -> None:
        self.work: Work | None = None
        self.headers = headers
        self.begun = False
        self._parts: list[bytes] = []
        self._size = 0
        self._over = False
        self._cut = False
        self._refusal: Response | None = None
        self._wake: asyncio.Future[None] | None = None

    def push(self, data: bytes) -> None:
        """More of the answer."""
        if self._over:
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > UNREAD_LIMIT:
            self._cut = True
            self._end()
        self._rouse()

    def close(self) -> None:
        """The answer is whole."""
        self._over = True
        self._rouse()

    def fail(
        self, error: PeltonError, event: Callable[[errors.ApiError], bytes], refusal: Refusal | None = None
    ) -> None:
        """An answer with the error's own status; where the answer has begun, an event and the end of the stream."""
        if self.begun or self._parts:
            self.push(event(errors.of(error)))
        else:
            headers = {name: value for name, value in self.headers.items() if name not in HEAD}
            self._refusal = (refusal or refused)(error, headers)
        self.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.work is not None
        watcher = asyncio.get_running_loop().create_task(watch(receive, self._left))
        try:
            self.work.start()
            await self._send_all(scope, receive, send)
        finally:
            watcher.cancel()
            self.work.leave()

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            if not self._parts and not self._over:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
                self._wake = None
            if self._refusal is not None:
                await self._refusal(scope, receive, send)
                return
            if self._cut:
                log.warning("a reader of a stream took nothing for too long: it is cut off")
                return  # without its end: the connection is cut
            data = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
            if not self.begun:
                self.begun = True
                head = [(name.encode(), value.encode("latin-1", "replace")) for name, value in self.headers.items()]
                await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": data, "more_body": not self._over})
            if self._over and not self._parts:
                return

    def _left(self) -> None:
        self._cut = True
        self._end()
        self._rouse()

    def _end(self) -> None:
        self._over = True
        if self.work is not None:
            self.work.leave()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Whole:
    """An answer that is sent when all of it is there, as an ASGI application. `build` makes it."""

    def __init__(self, build: Callable[[], Response], headers: dict[str, str], refusal: Refusal = refused) -> None:
        self.work: Work | None = None
        self._refusal = refusal
        self.texts: dict[int, list[str]] = {}
        self.logged: dict[int, list[Logged]] = {}
        self._build = build
        self._headers = headers
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ---- as a listener

    def piece(self, choice: Choice, text: str, logged: Sequence[Logged]) -> None:
        self.texts.setdefault(choice.index, []).append(text)
        if logged:
            self.logged.setdefault(choice.index, []).extend(logged)

    def ended(self, choice: Choice) -> None:
        """Nothing to do before all have."""

    def complete(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def failed(self, error: PeltonError) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def text(self, choice: Choice) -> str:
        """All that a choice said."""
        return "".join(self.texts.get(choice.index, ()))

    # ---- as an application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.work is not None
        watcher = asyncio.get_running_loop().create_task(watch(receive, self._done.cancel))
        try:
            self.work.start()
            await asyncio.wait((self._done,))
            if self._done.cancelled():
                return
            error = self._done.exception()
            if error is not None:
                if not isinstance(error, PeltonError):
                    log.error("a generation failed", exc_info=error)
                response = errors.of(error if isinstance(error, Exception) else Exception(error)).response(
                    self._headers
                )
            else:
                response = self._build()
            await response(scope, receive, send)
        finally:
            watcher.cancel()
            self.work.leave()


async def watch(receive: Receive, left: Callable[[], Any]) -> None:
    """Calls `left` when the client is gone."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            left()
            return


Application = Callable[[Scope, Receive, Send], Awaitable[None]]
