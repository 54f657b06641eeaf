"""A transaction that writes, in plain words: rows by equal columns, insert, update.

On SQLite it needs no SQLAlchemy, whose import takes longer than all the rest of a command such as `pelton rollback`.
Table and column names come from the code, never from users.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sqlalchemy import Connection

Row = dict[str, Any]


class Sheet(Protocol):
    """What such a transaction can do."""

    def rows(self, table: str, **equal: Any) -> list[Row]:
        """Rows where all `equal` columns have the given values."""

    def insert(self, table: str, **values: Any) -> int:
        """Adds a row. Returns its number, where the table counts its rows."""

    def update(self, table: str, equal: Row, values: Row) -> int:
        """Changes the rows where all `equal` columns have the given values; returns how many."""


class PlainSheet:
    """On SQLite."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, table: str, **equal: Any) -> list[Row]:
        where = f" WHERE {_all(equal)}" if equal else ""
        cursor = self._connection.execute(f'SELECT * FROM "{table}"{where}', tuple(equal.values()))  # noqa: S608
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def insert(self, table: str, **values: Any) -> int:
        names, marks = ", ".join(f'"{name}"' for name in values), ", ".join("?" * len(values))
        query = f'INSERT INTO "{table}" ({names}) VALUES ({marks})'  # noqa: S608
        return self._connection.execute(query, tuple(values.values())).lastrowid or 0

    def update(self, table: str, equal: Row, values: Row) -> int:
        new = ", ".join(f'"{name}" = ?' for name in values)
        query = f'UPDATE "{table}" SET {new} WHERE {_all(equal)}'  # noqa: S608
        return self._connection.execute(query, (*values.values(), *equal.values())).rowcount


class CoreSheet:
    """On any other database, by SQLAlchemy."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def rows(self, table: str, **equal: Any) -> list[Row]:
        from sqlalchemy import select

        from pelton.store.tables import metadata

        wanted = metadata.tables[table]
        query = select(wanted).where(*(wanted.c[column] == value for column, value in equal.items()))
        return [dict(row) for row in self.connection.execute(query).mappings()]

    def insert(self, table: str, **values: Any) -> int:
        from sqlalchemy import insert

        from pelton.store.tables import metadata

        key = self.connection.execute(insert(metadata.tables[table]).values(values)).inserted_primary_key
        return int(key[0]) if key is not None and isinstance(key[0], int) else 0

    def update(self, table: str, equal: Row, values: Row) -> int:
        from sqlalchemy import update

        from pelton.store.tables import metadata

        into = metadata.tables[table]
        same = (into.c[column] == value for column, value in equal.items())
        return self.connection.execute(update(into).where(*same).values(values)).rowcount


def _all(equal: Row) -> str:
    return " AND ".join(f'"{column}" = ?' for column in equal)
