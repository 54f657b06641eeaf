"""`pelton models`: versions, aliases, and what is deployed."""

from __future__ import annotations

import argparse

from pelton.cli.control import open_control
from pelton.cli.output import print_json, short, size, table, when
from pelton.control.model_views import ModelList, ModelView
from pelton.control.orders import ListModels


def run(arguments: argparse.Namespace) -> int:
    found: ModelList = open_control(arguments)(ListModels(arguments.name or ""))
    if arguments.json:
        print_json(found)
        return 0
    if not found.models:
        print("no models yet; add one: pelton add model.onnx")
        return 0
    rows = [row for model in found.models for row in _rows(model, whole=bool(arguments.name))]
    print("\n".join(table(("MODEL", "VERSION", "ADDED", "SIZE", "ALIASES", "ROLE", "FROM"), rows)))
    return 0


def _rows(model: ModelView, whole: bool) -> list[tuple[str, ...]]:
    """Of a list, the versions that mean something: the newest, those with an alias or a role."""
    return [
        (
            model.name, short(one.entry.version), when(one.entry.added), size(one.entry.size), ", ".join(one.aliases),
            one.role, _origin(one.entry.parent, one.entry.derivation),
        )
        for number, one in enumerate(model.versions)
        if whole or not number or one.aliases or one.role
    ]  # fmt: skip


def _origin(parent: str, derivation: str) -> str:
    if not parent:
        return derivation
    return f"{short(parent)} by {derivation}" if derivation else short(parent)
