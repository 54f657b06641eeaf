"""What can go wrong with a file."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text

from pelton.errors import PeltonError, Refused, SettingInvalid
from pelton.store import Store
from pelton.store.tables import events

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of pytest's own threads, from 3.12 on
NOBODY = 65534


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def note(store: Store, details: str = "{}") -> None:
    with store.write() as connection:
        connection.execute(insert(events).values(at=1.0, actor="ana", action="a", name="m", details=details))


def count(store: Store) -> int:
    with store.read() as connection:
        return len(connection.execute(select(events.c.id)).all())


def in_child(job: Callable[[], None]) -> str:
    """Runs a job in a forked process; returns the message of its PeltonError, "" for none."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            job()
        except PeltonError as error:
            os.write(writer, str(error).encode())
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(writer, f"not a PeltonError: {error!r}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        message = pipe.read()
    os.waitpid(pid, 0)
    return message


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_the_folder_is_made_and_the_file_is_shared_by_a_write_ahead_log(tmp_path: Path) -> None:
    store = Store.open(url(tmp_path / "a" / "b" / "pelton.db"))
    with store.write() as connection:
        pragmas = [
            connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert pragmas == ["wal", 2, 1]  # 2: FULL
    store.close()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["pelton.db"], "the log is written back"


@pytest.mark.parametrize("name", ["with space.db", "100%.db", "a?b#c.db", "ä.db"])
def test_names_of_files_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    store = Store.open(url(tmp_path / name))
    note(store)
    store.close()
    assert (tmp_path / name).is_file()


@pytest.mark.parametrize("wrong", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:pelton.db"])
def test_a_store_without_a_file_is_refused(wrong: str) -> None:
    with pytest.raises(SettingInvalid, match=r"sqlite:////var"):
        Store.open(wrong)


@pytest.mark.parametrize("content", [b"this is a text, not a database\n" * 200, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pelton.db"
    path.write_bytes(content)
    with pytest.raises(PeltonError, match=r"pelton\.db.*backup"):
        Store.open(url(path))
    assert path.read_bytes() == content


def test_damage_that_is_met_later_is_told(tmp_path: Path) -> None:
    path = tmp_path / "pelton.db"
    store = Store.open(url(path))
    for _ in range(50):
        note(store, "x" * 1000)
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[:20480] + b"\xab" * (len(content) - 20480))
    with pytest.raises(PeltonError, match=r"pelton\.db.*damaged"):
        store.rows("events")
    with pytest.raises(PeltonError, match=r"pelton\.db.*damaged"), store.read() as connection:
        connection.execute(select(events)).all()
    store.close()


def test_a_lock_that_is_held_is_told_with_the_file_and_goes_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "pelton.db"
    store = Store.open(url(path), timeout=0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Refused, match=r"pelton\.db was locked"):
        note(store)
    assert count(store) == 0
    other.close()
    note(store)
    assert count(store) == 1
    store.close()


def as_nobody(folder: Path, job: Callable[[], None]) -> str:
    """Runs a job in a process that may not write in `folder`; returns the message of its error."""

    def run() -> None:
        if os.getuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        job()

    folder.chmod(0o555)
    try:
        return in_child(run)
    finally:
        folder.chmod(0o755)


def test_what_may_not_be_written_can_be_read_and_tells_so(public: Path) -> None:
    path = public / "pelton.db"
    Store.open(url(path)).close()
    path.chmod(0o444)

    def look() -> None:
        store = Store.open(url(path))
        assert store.rows("events") == []
        assert count(store) == 0
        store.close()

    assert as_nobody(public, look) == ""
    message = as_nobody(public, lambda: note(Store.open(url(path))))
    assert str(path) in message
    assert f"the file and {public} must be writable" in message
    assert sorted(path.name for path in public.iterdir()) == ["pelton.db"]


def test_a_store_that_others_write_can_be_read_by_those_who_may_not(public: Path) -> None:
    path = public / "pelton.db"
    store = Store.open(url(path))
    note(store)

    def look() -> None:
        told = Store.open(url(path))
        assert len(told.rows("events")) == 1
        told.close()

    assert path.with_name("pelton.db-wal").exists()
    assert as_nobody(public, look) == ""
    store.close()


def test_a_folder_that_cannot_be_made_is_named(public: Path) -> None:
    message = as_nobody(public, lambda: note(Store.open(url(public / "new" / "pelton.db"))))
    assert str(public / "new") in message
    assert "cannot write under" in message


def test_a_full_disk_loses_nothing_and_the_store_works_again(tmp_path: Path) -> None:
    path = tmp_path / "pelton.db"
    store = Store.open(url(path))
    note(store)
    with store.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        with pytest.raises(Exception, match="full"):
            connection.execute(insert(events).values(at=1.0, actor="a", action="a", name="m", details="x" * 100_000))
        connection.exec_driver_sql("PRAGMA max_page_count=1073741823")
    assert count(store) == 1
    store.close()

    def on_a_small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, path.stat().st_size))
        note(store, "x" * 1_000_000)

    message = in_child(on_a_small_disk)
    assert str(path) in message
    assert "full" in message
    assert count(store) == 1
    note(store)
    assert count(store) == 2
    store.close()


def test_looking_at_a_store_imports_no_sqlalchemy(tmp_path: Path) -> None:
    Store.open(url(tmp_path / "pelton.db")).close()
    code = (
        "import sys\n"
        "from pelton.store import Store\n"
        "store = Store.open(sys.argv[1])\n"
        "store.rows('deployments'), store.values('versions', 'name')\n"
        "assert 'sqlalchemy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, url(tmp_path / "pelton.db")], check=True, timeout=60)
