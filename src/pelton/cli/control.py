"""Where an order is carried out: here on the store, or by a server through its admin API. The answers are the same."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from pelton import settings as settings_module
from pelton.cli.http_client import JSON, Client
from pelton.control.orders import OPERATION_OF, Order, perform
from pelton.errors import PeltonError
from pelton.settings import Settings

Ask = Callable[[Order], Any]

PREFIX = "/admin/v1"


def open_control(arguments: argparse.Namespace) -> Ask:
    """What carries orders out, as `--url`, `--home` and the settings say."""
    settings = settings_module.load({"home": arguments.home, "admin_token": arguments.token})
    if arguments.url:
        return Remote(arguments.url, settings.admin_token).ask
    return local(settings)


def local(settings: Settings) -> Ask:
    """Orders on the store of this home."""
    from pelton.control import Control
    from pelton.store import Store

    store = Store.open(settings.store_url)

    def registry() -> Any:
        from pelton.registry import Registry

        return Registry(settings.home_path, store)

    control = Control(store, registry)
    who = actor()
    return lambda order: perform(control, order, who)


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


def actor() -> str:
    """Who gives orders here: user@host."""
    import getpass

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without names for its users
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}"
