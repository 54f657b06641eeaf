"""`pelton list`."""

from __future__ import annotations

import argparse
import time

import msgspec

from pelton.cli.models import open_registry
from pelton.registry import Entry


def run(arguments: argparse.Namespace) -> int:
    registry = open_registry(arguments.home)
    names = [arguments.name] if arguments.name else registry.models()
    entries = [entry for name in names for entry in registry.versions(name)[: None if arguments.name else 1]]
    if arguments.json:
        print(msgspec.json.encode(entries).decode())
        return 0
    if not entries:
        print("no models yet; add one: pelton add model.onnx")
        return 0
    for line in table(entries):
        print(line)
    return 0


def table(entries: list[Entry]) -> list[str]:
    """Name, version and time of each entry, aligned."""
    width = max(len(entry.name) for entry in entries)
    lines = [f"{'MODEL':{width}}  {'VERSION':12}  ADDED"]
    for entry in entries:
        added = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.added))
        lines.append(f"{entry.name:{width}}  {entry.version[:12]}  {added}")
    return lines
