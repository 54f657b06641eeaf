"""Orders to a server, through its admin API."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from pelton.cli.control import actor
from pelton.cli.http_client import JSON, Client
from pelton.control.orders import OPERATION_OF, Order
from pelton.errors import PeltonError

PREFIX = "/admin/v1"


class Remote:
    """Orders to a server."""

    def __init__(self, url: str, token: str) -> None:
        self._client = Client(url)
        self._headers = {"pelton-actor": actor()}
        if token:
            self._headers["authorization"] = f"Bearer {token}"

    def ask(self, order: Order) -> Any:
        """Sends an order and decodes its answer. Raises PeltonError with the server's own words."""
        operation = OPERATION_OF[type(order)]
        fields = msgspec.to_builtins(order)
        path = PREFIX + operation.path
        for name in operation.in_path:
            path = path.replace(f"{{{name}}}", quote(str(fields.pop(name)), safe=":@"))
        if operation.writes:
            body: bytes | None = msgspec.json.encode(fields)
            headers = self._headers | JSON
        else:
            body, headers = None, self._headers
            path += f"?{urlencode(fields)}" if fields else ""
        data = self._client.ask(operation.verb, path, body, headers)
        try:
            return msgspec.json.decode(data, type=operation.answer_type())
        except msgspec.DecodeError as error:
            raise PeltonError(
                f"{self._client.url} gave an answer that this pelton does not understand ({error}); is it of another version?"
            ) from None
