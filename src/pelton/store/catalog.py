"""Queries of the registry's versions, by name. All take the connection of the transaction that they are part of."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from pelton.store.tables import versions

Row = dict[str, Any]


def of_model(connection: Connection, name: str) -> list[Row]:
    """The versions of a model, the newest first."""
    query = select(versions).where(versions.c.name == name)
    query = query.order_by(versions.c.added_at.desc(), versions.c.version.desc())
    return [dict(row) for row in connection.execute(query).mappings()]


def everything(connection: Connection) -> list[Row]:
    """All versions, by model, the newest first."""
    query = select(versions).order_by(versions.c.name, versions.c.added_at.desc(), versions.c.version.desc())
    return [dict(row) for row in connection.execute(query).mappings()]


def by_digest(connection: Connection, version: str) -> Row | None:
    """A version of whatever model: its files name the model, so there is one at most."""
    row = connection.execute(select(versions).where(versions.c.version == version)).mappings().first()
    return None if row is None else dict(row)


def put(connection: Connection, row: Row) -> None:
    """Adds a version, or replaces what is noted of it."""
    same = (versions.c.name == row["name"], versions.c.version == row["version"])
    if not connection.execute(update(versions).where(*same).values(row)).rowcount:
        connection.execute(insert(versions).values(row))


def remove(connection: Connection, name: str, version: str) -> None:
    """Forgets a version."""
    connection.execute(delete(versions).where(versions.c.name == name, versions.c.version == version))
