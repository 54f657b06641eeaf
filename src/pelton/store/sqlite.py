"""SQLite: one file, many processes and threads of one machine.

Write-ahead log: readers never wait for a writer. `synchronous=FULL`: what was answered as done is on the disk, a
rollback of the night the power failed included; the price is one fsync a change, and changes are rare. A write begins
with BEGIN IMMEDIATE, so it has the lock before it reads anything that it decides by.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from pelton.errors import Conflict, PeltonError, Refused, SettingInvalid
from pelton.store.sheet import PlainSheet

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

PREFIX: Final = "sqlite:///"
_POOL: Final = 16
_EXISTS: Final = ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_ROWID")


class SQLite:
    """A database file, made with its folder where it is not there."""

    def __init__(self, url: str, timeout: float) -> None:
        self.path = _path(url)
        self.shown = f"{PREFIX}{self.path}"
        self._timeout = timeout
        self._looking: sqlite3.Connection | None = None
        self._guard = threading.Lock()

    def engine(self) -> Engine:
        from sqlalchemy import URL, create_engine, event

        self._prepare()
        engine = create_engine(
            URL.create("sqlite", database=str(self.path)),
            creator=self._connect,
            pool_size=_POOL,
            max_overflow=-1,
            hide_parameters=True,
        )
        event.listen(engine, "begin", _begin)
        return engine

    def begin(self, connection: Connection, write: bool, alone: bool) -> None:
        """Nothing is left to do: `_begin` has the lock."""

    def newest(self) -> int | None:
        self._prepare()
        try:
            found = self._look("SELECT max(number) AS number FROM migrations", ())
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname == "SQLITE_ERROR":  # no such table
                return 0
            raise self.explain(error, committing=False) from None
        except sqlite3.Error as error:
            raise self.explain(error, committing=False) from None
        return int(found[0]["number"] or 0)

    def rows(self, table: str, equal: dict[str, Any]) -> list[dict[str, Any]] | None:
        where = " AND ".join(f'"{column}" = ?' for column in equal)
        query = f'SELECT * FROM "{table}"' + (f" WHERE {where}" if where else "")  # noqa: S608 - names from our code
        return self._asked(query, tuple(equal.values()))

    def values(self, table: str, column: str) -> list[Any] | None:
        found = self._asked(f'SELECT DISTINCT "{column}" AS one FROM "{table}"', ())  # noqa: S608 - as above
        return [row["one"] for row in found]

    def put(self, table: str, key: dict[str, Any], values: dict[str, Any]) -> bool:
        row = {**key, **values}
        names, marks = ", ".join(f'"{name}"' for name in row), ", ".join("?" * len(row))
        same, new = (
            ", ".join(f'"{name}"' for name in key),
            ", ".join(f'"{name}" = excluded."{name}"' for name in values),
        )
        query = f'INSERT INTO "{table}" ({names}) VALUES ({marks}) ON CONFLICT ({same}) DO UPDATE SET {new}'  # noqa: S608 - names from our code
        self._do(query, tuple(row.values()))
        return True

    def remove(self, table: str, equal: dict[str, Any]) -> bool:
        where = " AND ".join(f'"{column}" = ?' for column in equal)
        self._do(f'DELETE FROM "{table}" WHERE {where}', tuple(equal.values()))  # noqa: S608 - as above
        return True

    @contextmanager
    def plain(self) -> Iterator[PlainSheet]:
        committing = False
        try:
            connection = self._connect()
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield PlainSheet(connection)
                committing = True
                connection.execute("COMMIT")
            finally:
                connection.close()  # what is not committed is rolled back by it
        except sqlite3.Error as error:
            told = self.explain(error, committing)
            if told is error:
                raise
            raise told from None

    def explain(self, error: Exception, committing: bool) -> Exception:
        cause = getattr(error, "orig", None) or error
        if not isinstance(cause, sqlite3.Error):
            return error
        name = getattr(cause, "sqlite_errorname", "") or ""
        if name in _EXISTS:
            return Conflict(f"somebody else has just written the same to {self.path}: look, then try again ({cause})")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return Refused(
                f"{self.path} was locked by another process for {self._timeout:g} s: try again, or find out who holds it "
                "(a backup, a stopped process, an open database tool)",
                reason="store",
            )
        mend = self._mend(name)
        return PeltonError(f"{self.path}: {cause}; {mend}") if mend else error

    def close(self) -> None:
        with self._guard:
            if self._looking is not None:
                self._looking.close()
                self._looking = None

    def _mend(self, name: str) -> str:
        if name == "SQLITE_FULL":
            return "the disk is full, nothing was changed: make room and try again"
        if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
            return f"this user may not write it: nothing was changed; the file and {self.path.parent} must be writable"
        if name.startswith("SQLITE_CANTOPEN"):
            return f"it cannot be opened: does {self.path.parent} exist, and may this user write there?"
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return "it is damaged or no database: put a backup in its place, or move it away to start anew"
        if name.startswith(("SQLITE_IOERR", "SQLITE_PROTOCOL", "SQLITE_NOLFS")):
            return "the disk failed or is full; a store on a network drive must be PostgreSQL instead"
        return ""

    def _asked(self, query: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        try:
            return self._look(query, values)
        except sqlite3.Error as error:
            told = self.explain(error, committing=False)
            if told is error:
                raise
            raise told from None

    def _do(self, query: str, values: tuple[Any, ...]) -> None:
        """One statement that writes, on a connection of its own: looking does not wait for it."""
        try:
            connection = self._connect()
            try:
                connection.execute(query, values)
            finally:
                connection.close()
        except sqlite3.Error as error:
            told = self.explain(error, committing=True)
            if told is error:
                raise
            raise told from None

    def _look(self, query: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        with self._guard:
            if self._looking is None:
                self._looking = self._connect()
            cursor = self._looking.execute(query, values)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def _connect(self) -> sqlite3.Connection:
        # isolation_level None: the driver begins no transactions on its own
        connection = sqlite3.connect(
            self._address(), uri=True, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute(f"PRAGMA journal_size_limit={64 * 2**20}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _address(self) -> str:
        name = f"file:{quote(str(self.path))}"
        if not self._frozen():
            return name
        # Without a log beside it nobody writes, and the file alone is the whole database: `immutable` needs no more.
        logged = self.path.with_name(f"{self.path.name}-wal").exists()
        return f"{name}?mode=ro" if logged else f"{name}?mode=ro&immutable=1"

    def _frozen(self) -> bool:
        """Whether it lies where this process may not write, as in an image with its models in it: then it is read."""
        return self.path.exists() and not (os.access(self.path.parent, os.W_OK) and os.access(self.path, os.W_OK))

    def _prepare(self) -> None:
        """Makes the folder and turns the write-ahead log on; the file remembers it."""
        if self._frozen():
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PeltonError(f"cannot write under {self.path.parent}: {error.strerror}") from None
        try:
            connection = self._connect()
        except sqlite3.Error as error:
            raise self.explain(error, committing=False) from None
        try:
            mode = self._write_ahead(connection)
        except sqlite3.Error as error:
            raise self.explain(error, committing=False) from None
        finally:
            connection.close()
        if mode != "wal":
            raise PeltonError(
                f"{self.path}: its file system has no shared memory (a network drive?), so several processes cannot "
                "share it: put the store on a local disk, or use PostgreSQL"
            )

    def _write_ahead(self, connection: sqlite3.Connection) -> str:
        """The mode after the attempt. The switch does not wait for others by itself, as a write does."""
        end = time.monotonic() + self._timeout
        while True:
            try:
                mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
                if mode != "wal":
                    mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
                return str(mode)
            except sqlite3.OperationalError as error:
                if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > end:
                    raise
                time.sleep(0.01)


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _path(url: str) -> Path:
    name = url.removeprefix(PREFIX)
    if name == url or not name or name.startswith((":", "file:")):
        raise SettingInvalid(f"{url!r} names no file: write sqlite:////var/lib/pelton/pelton.db")
    return Path(os.path.abspath(Path(name).expanduser()))
