"""`pelton alias`."""

from __future__ import annotations

import argparse

from pelton.cli.control import Ask, open_control
from pelton.cli.output import print_json, short, table
from pelton.control.orders import ListAliases, RemoveAlias, SetAlias
from pelton.errors import InvalidInput


def run(arguments: argparse.Namespace) -> int:
    ask = open_control(arguments)
    return {"set": _set, "remove": _remove, "list": _list}[arguments.action](ask, arguments)


def _set(ask: Ask, arguments: argparse.Namespace) -> int:
    name, alias = _parts(arguments.alias)
    moved = ask(SetAlias(name, alias, arguments.to, arguments.why, arguments.expect))
    if arguments.json:
        print_json(moved)
    else:
        print(f"{name}@{alias} is {short(moved.version)}, revision {moved.revision}")
    return 0


def _remove(ask: Ask, arguments: argparse.Namespace) -> int:
    name, alias = _parts(arguments.alias)
    left = ask(RemoveAlias(name, alias, arguments.why, arguments.expect))
    if arguments.json:
        print_json(left)
    else:
        print(f"{name}@{alias} is gone")
    return 0


def _list(ask: Ask, arguments: argparse.Namespace) -> int:
    found = ask(ListAliases(arguments.name))
    if arguments.json:
        print_json(found)
        return 0
    rows = [(one.alias, short(one.version), str(one.revision)) for one in found.aliases]
    print("\n".join(table(("ALIAS", "VERSION", "REVISION"), rows)) or f"{arguments.name} has no alias")
    return 0


def _parts(text: str) -> tuple[str, str]:
    name, at, alias = text.partition("@")
    if not (name and at and alias):
        raise InvalidInput(f"{text!r} names no alias: write NAME@ALIAS, such as fraud@champion")
    return name, alias
