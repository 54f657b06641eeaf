"""`pelton gc`."""

from __future__ import annotations

import argparse

from pelton.cli.control import open_control
from pelton.cli.output import print_json, short, size, table, when
from pelton.control.model_views import Collection
from pelton.control.orders import Gc


def run(arguments: argparse.Namespace) -> int:
    found: Collection = open_control(arguments)(Gc(arguments.older_than, arguments.dry_run))
    if arguments.json:
        print_json(found)
        return 0
    rows = [(one.name, short(one.version), when(one.added), size(one.size)) for one in found.collected]
    for line in table(("MODEL", "VERSION", "ADDED", "SIZE"), rows):
        print(line)
    verb = "removed" if found.done else "would be removed"
    versions = "1 version" if len(rows) == 1 else f"{len(rows)} versions"
    print(f"{versions} {verb}, {size(found.size)}")
    return 0
