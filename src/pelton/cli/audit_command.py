"""`pelton audit`."""

from __future__ import annotations

import argparse
from typing import Any

from pelton.cli.control import open_control
from pelton.cli.output import print_json, table, when
from pelton.control.audit import EventPage
from pelton.control.orders import ReadAudit

SHOWN = 12  # characters of a digest


def run(arguments: argparse.Namespace) -> int:
    found: EventPage = open_control(arguments)(
        ReadAudit(arguments.name or "", arguments.action or "", arguments.after, arguments.limit)
    )
    if arguments.json:
        print_json(found)
        return 0
    rows = [
        (str(event.id), when(event.at), event.action, event.name or "-", event.actor or "-", _told(event.details))
        for event in found.events
    ]
    print("\n".join(table(("ID", "WHEN", "WHAT", "MODEL", "WHO", "DETAILS"), rows)) or "nothing has happened yet")
    return 0


def _told(details: dict[str, Any]) -> str:
    """The plain ones of the details; all of them stand in `--json`."""
    return " ".join(
        f"{key}={_short(value)}"
        for key, value in details.items()
        if isinstance(value, str | int | float) and value != ""
    )


def _short(value: str | float) -> str:
    if isinstance(value, str) and len(value) == 64 and all(digit in "0123456789abcdef" for digit in value):
        return value[:SHOWN]
    return f"{value:g}" if isinstance(value, float) else str(value) if " " not in str(value) else repr(value)
