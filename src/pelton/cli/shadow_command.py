"""`pelton shadow`."""

from __future__ import annotations

import argparse

from pelton.cli.control import open_control
from pelton.cli.output import print_json
from pelton.cli.waited import wait_for
from pelton.control.answers import Changed
from pelton.control.orders import SetShadow
from pelton.errors import InvalidInput


def run(arguments: argparse.Namespace) -> int:
    name, version = target(arguments.model)
    if bool(version) == arguments.off:
        raise InvalidInput("name the version that answers copies (NAME:VERSION or NAME@ALIAS), or NAME with --off")
    ask = open_control(arguments)
    done: Changed = ask(
        SetShadow(
            name, version, arguments.share, arguments.tolerance, arguments.segment, arguments.why, arguments.expect
        )
    )
    if arguments.json:
        print_json(done)
    else:
        print(done.message)
    return wait_for(ask, name, done.revision, arguments)


def target(text: str) -> tuple[str, str]:
    """`NAME:VERSION` or `NAME@ALIAS` as a name and `VERSION` or `@ALIAS`; `NAME` alone has an empty one."""
    name, colon, version = text.partition(":")
    if colon:
        return name, version
    name, at, alias = text.partition("@")
    return name, at + alias
