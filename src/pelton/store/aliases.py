"""Queries of aliases, by name. An alias moves by compare-and-swap only, and every move leaves a row that stays."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from sqlalchemy import Connection, insert, select, update

from pelton.errors import Conflict
from pelton.store.tables import alias_history, aliases

Row = dict[str, Any]


class Move(msgspec.Struct, frozen=True):
    """Where an alias shall point ("" is nowhere), and from where: `expect` is a revision, or the version it points at."""

    name: str
    alias: str
    version: str
    expect: int | str
    at: float
    by: str = ""
    why: str = ""
    evidence: str = "{}"  # JSON


def get(connection: Connection, name: str, alias: str) -> Row | None:
    """The alias as it is; its version is "" after it was taken away. None: there never was one."""
    query = select(aliases).where(aliases.c.name == name, aliases.c.alias == alias)
    row = connection.execute(query).mappings().first()
    return None if row is None else dict(row)


def pointing_at(connection: Connection, name: str, version: str) -> list[Row]:
    """The aliases of a version."""
    query = select(aliases).where(aliases.c.name == name, aliases.c.version == version).order_by(aliases.c.alias)
    return [dict(row) for row in connection.execute(query).mappings()]


def move(connection: Connection, change: Move) -> tuple[str, int]:
    """Moves an alias and writes its history. Returns the version before and the revision after.

    Raises Conflict, which says where it points now, since when and by whom, and then nothing is changed."""
    now = get(connection, change.name, change.alias)
    before, revision = (now["version"], now["revision"]) if now else ("", 0)
    expected = revision if isinstance(change.expect, int) else before
    if change.expect != expected:
        raise _conflict(connection, change, before, revision)
    if now is None:
        row = {"name": change.name, "alias": change.alias, "version": change.version, "revision": 1}
        connection.execute(insert(aliases).values(row))
    else:
        same = (aliases.c.name == change.name, aliases.c.alias == change.alias, aliases.c.revision == revision)
        values = {"version": change.version, "revision": revision + 1}
        if not connection.execute(update(aliases).where(*same).values(values)).rowcount:
            raise _conflict(connection, change, before, revision)
    connection.execute(
        insert(alias_history).values(
            name=change.name,
            alias=change.alias,
            revision=revision + 1,
            from_version=before,
            to_version=change.version,
            at=change.at,
            actor=change.by,
            why=change.why,
            evidence=change.evidence,
        )
    )
    return before, revision + 1


def history(connection: Connection, name: str, alias: str | None = None) -> list[Row]:
    """All moves of a model's aliases, the newest first."""
    query = select(alias_history).where(alias_history.c.name == name).order_by(alias_history.c.id.desc())
    if alias is not None:
        query = query.where(alias_history.c.alias == alias)
    return [dict(row) for row in connection.execute(query).mappings()]


def _conflict(connection: Connection, change: Move, version: str, revision: int) -> Conflict:
    what = f"the alias {change.alias!r} of {change.name!r}"
    expected = (
        f"at revision {change.expect}"
        if isinstance(change.expect, int)
        else f"at {change.expect[:12]}"
        if change.expect
        else "unset"
    )
    moves = history(connection, change.name, change.alias)
    if not moves:
        return Conflict(f"{what} is not set, so it is not {expected}: look, then try again")
    last = moves[0]
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(last["at"]))
    where = f"points at {version[:12]}" if version else "was taken away"
    why = f" ({last['why']})" if last["why"] else ""
    return Conflict(
        f"{what} is not {expected} any more: it {where} (revision {revision}), "
        f"changed by {last['actor'] or 'somebody'} at {when}{why}: look, then try again"
    )
