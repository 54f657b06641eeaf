"""What the registry knows, as plain data: entries, aliases, lineage; and how they are made from rows and chosen. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from pelton.errors import Conflict, InvalidInput, NotFound
from pelton.types import ModelRef, check_name


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One version of a model. `added`: seconds since 1970, strictly rising within a model.

    `by`, `source`: who added it, from where. `parent`: the version that it derives from, by `derivation` ("int8");
    `accepted_on`: the hardware on which its quality was accepted. `size`: bytes of all files; -1: not known.
    """

    name: str
    version: str
    added: float
    by: str = ""
    source: str = ""
    size: int = -1
    parent: str = ""
    derivation: str = ""
    accepted_on: str = ""
    metrics: dict[str, float] = {}


class Alias(msgspec.Struct, frozen=True):
    """Where an alias points. `revision` counts its moves, its removal too."""

    name: str
    alias: str
    version: str
    revision: int


class AliasMove(msgspec.Struct, frozen=True):
    """One entry of an alias's history; an empty version is: nowhere."""

    name: str
    alias: str
    revision: int
    from_version: str
    to_version: str
    at: float
    by: str
    why: str
    evidence: dict[str, Any]


class Lineage(msgspec.Struct, frozen=True):
    """Where a version comes from, the nearest ancestor first, and what was made out of it."""

    entry: Entry
    ancestors: tuple[Entry, ...]
    children: tuple[Entry, ...]


class Collected(msgspec.Struct, frozen=True):
    """A version that garbage collection has removed, or would remove."""

    name: str
    version: str
    size: int
    added: float


def entry_of(row: Mapping[str, Any]) -> Entry:
    return Entry(
        name=row["name"],
        version=row["version"],
        added=row["added_at"],
        by=row["added_by"],
        source=row["source"],
        size=row["size"],
        parent=row["parent"],
        derivation=row["derivation"],
        accepted_on=row["accepted_on"],
        metrics=msgspec.json.decode(row["metrics"]),
    )


def alias_move_of(row: Mapping[str, Any]) -> AliasMove:
    return AliasMove(
        name=row["name"],
        alias=row["alias"],
        revision=row["revision"],
        from_version=row["from_version"],
        to_version=row["to_version"],
        at=row["at"],
        by=row["actor"],
        why=row["why"],
        evidence=msgspec.json.decode(row["evidence"]),
    )


def noted(
    name: str, version: str, known: list[dict[str, Any]], said: dict[str, Any], metrics: Mapping[str, float]
) -> dict[str, Any]:
    """What is noted of a version: what was said now over what was known."""
    empty = dict.fromkeys(("added_by", "source", "parent", "derivation", "accepted_on"), "")
    new: dict[str, Any] = {"name": name, "version": version, "added_at": 0.0, **empty, "metrics": "{}"}
    row: dict[str, Any] = next((row for row in known if row["version"] == version), new) | said
    if metrics:
        row["metrics"] = msgspec.json.encode(_checked_metrics(metrics)).decode()
    return row


def _checked_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    for name, value in metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidInput(f"the metric {name!r} must be a finite number, not {value!r}")
    return {name: float(value) for name, value in metrics.items()}


def newest_first(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.added, entry.version), reverse=True)


def one_of(ref: ModelRef, entries: list[Entry]) -> Entry:
    """The entry that `ref` means, of all of its model, the newest first. Raises NotFound, InvalidInput."""
    if not ref.version:
        return entries[0]
    found = [entry for entry in entries if entry.version.startswith(ref.version)]
    if not found:
        known = ", ".join(entry.version[:12] for entry in entries[:5])
        raise NotFound(f"the model {ref.name!r} has no version {ref.version!r}; the newest are {known}")
    if len(found) > 1:
        raise InvalidInput(
            f"{ref} may be any of {', '.join(entry.version[:12] for entry in found[:5])}; write more digits"
        )
    return found[0]


def check_unused(entry: Entry, deployed: bool, aliases: list[str]) -> None:
    what = f"{entry.name}:{entry.version[:12]}"
    if deployed:
        raise Conflict(
            f"{what} is deployed, a candidate, or what a rollback would go back to: nothing was removed; "
            f"`pelton undeploy {entry.name}` first, or force it"
        )
    if aliases:
        raise Conflict(f"{what} has the alias {', '.join(aliases)}: nothing was removed; move it first, or force it")


def check_alias(alias: str) -> None:
    try:
        check_name(alias)
    except InvalidInput as error:
        raise InvalidInput(str(error).replace("a model name", "an alias")) from None


def checked(name: str) -> str:
    """A name that cannot be one is a model that is not there."""
    try:
        return check_name(name)
    except InvalidInput as error:
        raise NotFound(str(error)) from None


def expected(expect: int | str | None) -> int | str:
    return "" if expect is None else expect
