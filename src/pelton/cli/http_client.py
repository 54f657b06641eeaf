"""A small client for the commands that talk to a running server."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from pelton.errors import InvalidInput, NotFound, NotReady, PeltonError

TIMEOUT = 60.0


class Client:
    """JSON over one kept connection. Raises PeltonError with the server's own words."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"{url!r} is not the address of a server: write http://HOST:PORT")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(self.host, self.port, timeout=TIMEOUT)

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any) -> Any:
        return self._ask("POST", path, json.dumps(body).encode())

    def _ask(self, method: str, path: str, body: bytes | None) -> Any:
        try:
            self._connection.request(method, path, body, {"content-type": "application/json"} if body else {})
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise NotReady(f"no answer from {self.url} ({error}); is `pelton serve` running there?") from None
        try:
            answer = json.loads(data) if data else None
        except ValueError:
            raise PeltonError(f"{self.url}{path} did not answer with JSON: is it a server of Pelton?") from None
        if response.status == 200:
            return answer
        message = answer.get("error", "") if isinstance(answer, dict) else ""
        kind = {400: InvalidInput, 413: InvalidInput, 404: NotFound, 503: NotReady}.get(response.status, PeltonError)
        raise kind(message or f"{self.url}{path} answered {response.status}")
