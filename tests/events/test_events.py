"""The audit log and the leases of webhooks, on SQLite and on PostgreSQL."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pelton.errors import InvalidInput, NotFound
from pelton.events import (
    FIRST_PAUSE,
    LEASE_SECONDS,
    LONGEST_PAUSE,
    MASK,
    MOST_ATTEMPTS,
    MOST_WEBHOOKS,
    Events,
    append,
    pause_after,
)
from pelton.store import Store

URL = "https://hooks.example/fraud"
SECRET = "a secret without blanks".replace(" ", "-")
SOURCE = Path(__file__).parents[2] / "src" / "pelton"


# ---- the log


def test_an_event_belongs_to_the_transaction_of_its_change(store: Store, events: Events) -> None:
    class Undone(Exception):
        pass

    def undone() -> None:
        with store.write() as connection:
            append(connection, "deploy", "fraud", "ana", {})
            raise Undone

    with pytest.raises(Undone):
        undone()
    assert events.page() == []
    with store.write() as connection:
        key = append(connection, "deploy", "fraud", "ana", {"version": "v1 ← é", "weights": [0.5, 1]}, at=12.5)
    [event] = events.page()
    assert (event.id, event.at, event.action, event.name, event.actor) == (key, 12.5, "deploy", "fraud", "ana")
    assert event.details == {"version": "v1 ← é", "weights": [0.5, 1]}


def test_a_reader_never_sees_a_later_event_before_an_earlier_one(store: Store, events: Events) -> None:
    """A webhook's cursor would pass the earlier one by for ever."""
    began, second_done = threading.Event(), threading.Event()

    def second() -> None:
        began.set()
        with store.write(alone=False) as connection:
            append(connection, "deploy", "second", "ana")
        second_done.set()

    with ThreadPoolExecutor(1) as pool:
        with store.write(alone=False) as connection:
            append(connection, "deploy", "first", "ana")
            job = pool.submit(second)
            assert began.wait(20)
            assert not second_done.wait(0.3)
            assert events.page() == []
        job.result(20)
    assert [event.name for event in events.page()] == ["first", "second"]


def test_a_page_follows_and_filters(events: Events, tell: Callable[..., int]) -> None:
    ids = [tell(action, name) for action, name in [("deploy", "a"), ("alias", "a"), ("deploy", "b"), ("deploy", "a")]]
    assert [event.id for event in events.page(limit=2)] == ids[:2]
    assert [event.id for event in events.page(after=ids[1])] == ids[2:]
    assert [event.id for event in events.page(name="a", action="deploy")] == [ids[0], ids[3]]
    assert [event.id for event in events.latest(2)] == ids[2:]
    assert [event.id for event in events.latest(1, name="b")] == [ids[2]]
    assert events.page(after=ids[3]) == []


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_page_has_bounds(events: Events, limit: int) -> None:
    with pytest.raises(InvalidInput, match="limit must be from 1 to 1000"):
        events.page(limit=limit)


@pytest.mark.parametrize("action", ["", "Deploy", "roll back", "a\r\nx: y", "a" * 65])
def test_an_action_is_a_word_that_may_stand_in_a_header(store: Store, action: str) -> None:
    with store.write() as connection, pytest.raises(ValueError, match="is no action"):
        append(connection, action, "fraud", "ana")


def test_no_code_changes_or_deletes_events() -> None:
    forbidden = re.compile(r"\b(update|delete)\(\s*(tables\.)?events\b|UPDATE\s+events|DELETE\s+FROM\s+events", re.I)
    assert forbidden.search("connection.execute(delete(tables.events))")
    found = [path.name for path in SOURCE.rglob("*.py") if forbidden.search(path.read_text())]
    assert found == []


# ---- webhooks


def test_the_secret_is_shown_once_and_stands_in_no_event(events: Events) -> None:
    made = events.webhook_add(URL + "?token=abc", actor="ana")
    assert len(made.secret) >= 40
    [listed] = events.webhooks()
    assert listed.secret == MASK
    assert (listed.id, listed.url, listed.actions, listed.given_up) == (made.id, URL + "?token=abc", (), 0)
    events.webhook_remove(made.id, "ben")
    assert events.webhooks() == []
    told = events.page()
    assert [(event.action, event.actor) for event in told] == [("webhook_add", "ana"), ("webhook_remove", "ben")]
    assert told[0].details == {"webhook": made.id, "host": "https://hooks.example", "actions": []}
    assert made.secret not in str(told)
    assert "token" not in str(told)


def test_a_given_secret_is_taken(events: Events) -> None:
    assert events.webhook_add(URL, SECRET).secret == SECRET


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("hooks.example", "https://HOST/PATH"),
        ("ftp://hooks.example/", "https://HOST/PATH"),
        ("file:///etc/passwd", "https://HOST/PATH"),
        ("http://", "https://HOST/PATH"),
        ("http://host:99999/", "cannot be read"),
        ("http://host:0/", "https://HOST/PATH"),
        ("http://[::1/", "cannot be read"),
        ("http://user:sesame@host/", "no user and password"),
        ("http://host/a b", "percent-encoded"),
        ("http://host/\r\nx: y", "percent-encoded"),
        ("http://höst/", "percent-encoded"),
        ("http://host/#part", "'#'"),
        ("http://host/" + "a" * 2048, "characters"),
    ],
)
def test_an_address_that_cannot_be_posted_to_is_refused(events: Events, url: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        events.webhook_add(url)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("secret", ["", "short", "blanks are not taken", "x" * 257, "sixteen-lettérs-"])
def test_a_weak_secret_is_refused_without_being_repeated(events: Events, secret: str) -> None:
    with pytest.raises(InvalidInput, match="16 to 256") as caught:
        events.webhook_add(URL, secret)
    assert not secret or secret not in str(caught.value)


def test_actions_are_words(events: Events) -> None:
    with pytest.raises(InvalidInput, match="'roll back' is no action"):
        events.webhook_add(URL, actions=["deploy", "roll back"])
    assert events.webhook_add(URL, actions=["deploy", "deploy"]).actions == ("deploy",)


def test_the_number_of_webhooks_is_bounded(events: Events) -> None:
    for _ in range(MOST_WEBHOOKS):
        events.webhook_add(URL)
    with pytest.raises(InvalidInput, match="remove one first"):
        events.webhook_add(URL)


def test_removing_what_is_not_there_is_not_found(events: Events) -> None:
    with pytest.raises(NotFound, match="wh_1"):
        events.webhook_remove("wh_1")


# ---- claims


def test_a_webhook_is_told_what_comes_after_it_in_order(events: Events, tell: Callable[..., int]) -> None:
    tell()
    hook = events.webhook_add(URL, SECRET)
    assert events.claim("p", 100.0) is None
    ids = [tell() for _ in range(3)]
    assert events.webhooks()[0].waiting == 3
    for number in ids:
        claimed = events.claim("p", 100.0)
        assert claimed is not None
        assert (claimed.event.id, claimed.webhook, claimed.url, claimed.secret) == (number, hook.id, URL, SECRET)
        assert claimed.attempt == 1
        assert events.claim("q", 100.0) is None  # nobody gets the next one before this one has arrived
        assert events.delivered(claimed, 100.0)
    assert events.claim("p", 100.0) is None
    assert events.webhooks()[0].waiting == 0


def test_only_the_wanted_actions_are_told(events: Events, tell: Callable[..., int]) -> None:
    events.webhook_add(URL, actions=["rollback", "promote"])
    tell("deploy")
    assert events.webhooks()[0].waiting == 0
    assert events.claim("p", 1.0) is None
    wanted = [tell("rollback"), tell("deploy") and tell("promote")]
    for number in wanted:
        claimed = events.claim("p", 1.0)
        assert claimed is not None
        assert claimed.event.id == number
        events.delivered(claimed, 1.0)
    last = tell("deploy")
    assert events.claim("p", 1.0) is None
    assert events.webhooks()[0].cursor == last  # what nobody wants is not looked through again


def test_of_many_who_ask_at_once_exactly_one_gets_the_event(
    address: str, store: Store, tell: Callable[..., int]
) -> None:
    everybody = [Events(store), *(Events(Store.open(address)) for _ in range(3))]
    everybody[0].webhook_add(URL)
    tell()
    start = threading.Barrier(8)

    def ask(number: int) -> Any:
        start.wait(20)
        return everybody[number % 4].claim(f"process {number}", 50.0)

    with ThreadPoolExecutor(8) as pool:
        claimed = [one for one in pool.map(ask, range(8)) if one is not None]
    for one in everybody[1:]:
        one._store.close()
    assert len(claimed) == 1


def test_the_lease_of_a_dead_process_ends(events: Events, tell: Callable[..., int]) -> None:
    events.webhook_add(URL)
    first, second = tell(), tell()
    dead = events.claim("dead", 100.0)
    assert dead is not None
    assert events.claim("other", 100.0 + LEASE_SECONDS - 0.1) is None
    again = events.claim("other", 100.0 + LEASE_SECONDS)
    assert again is not None
    assert (again.event.id, again.attempt, again.id) == (first, 2, dead.id)
    assert not events.delivered(dead, 131.0)  # it lives after all, but is too late: nothing moves
    assert not events.failed(dead, "late", 131.0)
    assert events.webhooks()[0].cursor < first
    assert events.delivered(again, 131.0)
    following = events.claim("other", 132.0)
    assert following is not None
    assert (following.event.id, following.attempt) == (second, 1)


def test_the_same_process_does_not_end_the_lease_of_its_successor(events: Events, tell: Callable[..., int]) -> None:
    """Two threads of one process have two leases."""
    events.webhook_add(URL)
    tell()
    first = events.claim("p", 100.0)
    second = events.claim("p", 100.0 + LEASE_SECONDS)
    assert first is not None
    assert second is not None
    assert not events.delivered(first, 131.0)
    assert events.delivered(second, 131.0)


def test_what_fails_is_tried_again_after_a_growing_pause_and_then_given_up(
    events: Events, tell: Callable[..., int]
) -> None:
    events.webhook_add(URL)
    first, second = tell(), tell()
    now = 100.0
    for attempt in range(1, MOST_ATTEMPTS + 1):
        claimed = events.claim("p", now)
        assert claimed is not None
        assert (claimed.event.id, claimed.attempt) == (first, attempt)
        assert events.failed(claimed, f"it answered {500 + attempt}", now) is (attempt == MOST_ATTEMPTS)
        [hook] = events.webhooks()
        assert hook.last_error == f"it answered {500 + attempt}"
        if attempt < MOST_ATTEMPTS:
            assert hook.attempts == attempt
            pause = pause_after(attempt, 0.0)
            assert events.claim("p", now + pause - 0.01) is None
            now += pause
    [hook] = events.webhooks()
    assert (hook.given_up, hook.attempts, hook.cursor, hook.waiting) == (1, 0, first, 1)
    following = events.claim("p", now)
    assert following is not None
    assert (following.event.id, following.attempt) == (second, 1)
    assert events.delivered(following, now)
    [hook] = events.webhooks()
    assert (hook.given_up, hook.last_error) == (1, "")


def test_a_last_attempt_that_ends_after_its_lease_gives_nothing_up(events: Events, tell: Callable[..., int]) -> None:
    events.webhook_add(URL)
    tell()
    now, claimed = 100.0, None
    for _ in range(MOST_ATTEMPTS):  # as if every process died while it delivered
        claimed = events.claim("p", now)
        now += LEASE_SECONDS
    assert claimed is not None
    assert claimed.attempt == MOST_ATTEMPTS
    again = events.claim("q", now)
    assert again is not None
    assert not events.failed(claimed, "late", now)
    assert events.webhooks()[0].given_up == 0
    assert events.failed(again, "no", now)
    assert events.webhooks()[0].given_up == 1


def test_pauses_double_up_to_a_bound_and_chance_takes_up_to_half() -> None:
    assert [pause_after(attempt, 0.0) for attempt in (1, 2, 3)] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pause_after(11, 0.0) == pause_after(10_000, 0.0) == LONGEST_PAUSE
    assert pause_after(3, 1.0) == pause_after(3, 0.0) / 2
    assert 2000 < sum(pause_after(attempt, 0.0) for attempt in range(1, MOST_ATTEMPTS)) < 4000


def test_one_webhook_that_fails_does_not_hold_up_another(events: Events, tell: Callable[..., int]) -> None:
    hooks = {events.webhook_add(URL).id, events.webhook_add(URL).id}
    tell()
    first = events.claim("p", 1.0)
    second = events.claim("p", 1.0)
    assert first is not None
    assert second is not None
    assert {first.webhook, second.webhook} == hooks
    events.failed(first, "no", 1.0)
    events.delivered(second, 1.0)
    tell()
    following = events.claim("p", 1.0)
    assert following is not None
    assert following.webhook == second.webhook


def test_a_webhook_that_was_removed_while_it_was_told_is_no_error(events: Events, tell: Callable[..., int]) -> None:
    hook = events.webhook_add(URL)
    tell()
    claimed = events.claim("p", 1.0)
    assert claimed is not None
    events.webhook_remove(hook.id)
    assert not events.delivered(claimed, 2.0)
    assert not events.failed(claimed, "gone", 2.0)


def test_a_delivery_shows_no_secret(events: Events, tell: Callable[..., int]) -> None:
    events.webhook_add(URL + "/path-token", SECRET)
    tell()
    claimed = events.claim("p", 1.0)
    for text in (repr(claimed), str(claimed), f"{claimed}"):
        assert SECRET not in text
        assert "path-token" not in text


def test_an_error_of_the_store_shows_no_secret(store: Store, events: Events) -> None:
    with store.write() as connection:
        connection.exec_driver_sql("ALTER TABLE webhooks RENAME TO gone")
    with pytest.raises(Exception, match="webhooks") as caught:
        events.webhook_add(URL, SECRET)
    assert SECRET not in str(caught.value)


def test_a_store_without_webhooks_is_asked_without_the_database_library(tmp_path: Path) -> None:
    """The steward of every server asks once a second; the library is a quarter of a second of start."""
    address = f"sqlite:///{tmp_path / 'pelton.db'}"
    Store.open(address).close()
    code = (
        "import sys\n"
        "from pelton.events import Events\n"
        "from pelton.store import Store\n"
        f"assert Events(Store.open({address!r})).claim('p', 1.0) is None\n"
        "assert 'sqlalchemy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
