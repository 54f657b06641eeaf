"""What holds for a store on either engine. Every test runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, insert, select, text, update

from pelton.errors import Conflict, NotFound, PeltonError, Refused, SettingInvalid
from pelton.store import Store
from pelton.store.tables import aliases, events, webhooks

Child = Callable[..., subprocess.Popen[str]]


def note(store: Store, actor: str) -> None:
    with store.write() as connection:
        connection.execute(insert(events).values(at=1.0, actor=actor, action="a", name="m", details="{}"))


def actors(store: Store) -> list[str]:
    with store.read() as connection:
        return list(connection.scalars(select(events.c.actor).order_by(events.c.id)))


def set_counter(store: Store) -> None:
    with store.write() as connection:
        connection.execute(insert(aliases).values(name="m", alias="counter", version="", revision=0))


def counter(store: Store) -> int:
    with store.read() as connection:
        return int(connection.execute(select(aliases.c.revision)).scalar_one())


def count_up(store: Store) -> None:
    """Reads, then writes what follows: right only while nobody writes between the two."""
    with store.write() as connection:
        value = connection.execute(select(aliases.c.revision)).scalar_one()
        connection.execute(update(aliases).values(revision=value + 1))


def test_what_was_written_is_there_after_opening_again(store: Store, store_url: str) -> None:
    note(store, "ana")
    other = Store.open(store_url)
    assert actors(other) == ["ana"]
    other.close()


def test_an_error_inside_a_write_takes_all_of_it_back(store: Store) -> None:
    def broken() -> None:
        with store.write() as connection:
            connection.execute(insert(events).values(at=1.0, actor="ana", action="a", name="m", details="{}"))
            raise NotFound("mine")

    with pytest.raises(NotFound, match="mine"):
        broken()
    assert actors(store) == []


def test_a_read_sees_one_state_while_others_write(store: Store) -> None:
    note(store, "before")
    with store.read() as connection:
        query = select(func.count()).select_from(events)
        first = connection.scalar(query)
        writer = threading.Thread(target=note, args=(store, "meanwhile"))
        writer.start()
        writer.join(30)  # it does not wait for the reader
        assert not writer.is_alive()
        assert connection.scalar(query) == first == 1
    assert actors(store) == ["before", "meanwhile"]


def test_threads_that_read_and_then_write_lose_no_update(store: Store) -> None:
    set_counter(store)
    threads = [threading.Thread(target=lambda: [count_up(store) for _ in range(10)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter(store) == 80


COUNT = """
import sys
from sqlalchemy import select, update
from pelton.store import Store
from pelton.store.tables import aliases
store = Store.open(sys.argv[1])
for _ in range(20):
    with store.write() as connection:
        value = connection.execute(select(aliases.c.revision)).scalar_one()
        connection.execute(update(aliases).values(revision=value + 1))
"""


def test_processes_that_read_and_then_write_lose_no_update(store: Store, store_url: str, child: Child) -> None:
    set_counter(store)
    assert [process.wait() for process in [child(COUNT, store_url) for _ in range(3)]] == [0, 0, 0]
    assert counter(store) == 60


HOLD = """
import sys, time
from sqlalchemy import insert
from pelton.store import Store
from pelton.store.tables import events
store = Store.open(sys.argv[1])
for actor in ("committed", "lost"):
    with store.write() as connection:
        connection.execute(insert(events).values(at=1.0, actor=actor, action="a", name="m", details="{}"))
        if actor == "lost":
            print("inside", flush=True)
            sys.stdin.read()
"""


def test_a_kill_in_the_middle_of_a_write_loses_nothing_committed_and_leaves_no_lock(
    store: Store, store_url: str, child: Child
) -> None:
    process = child(HOLD, store_url)
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert actors(store) == ["committed"]
    note(store, "next")
    assert actors(store) == ["committed", "next"]


def test_who_waits_too_long_for_another_writer_is_told(store: Store, store_url: str, child: Child) -> None:
    process = child(HOLD, store_url)
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    hurried = Store.open(store_url, timeout=0.2)
    with pytest.raises(Refused) as caught:
        note(hurried, "late")
    assert hurried.shown.removeprefix("sqlite:///") in str(caught.value)
    assert caught.value.reason == "store"
    assert actors(hurried) == ["committed"], "readers do not wait"
    process.communicate("")
    note(hurried, "later")
    assert actors(hurried) == ["committed", "lost", "later"]
    hurried.close()


def test_a_write_inside_a_write_is_a_mistake_and_not_a_deadlock(store: Store) -> None:
    with pytest.raises(RuntimeError, match="inside a write"), store.write():
        note(store, "inner")
    note(store, "after")
    assert actors(store) == ["after"]


def test_the_same_key_twice_is_a_conflict(store: Store) -> None:
    set_counter(store)
    with pytest.raises(Conflict, match="look, then try again"):
        set_counter(store)


def test_a_mistake_in_a_query_is_not_dressed_up_as_a_full_disk(store: Store) -> None:
    with pytest.raises(Exception, match="nowhere") as caught, store.read() as connection:
        connection.execute(text("SELECT * FROM nowhere"))
    assert not isinstance(caught.value, PeltonError)


def test_secrets_of_a_query_are_not_in_its_error(store: Store) -> None:
    row: dict[str, Any] = dict.fromkeys(webhooks.c.keys(), 0) | {"secret": "hunter2", "url": None}
    with pytest.raises(Exception, match="url") as caught, store.write() as connection:
        connection.execute(insert(webhooks).values(row))
    assert "hunter2" not in str(caught.value)


def test_rows_is_the_cheap_look_at_a_table(store: Store) -> None:
    note(store, "ana")
    note(store, "bob")
    note(store, "bob")
    assert [row["id"] for row in store.rows("events", actor="bob", name="m")] == [2, 3]
    assert store.rows("events", actor="eve") == []
    assert len(store.rows("events")) == 3
    assert store.rows("events", actor="ana") == [
        {"id": 1, "at": 1.0, "actor": "ana", "action": "a", "name": "m", "details": "{}"}
    ]
    assert store.values("events", "actor") == ["ana", "bob"]


def test_rows_sees_what_another_process_has_just_written(store: Store, store_url: str, child: Child) -> None:
    set_counter(store)
    assert store.rows("aliases")[0]["revision"] == 0
    assert child(COUNT, store_url).wait() == 0
    assert store.rows("aliases")[0]["revision"] == 20


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of pytest's own threads, from 3.12 on
def test_a_forked_child_uses_connections_of_its_own(store: Store) -> None:
    set_counter(store)
    assert store.rows("aliases")
    children = []
    for _ in range(3):
        if not (pid := os.fork()):
            try:
                for _ in range(5):
                    count_up(store)
                os._exit(0 if store.rows("aliases") else 2)
            finally:
                os._exit(1)
        children.append(pid)
    for _ in range(5):
        count_up(store)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert counter(store) == 20


def test_a_closed_store_opens_again_by_itself(store: Store) -> None:
    note(store, "ana")
    store.close()
    store.close()
    assert actors(store) == ["ana"]
    assert len(store.rows("events")) == 1


@pytest.mark.parametrize("url", ["mysql://host/db", "pelton.db", "", "sqlite+aiosqlite:///x"])
def test_other_addresses_are_refused_with_the_form_to_write(url: str) -> None:
    with pytest.raises(SettingInvalid, match="sqlite:///FILE"):
        Store.open(url)


def test_put_adds_a_row_or_replaces_it_and_remove_takes_it_away(store: Store) -> None:
    store.put("processes", {"id": "a"}, {"at": 1.0, "status": "{}"})
    store.put("processes", {"id": "b"}, {"at": 1.0, "status": "{}"})
    store.put("processes", {"id": "a"}, {"at": 2.0, "status": "[]"})
    assert store.rows("processes", id="a") == [{"id": "a", "at": 2.0, "status": "[]"}]
    store.remove("processes", id="a", at=1.0)
    assert store.values("processes", "id") == ["a", "b"], "all columns must be equal"
    store.remove("processes", id="a")
    assert store.values("processes", "id") == ["b"]


def test_sheets_and_writes_take_turns(store: Store) -> None:
    set_counter(store)

    def by_sheet() -> None:
        for _ in range(10):
            with store.sheet() as sheet:
                value = sheet.rows("aliases")[0]["revision"]
                sheet.update("aliases", {"alias": "counter"}, {"revision": value + 1})

    threads = [threading.Thread(target=by_sheet) for _ in range(3)]
    threads += [threading.Thread(target=lambda: [count_up(store) for _ in range(10)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter(store) == 60


def test_the_same_key_twice_in_a_sheet_is_a_conflict(store: Store) -> None:
    set_counter(store)
    with pytest.raises(Conflict, match="look, then try again"), store.sheet() as sheet:
        sheet.insert("aliases", name="m", alias="counter", version="", revision=0)
