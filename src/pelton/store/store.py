"""One database, opened: transactions for reading and writing, the same on SQLite and PostgreSQL.

SQLAlchemy takes a quarter of a second of CPU to import, so nothing here imports it before a transaction needs it.
A process that only looks (`rows`) at a SQLite store of the present schema never does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from pelton.errors import SettingInvalid
from pelton.store import migrate
from pelton.store.postgresql import PostgreSQL
from pelton.store.sheet import CoreSheet, Sheet
from pelton.store.sqlite import SQLite

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

TIMEOUT: Final = 10.0


class Database(Protocol):
    """What differs between the engines. `shown` is the address without its password."""

    shown: str

    def engine(self) -> Engine:
        """A new engine with its pool."""

    def begin(self, connection: Connection, write: bool, alone: bool) -> None:
        """Runs as the first thing of a transaction."""

    def newest(self) -> int | None:
        """Number of the last migration, read in the cheapest way; None where only a transaction can tell."""

    def rows(self, table: str, equal: dict[str, Any]) -> list[dict[str, Any]] | None:
        """Rows of a table without SQLAlchemy, or None where there is no such way."""

    def values(self, table: str, column: str) -> list[Any] | None:
        """The different values of a column in the same way."""

    def put(self, table: str, key: dict[str, Any], values: dict[str, Any]) -> bool:
        """Replaces or adds one row without SQLAlchemy; False: there is no such way."""

    def remove(self, table: str, equal: dict[str, Any]) -> bool:
        """Deletes rows without SQLAlchemy; False: there is no such way."""

    def plain(self) -> AbstractContextManager[Sheet] | None:
        """A transaction that writes, without SQLAlchemy, or None where there is no such way."""

    def explain(self, error: Exception, committing: bool) -> Exception:
        """The error to raise instead: a PeltonError that names the database and the mend, or `error` itself."""

    def close(self) -> None:
        """Gives back what `rows` uses."""


class Store:
    """An open store. Safe for any number of threads and processes, a fork included.

    All methods raise PeltonError where the database is damaged, full or may not be written, and its subclass Refused
    where trying again later may help: it is locked, or cannot be reached.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._guard = threading.Lock()
        self._mine = threading.local()
        self._opened: Engine | None = None
        self._pid = os.getpid()

    @classmethod
    def open(cls, url: str, timeout: float = TIMEOUT) -> Store:
        """Opens `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/DATABASE` and brings its schema up to date.

        `timeout`: seconds to wait for other writers. Raises SettingInvalid for another kind of address, ExtraMissing,
        PeltonError (also: the database was made by a newer Pelton)."""
        store = cls(_database(url, timeout))
        try:
            migrate.bring_up_to_date(store)
        except BaseException:
            store.close()
            raise
        return store

    @property
    def shown(self) -> str:
        """The address for people: without a password."""
        return self._database.shown

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that sees a single state of the database and waits for nobody. Do not write in it."""
        with self._transaction(write=False, alone=False) as connection:
            yield connection

    @contextmanager
    def write(self, alone: bool = True) -> Iterator[Connection]:
        """One transaction: committed at the end, rolled back when anything is raised in it.

        `alone`: writers take turns, so what is read in it stays true until its end, on PostgreSQL as on SQLite. False
        is for rows that only this process writes; on PostgreSQL they wait for nobody. Keep it short: no network, no
        large files. Raises what the class says, and Conflict for a row that somebody else has just added."""
        with self._turn(), self._transaction(write=True, alone=alone) as connection:
            yield connection

    @contextmanager
    def sheet(self) -> Iterator[Sheet]:
        """`write` in plain words, for short commands: on SQLite without SQLAlchemy. Raises what `write` raises."""
        self._check_process()
        with self._turn():
            plain = self._database.plain()
            if plain is not None:
                with plain as sheet:
                    yield sheet
            else:
                with self._transaction(write=True, alone=True) as connection:
                    yield CoreSheet(connection)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if getattr(self._mine, "writing", False):
            raise RuntimeError("a write inside a write of the same thread would wait for itself")
        self._mine.writing = True
        try:
            yield
        finally:
            self._mine.writing = False

    def rows(self, table: str, **equal: Any) -> list[dict[str, Any]]:
        """Rows of one table where all `equal` columns have the given values: the cheap look, for polls and for start."""
        self._check_process()
        quick = self._database.rows(table, equal)
        if quick is not None:
            return quick
        from sqlalchemy import select

        from pelton.store.tables import metadata

        wanted = metadata.tables[table]
        query = select(wanted).where(*(wanted.c[column] == value for column, value in equal.items()))
        with self.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def values(self, table: str, column: str) -> list[Any]:
        """The different values of one column, sorted; as cheap as `rows`."""
        self._check_process()
        quick = self._database.values(table, column)
        if quick is None:
            from sqlalchemy import select

            from pelton.store.tables import metadata

            with self.read() as connection:
                quick = list(connection.scalars(select(metadata.tables[table].c[column]).distinct()))
        return sorted(quick)

    def put(self, table: str, key: dict[str, Any], values: dict[str, Any]) -> None:
        """Replaces or adds the row of that primary key: the cheap write of what belongs to this process alone."""
        self._check_process()
        if self._database.put(table, key, values):
            return
        from sqlalchemy import insert, update

        from pelton.store.tables import metadata

        into = metadata.tables[table]
        same = [into.c[column] == value for column, value in key.items()]
        with self.write(alone=False) as connection:
            if not connection.execute(update(into).where(*same).values(values)).rowcount:
                connection.execute(insert(into).values(**key, **values))

    def remove(self, table: str, **equal: Any) -> None:
        """Deletes the rows of one table where all `equal` columns have the given values; as cheap as `put`."""
        self._check_process()
        if self._database.remove(table, equal):
            return
        from sqlalchemy import delete

        from pelton.store.tables import metadata

        out_of = metadata.tables[table]
        same = [out_of.c[column] == value for column, value in equal.items()]
        with self.write(alone=False) as connection:
            connection.execute(delete(out_of).where(*same))

    def newest_migration(self) -> int | None:
        """For `migrate`: what `Database.newest` says."""
        return self._database.newest()

    def close(self) -> None:
        """Gives all connections back. The store may be used again: it connects anew."""
        with self._guard:
            if self._opened is not None:
                self._opened.dispose(close=self._pid == os.getpid())
                self._opened = None
            self._database.close()

    def __del__(self) -> None:
        with suppress(Exception):  # at the end of the interpreter anything may be gone
            self.close()

    @contextmanager
    def _transaction(self, write: bool, alone: bool) -> Iterator[Connection]:
        engine = self._engine()
        committing = False
        try:
            with engine.connect().execution_options(write=write) as connection, connection.begin():
                self._database.begin(connection, write, alone)
                yield connection
                committing = write
        except Exception as error:  # drivers raise their own and SQLAlchemy's; the rest passes unchanged
            told = self._database.explain(error, committing)
            if told is error:
                raise
            raise told from None

    def _engine(self) -> Engine:
        self._check_process()
        with self._guard:
            if self._opened is None:
                self._opened = self._database.engine()
            return self._opened

    def _check_process(self) -> None:
        """A forked child must not talk on its parent's connections."""
        if self._pid == os.getpid():
            return
        self._guard = threading.Lock()  # another thread of the parent may have held it
        self.close()
        self._pid = os.getpid()


def _database(url: str, timeout: float) -> Database:
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        return SQLite(url, timeout)
    if scheme in ("postgresql", "postgres", "postgresql+psycopg"):
        return PostgreSQL(url, timeout)
    raise SettingInvalid(
        f"the store's address starts with {scheme[:20]!r}: write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    )
