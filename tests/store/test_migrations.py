"""Numbered migrations, on both engines."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, insert, inspect, select, text

from pelton.errors import PeltonError
from pelton.registry import Registry
from pelton.store import Store, migrate
from pelton.store.migrate import Migration, bring_up_to_date
from pelton.store.tables import metadata, migrations

HERE = Path(__file__).parent
FOLDER = Path(migrate.__file__).parent / "migrations"


def engine_of(url: str) -> Any:
    return create_engine(url.replace("postgresql:", "postgresql+psycopg:"))


def schema(connection: Connection) -> dict[str, Any]:
    """All that the database itself says of its tables."""
    found = inspect(connection)
    return {
        name: {
            "columns": [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in found.get_columns(name)],
            "key": found.get_pk_constraint(name)["constrained_columns"],
            "indexes": sorted((i["name"], i["column_names"], bool(i["unique"])) for i in found.get_indexes(name)),
        }
        for name in sorted(found.get_table_names())
    }


def schema_of(store: Store) -> dict[str, Any]:
    with store.read() as connection:
        return schema(connection)


@pytest.fixture
def other_url(store_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A second empty database on the engine of `store_url`."""
    if store_url.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'other.db'}"
    return str(request.getfixturevalue("postgres")())


def test_all_migrations_make_the_schema_of_the_tables(store: Store, other_url: str) -> None:
    engine = engine_of(other_url)
    with engine.begin() as connection:
        metadata.create_all(connection)
        expected = schema(connection)
    engine.dispose()
    assert schema_of(store) == expected
    assert set(expected) == set(metadata.tables)


def test_every_file_of_the_folder_is_known_and_numbers_have_no_gaps() -> None:
    files = sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))
    assert files == list(migrate.NAMES)
    assert [one.number for one in migrate.known()] == list(range(1, len(files) + 1))


def test_what_was_applied_is_noted_and_not_applied_again(store: Store) -> None:
    rows = store.rows("migrations")
    assert [row["number"] for row in rows] == [one.number for one in migrate.known()]
    assert bring_up_to_date(store) == []
    assert store.rows("migrations") == rows


# ---- an old database

DIGESTS = [digit * 64 for digit in "123"]


def load_old(url: str) -> None:
    """Fills a database with what a store of schema 1 held, and closes it."""
    engine = engine_of(url)
    kind = engine.dialect.name
    statements = [
        *(HERE / f"schema-1-{kind}.sql").read_text().split(";\n"),
        *(HERE / "rows-1.sql").read_text().split(";\n"),
    ]
    with engine.begin() as connection:
        for statement in statements:
            if statement.strip():
                connection.exec_driver_sql(statement)
    engine.dispose()


@pytest.fixture
def old_url(other_url: str) -> str:
    load_old(other_url)
    return other_url


def test_the_stored_old_database_is_one_of_schema_1(old_url: str, store_url: str) -> None:
    engine = engine_of(store_url)
    if store_url.startswith("sqlite"):
        Path(store_url.removeprefix("sqlite:///")).parent.mkdir(parents=True)
    with engine.begin() as connection:
        migrate.known()[0].apply(connection)
        expected = schema(connection)
    engine.dispose()
    engine = engine_of(old_url)
    with engine.begin() as connection:
        assert schema(connection) == expected
    engine.dispose()


def test_an_old_database_is_upgraded_in_place_and_keeps_its_rows(old_url: str, tmp_path: Path) -> None:
    store = Store.open(old_url)
    registry = Registry(tmp_path / "home", store)
    assert [entry.version for entry in registry.versions("fraud")] == [DIGESTS[1], DIGESTS[0]]
    assert registry.versions("fraud")[0].metrics == {"auc": 0.93}
    assert registry.alias("fraud", "champion").version == DIGESTS[1]
    assert [move.why for move in registry.alias_history("fraud")] == ["better", "first"]
    assert store.rows("deployments", name="fraud")[0]["revision"] == 2
    assert [row["number"] for row in store.rows("migrations")] == [one.number for one in migrate.known()]
    with store.write() as connection:  # the counters go on where they were
        key = connection.execute(
            insert(metadata.tables["events"]).values(at=3.0, actor="ana", action="a", name="fraud", details="{}")
        ).inserted_primary_key
    assert key is not None
    assert key[0] > 2
    store.close()


def add_owner(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE versions ADD COLUMN owner TEXT NOT NULL DEFAULT ''"))
    connection.execute(text("UPDATE versions SET owner = added_by"))


def fail(connection: Connection) -> None:
    connection.execute(text("DROP TABLE webhooks"))
    raise ZeroDivisionError("a mistake in a migration")


NEXT = len(migrate.NAMES) + 1


def later() -> list[Migration]:
    return [*migrate.known(), Migration(NEXT, "owner", add_owner)]


def test_a_later_migration_changes_tables_and_rows_of_an_old_database(old_url: str) -> None:
    store = Store.open(old_url)
    assert bring_up_to_date(store, later()) == [NEXT]
    with store.read() as connection:
        owners = connection.execute(text("SELECT owner FROM versions ORDER BY version")).scalars().all()
    assert owners == ["ana", "bob", "ana"]
    assert bring_up_to_date(store, later()) == []
    store.close()


def test_a_migration_that_fails_leaves_the_database_as_it_was(store: Store) -> None:
    before = schema_of(store)
    with pytest.raises(ZeroDivisionError):
        bring_up_to_date(store, [*later(), Migration(NEXT + 1, "mistake", fail)])
    assert schema_of(store) == before, "the one before it is taken back, too"
    assert bring_up_to_date(store, later()) == [NEXT]


def test_a_database_from_a_newer_pelton_is_refused(store: Store, store_url: str) -> None:
    bring_up_to_date(store, later())
    before = schema_of(store)
    with pytest.raises(PeltonError, match=r"newer Pelton.*update Pelton"):
        Store.open(store_url)
    assert schema_of(store) == before


OPEN = """
import sys
sys.stdin.readline()
from pelton.store import Store
from pelton.store.tables import migrations
store = Store.open(sys.argv[1])
print([row["applied_at"] for row in store.rows("migrations")])
"""


def test_processes_that_open_a_new_database_at_once_migrate_it_once(
    store_url: str, child: Callable[..., subprocess.Popen[str]]
) -> None:
    processes = [child(OPEN, store_url) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert len(set(answers)) == 1
    store = Store.open(store_url)
    with store.read() as connection:
        assert list(connection.scalars(select(migrations.c.number))) == [one.number for one in migrate.known()]
    store.close()
