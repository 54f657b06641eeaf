"""`pelton diff`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import msgspec

from pelton.cli.control import open_control
from pelton.cli.output import print_json, size
from pelton.control.orders import GetDiff
from pelton.packages.comparison import Diff, FileChange


def run(arguments: argparse.Namespace) -> int:
    found: Diff = open_control(arguments)(GetDiff(arguments.a, arguments.b))
    if arguments.json:
        print_json(found)
        return 0
    lines = list(_lines(found))
    print("\n".join(lines) or "no difference: they are the same version")
    return 0


def _lines(found: Diff) -> Iterator[str]:
    if found.same:
        return
    yield f"{_shown(found.a)} -> {_shown(found.b)}"
    for title, lines in (
        ("files", [_file(change) for change in found.files]),
        ("signature", [f"{one.path}: {_value(one.before)} -> {_value(one.after)}" for one in found.signature]),
        ("manifest", [f"{one.path}: {_value(one.before)} -> {_value(one.after)}" for one in found.manifest]),
        ("metrics", [_metric(name, *pair) for name, pair in found.metrics.items()]),
    ):
        if lines:
            yield f"{title}:"
            yield from (f"  {line}" for line in lines)


def _shown(ref: str) -> str:
    name, _, version = ref.partition(":")
    return f"{name}:{version[:12]}"


def _file(change: FileChange) -> str:
    if change.before is None:
        return f"+ {change.path} ({size(change.after.size)})" if change.after is not None else change.path
    if change.after is None:
        return f"- {change.path} ({size(change.before.size)})"
    return f"~ {change.path} ({size(change.before.size)} -> {size(change.after.size)})"


def _value(value: Any) -> str:
    return "none" if value is None else msgspec.json.encode(value).decode()


def _metric(name: str, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return f"{name}: {_number(before)} -> {_number(after)}"
    return f"{name}: {before:g} -> {after:g} ({after - before:+g})"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
