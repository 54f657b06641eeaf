"""Where an order is carried out: here on the store, or by a server through its admin API. The answers are the same."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable
from typing import Any

from pelton import settings as settings_module
from pelton.control.orders import Order, perform
from pelton.settings import Settings

Ask = Callable[[Order], Any]


def open_control(arguments: argparse.Namespace) -> Ask:
    """What carries orders out, as `--url`, `--home` and the settings say."""
    settings = settings_module.load({"home": arguments.home, "admin_token": arguments.token})
    if arguments.url:
        from pelton.cli.remote import Remote

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


def actor() -> str:
    """Who gives orders here: user@host."""
    import getpass

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without names for its users
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}"
