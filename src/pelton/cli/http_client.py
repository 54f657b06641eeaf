"""A small client for the commands that talk to a running server."""

from __future__ import annotations

import http.client
import json
import weakref
from typing import Any
from urllib.parse import urlsplit

from pelton.errors import Conflict, InvalidInput, NotFound, NotReady, PeltonError

TIMEOUT = 60.0
JSON = {"content-type": "application/json"}
KINDS: dict[int, type[PeltonError]] = {
    400: InvalidInput,
    413: InvalidInput,
    404: NotFound,
    409: Conflict,
    429: NotReady,
    503: NotReady,
}


class Client:
    """JSON over one kept connection. Raises PeltonError with the server's own words."""

    def __init__(self, url: str) -> None:
        problem = f"{url!r} is not the address of a server: write http://HOST:PORT"
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            raise InvalidInput(problem) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(problem)
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.host = parts.hostname
        self.secure = parts.scheme == "https"
        self.port = port or (443 if self.secure else 80)
        self._connection = self.connect(TIMEOUT)
        weakref.finalize(self, self._connection.close)

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        """A connection of its own; `timeout` is seconds without a byte."""
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=timeout)

    def get(self, path: str) -> Any:
        return self._json("GET", path, None)

    def post(self, path: str, body: Any) -> Any:
        return self._json("POST", path, json.dumps(body).encode())

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> bytes:
        """The body of an answer with status 200."""
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise NotReady(f"no answer from {self.url} ({error}); is `pelton serve` running there?") from None
        if response.status == 200:
            return data
        answer = self._decoded(path, data)
        message = answer.get("error", "") if isinstance(answer, dict) else ""
        raise KINDS.get(response.status, PeltonError)(message or f"{self.url}{path} answered {response.status}")

    def _json(self, method: str, path: str, body: bytes | None) -> Any:
        return self._decoded(path, self.ask(method, path, body, JSON if body else {}))

    def _decoded(self, path: str, data: bytes) -> Any:
        try:
            return json.loads(data) if data else None
        except (ValueError, RecursionError):
            raise PeltonError(f"{self.url}{path} did not answer with JSON: is it a server of Pelton?") from None
