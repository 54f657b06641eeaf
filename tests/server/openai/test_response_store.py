"""What is kept of responses: bounded in number, bytes and time."""

from __future__ import annotations

from pelton.server.openai import response_store
from pelton.server.openai.response_store import ResponseStore
from pelton.testing import ManualClock


def item(name: str) -> dict[str, str]:
    return {"id": name}


def test_the_oldest_gives_way_when_bytes_run_out():
    store = ResponseStore(ManualClock(0.0), most_bytes=100)
    for number in range(4):
        store.put(f"r{number}", "", b"body", (item(f"i{number}"),), 0, 40)
    assert store.size == 80
    assert [store.get(f"r{number}", "") is not None for number in range(4)] == [False, False, True, True]
    assert store.item("i1", "") is None
    assert store.item("i3", "") == item("i3")


def test_one_that_is_larger_than_all_room_is_not_kept():
    store = ResponseStore(ManualClock(0.0), most_bytes=100)
    store.put("small", "", b"", (), 0, 10)
    store.put("large", "", b"", (), 0, 101)
    assert store.get("large", "") is None
    assert store.get("small", "") is not None


def test_their_number_is_bounded(monkeypatch):
    monkeypatch.setattr(response_store, "MOST", 3)
    store = ResponseStore(ManualClock(0.0))
    for number in range(5):
        store.put(f"r{number}", "", b"", (), 0, 1)
    assert store.size == 3


def test_they_are_forgotten_after_a_while():
    clock = ManualClock(0.0)
    store = ResponseStore(clock, seconds=10.0)
    store.put("r", "", b"", (item("i"),), 0, 1)
    clock.advance(9.0)
    assert store.get("r", "") is not None
    clock.advance(2.0)
    assert store.get("r", "") is None
    assert store.item("i", "") is None
    assert store.size == 0


def test_an_item_lives_as_long_as_the_last_response_that_has_it():
    store = ResponseStore(ManualClock(0.0), most_bytes=100)
    store.put("r1", "", b"", (item("i"),), 0, 60)
    store.put("r2", "", b"", (item("i"),), 1, 60)
    assert store.get("r1", "") is None
    assert store.item("i", "") == item("i")


def test_tenants_do_not_see_each_other():
    store = ResponseStore(ManualClock(0.0))
    store.put("r", "a", b"", (item("i"),), 0, 1)
    assert store.get("r", "b") is None
    assert store.item("i", "b") is None
    assert not store.drop("r", "b")
    assert store.drop("r", "a")
    assert store.size == 0
