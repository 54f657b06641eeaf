"""The plain way to write says and does the same on both engines."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from pelton.errors import Conflict
from pelton.store import Store


def hook(number: int) -> dict[str, object]:
    return {
        "id": f"wh_{number}", "url": "u", "secret": "s", "actions": "[]", "cursor": 0, "attempts": 0, "next_at": 0.0,
        "lease_by": "", "lease_until": 0.0, "last_error": "", "given_up": 0,
    }  # fmt: skip


def test_rows_are_added_changed_and_found(store: Store):
    with store.sheet() as sheet:
        sheet.insert("webhooks", **hook(1))
        sheet.insert("webhooks", **hook(2))
        assert sheet.update("webhooks", {"id": "wh_1", "url": "u"}, {"cursor": 7, "url": "v"}) == 1
        assert sheet.update("webhooks", {"id": "wh_3"}, {"cursor": 9}) == 0
        assert [row["id"] for row in sheet.rows("webhooks", url="v")] == ["wh_1"]
        assert len(sheet.rows("webhooks")) == 2
    assert {row["id"]: row["cursor"] for row in store.rows("webhooks")} == {"wh_1": 7, "wh_2": 0}


def test_rows_that_count_up_tell_their_number(store: Store):
    event = {"at": 1.0, "actor": "a", "action": "b", "name": "c", "details": "{}"}
    with store.sheet() as sheet:
        first, second = sheet.insert("events", **event), sheet.insert("events", **event)
    assert second == first + 1
    assert [row["id"] for row in store.rows("events")] == [first, second]


def test_what_is_raised_in_it_undoes_all_of_it(store: Store):
    def half() -> None:
        with store.sheet() as sheet:
            sheet.insert("webhooks", **hook(1))
            raise KeyError("stop")

    with pytest.raises(KeyError):
        half()
    assert store.rows("webhooks") == []


def test_a_row_that_is_there_already_is_a_conflict(store: Store):
    def add() -> None:
        with store.sheet() as sheet:
            sheet.insert("webhooks", **hook(1))

    add()
    with pytest.raises(Conflict, match="somebody else"):
        add()


def test_writers_take_turns_so_what_was_read_stays_true(store: Store):
    with store.sheet() as sheet:
        sheet.insert("webhooks", **hook(1))

    def count(_: int) -> None:
        for _ in range(10):
            with store.sheet() as sheet:
                [row] = sheet.rows("webhooks", id="wh_1")
                sheet.update("webhooks", {"id": "wh_1"}, {"cursor": row["cursor"] + 1})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    assert store.rows("webhooks")[0]["cursor"] == 40


def test_a_write_inside_a_write_is_a_mistake_that_is_told(store: Store):
    with store.sheet(), pytest.raises(RuntimeError, match="inside a write"), store.write():
        pass


def test_on_sqlite_a_rollback_needs_neither_sqlalchemy_nor_numpy(tmp_path):
    code = (
        "import sys\n"
        "from pelton.control import Control\n"
        "from pelton.deployments import Deployment, Deployments\n"
        "from pelton.store import Store\n"
        "store = Store.open(sys.argv[1])\n"
        "deployments = Deployments(store)\n"
        "for revision, digit in enumerate('ab'):\n"
        "    previous = 'a' * 64 if revision else ''\n"
        "    deployments.change(Deployment('fraud', version=digit * 64, previous=previous), revision, 'ann', 'deploy')\n"
        "done = Control(store, lambda: None).rollback('fraud')\n"
        "assert done.deployment.version == 'a' * 64\n"
        "print({'numpy', 'sqlalchemy', 'asyncio'} & set(sys.modules))\n"
    )
    address = f"sqlite:///{tmp_path / 'pelton.db'}"
    Store.open(address).close()  # migrations are made with SQLAlchemy, once
    done = subprocess.run(
        [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr
