"""Numbered migrations, applied in one transaction under the writers' lock: all of them or none, by one process only."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from pelton.errors import PeltonError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from pelton.store.store import Store

# Files of the folder `migrations`, in the order of their numbers. One that was released is never changed.
NAMES: Final = ("0001_first",)


class Migration(msgspec.Struct, frozen=True):
    """One step of the schema. `apply` changes tables and rows inside the transaction that it is given."""

    number: int
    name: str
    apply: Callable[[Connection], None]


def known() -> list[Migration]:
    """All migrations of this version of Pelton."""
    return [
        Migration(int(name[:4]), name[5:], importlib.import_module(f"pelton.store.migrations.{name}").apply)
        for name in NAMES
    ]


def bring_up_to_date(store: Store, migrations: Sequence[Migration] | None = None) -> list[int]:
    """Applies what is missing and returns its numbers. Raises PeltonError for a database from a newer Pelton."""
    newest = int(NAMES[-1][:4]) if migrations is None else migrations[-1].number
    if _newest(store) == newest:  # nobody waits for a lock to learn that there is nothing to do
        return []
    with store.write() as connection:
        _check_order(applied := _applied(connection), newest, store.shown)
        missing = [one for one in migrations or known() if one.number not in applied]
        for one in missing:
            one.apply(connection)
            _note(connection, one)
    return [one.number for one in missing]


def _newest(store: Store) -> int:
    quick = store.newest_migration()
    if quick is not None:
        return quick
    with store.read() as connection:
        return max(_applied(connection), default=0)


def _applied(connection: Connection) -> list[int]:
    from sqlalchemy import inspect, select

    from pelton.store.tables import migrations

    if not inspect(connection).has_table(migrations.name):
        return []
    return list(connection.scalars(select(migrations.c.number).order_by(migrations.c.number)))


def _check_order(applied: list[int], newest: int, shown: str) -> None:
    if applied and applied[-1] > newest:
        raise PeltonError(
            f"{shown} was written by a newer Pelton (schema {applied[-1]}, this one knows {newest}): "
            "update Pelton here, or use a backup from before the update"
        )


def _note(connection: Connection, migration: Migration) -> None:
    from sqlalchemy import insert

    from pelton.store.tables import migrations

    connection.execute(insert(migrations).values(number=migration.number, name=migration.name, applied_at=time.time()))
