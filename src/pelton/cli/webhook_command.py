"""`pelton webhook`."""

from __future__ import annotations

import argparse

from pelton.cli.control import Ask, open_control
from pelton.cli.output import print_json, table
from pelton.control.audit import WebhookList
from pelton.control.orders import AddWebhook, ListWebhooks, RemoveWebhook
from pelton.events import Webhook


def run(arguments: argparse.Namespace) -> int:
    ask = open_control(arguments)
    return {"add": _add, "remove": _remove, "list": _list}[arguments.action](ask, arguments)


def _add(ask: Ask, arguments: argparse.Namespace) -> int:
    actions = tuple(part.strip() for part in arguments.actions.split(",") if part.strip())
    made: Webhook = ask(AddWebhook(arguments.address, actions))
    if arguments.json:
        print_json(made)
        return 0
    print(f"{made.id} is told of {', '.join(made.actions) or 'everything'}")
    print(f"its secret, shown this once: {made.secret}")
    return 0


def _remove(ask: Ask, arguments: argparse.Namespace) -> int:
    left: WebhookList = ask(RemoveWebhook(arguments.id))
    if arguments.json:
        print_json(left)
    else:
        print(f"{arguments.id} is gone")
    return 0


def _list(ask: Ask, arguments: argparse.Namespace) -> int:
    found: WebhookList = ask(ListWebhooks())
    if arguments.json:
        print_json(found)
        return 0
    rows = [
        (one.id, one.url, ", ".join(one.actions) or "all", str(one.waiting), str(one.given_up), one.last_error)
        for one in found.webhooks
    ]
    print("\n".join(table(("ID", "URL", "EVENTS", "WAITING", "GIVEN UP", "LAST ERROR"), rows)) or "no webhooks")
    return 0
