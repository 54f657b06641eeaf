"""The audit log, and who is told of it.

Events are appended in the transaction of the change that they tell of, and never changed or deleted by this code. A
webhook is told every event after its cursor, one after the other; the process that delivers the next one holds a lease
on the webhook. When that process dies, the lease ends and another delivers the same event again: at least once.

SQLAlchemy is slow to import, so nothing imports it before there is something to do.
"""

from __future__ import annotations

import random
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from pelton.errors import InvalidInput, NotFound
from pelton.store import Store
from pelton.store.sheet import CoreSheet, Sheet

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row, Select

# Readers remember the last id they saw, so ids must become visible in order. SQLite has one writer at a time; in
# PostgreSQL this lock, held to the end of the transaction, keeps a later event from being seen before an earlier one.
ORDER_LOCK: Final = 0x50454C54

LEASE_SECONDS: Final = 30.0  # much longer than a delivery may take: clocks of machines differ
MOST_ATTEMPTS: Final = 15  # with the pauses between them about an hour
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 600.0
MOST_WEBHOOKS: Final = 100
MOST_EVENTS: Final = 1000  # of one page
MOST_ACTIONS: Final = 50
LEAST_SECRET, LONGEST_SECRET, LONGEST_URL, LONGEST_ERROR = 16, 256, 2048, 300
MASK: Final = "***"
_ACTION: Final = re.compile(r"[a-z0-9_.-]{1,64}")


class Event(msgspec.Struct, frozen=True):
    """Something that somebody did. `at` is in seconds since 1970, `name` the model or ""."""

    id: int
    at: float
    action: str
    name: str
    actor: str
    details: dict[str, Any]


class Webhook(msgspec.Struct, frozen=True):
    """Who is told. `cursor`: the last event that was delivered or given up; `waiting`: events after it that are for this
    webhook. `actions`: which events; empty for all. The secret is shown once, when the webhook is added."""

    id: str
    url: str
    secret: str
    actions: tuple[str, ...]
    cursor: int
    waiting: int
    attempts: int
    next_at: float
    last_error: str
    given_up: int


class Delivery(msgspec.Struct, frozen=True):
    """One event for one webhook, leased to one process. `attempt` counts from 1."""

    webhook: str
    url: str
    secret: str
    event: Event
    attempt: int
    lease: str

    @property
    def id(self) -> str:
        """The same for all attempts: what a receiver tells repetitions by."""
        return f"{self.webhook}-{self.event.id}"

    def __repr__(self) -> str:
        return f"Delivery({self.id}, attempt {self.attempt})"  # a secret has no place in logs


def append(
    connection: Connection,
    action: str,
    name: str,
    actor: str,
    details: Mapping[str, Any] | None = None,
    at: float | None = None,
) -> int:
    """Adds one event to the transaction of `connection` and returns its id. Best called last in a transaction.

    `action` is a short fixed word ("deploy", "alias_moved", ...), `name` the model or "", `details` whatever JSON can
    hold and everybody who reads the log may see: no secrets. `at` is in seconds since 1970, now by default.
    """
    from sqlalchemy import func, insert, select

    from pelton.store import tables

    row = _row(action, name, actor, details, at)
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(ORDER_LOCK)))
    key = connection.execute(insert(tables.events).values(row)).inserted_primary_key
    assert key is not None
    return int(key[0])


def note(
    sheet: Sheet,
    action: str,
    name: str,
    actor: str,
    details: Mapping[str, Any] | None = None,
    at: float | None = None,
) -> int:
    """`append`, in a transaction of plain words."""
    if isinstance(sheet, CoreSheet):
        return append(sheet.connection, action, name, actor, details, at)
    return sheet.insert("events", **_row(action, name, actor, details, at))


def _row(action: str, name: str, actor: str, details: Mapping[str, Any] | None, at: float | None) -> dict[str, Any]:
    if not _ACTION.fullmatch(action):
        raise ValueError(f"{action!r} is no action: lower-case letters, digits and _.- only")
    return {
        "at": time.time() if at is None else at,
        "actor": actor,
        "action": action,
        "name": name,
        "details": msgspec.json.encode(dict(details or {})).decode(),
    }


def pause_after(attempt: int, chance: float) -> float:
    """Seconds between attempt number `attempt` (from 1) and the next: twice as long each time, up to a bound.

    `chance`, from 0 to 1, takes up to half of it away, so that receivers that failed together are not asked together.
    """
    longest = min(FIRST_PAUSE * 2.0 ** min(attempt - 1, 30), LONGEST_PAUSE)
    return longest * (1.0 - 0.5 * chance)


class Events:
    """The audit log of a store, and its webhooks. Safe between threads and processes."""

    def __init__(self, store: Store, chance: Callable[[], float] = random.random) -> None:
        self._store = store
        self._chance = chance

    # ---- the log

    def page(self, after: int = 0, limit: int = 100, name: str = "", action: str = "") -> list[Event]:
        """Up to `limit` events (at most 1000) with an id above `after`, oldest first. Empty `name` or `action`: all."""
        from pelton.store import tables

        query = _events(name, action).where(tables.events.c.id > after).order_by(tables.events.c.id)
        return self._events(query, limit)

    def latest(self, limit: int = 100, name: str = "", action: str = "") -> list[Event]:
        """The last `limit` events (at most 1000), oldest first."""
        from pelton.store import tables

        return self._events(_events(name, action).order_by(tables.events.c.id.desc()), limit)[::-1]

    def _events(self, query: Select[Any], limit: int) -> list[Event]:
        if not 1 <= limit <= MOST_EVENTS:
            raise InvalidInput(f"limit must be from 1 to {MOST_EVENTS}, not {limit}")
        with self._store.read() as connection:
            return [_event(row) for row in connection.execute(query.limit(limit))]

    # ---- webhooks

    def webhook_add(
        self,
        url: str,
        secret: str | None = None,
        actions: Sequence[str] = (),
        actor: str = "",
        now: float | None = None,
    ) -> Webhook:
        """Tells `url` of every event from here on, or of those with one of `actions`.

        The answer holds the secret, made here where none is given: nothing shows it again. Raises InvalidInput.
        """
        from sqlalchemy import func, insert, select

        from pelton.store import tables

        _check_url(url)
        wanted = _checked_actions(actions)
        key = _checked_secret(secret) if secret is not None else secrets.token_urlsafe(32)
        made = f"wh_{secrets.token_hex(6)}"
        with self._store.write() as connection:
            count = connection.execute(select(func.count()).select_from(tables.webhooks)).scalar_one()
            if count >= MOST_WEBHOOKS:
                raise InvalidInput(f"there are {count} webhooks already, the most there may be: remove one first")
            details = {"webhook": made, "host": host_of(url), "actions": list(wanted)}
            cursor = append(connection, "webhook_add", "", actor, details, now)
            row = {
                "id": made, "url": url, "secret": key, "actions": msgspec.json.encode(wanted).decode(), "cursor": cursor,
                "attempts": 0, "next_at": 0.0, "lease_by": "", "lease_until": 0.0, "last_error": "", "given_up": 0,
            }  # fmt: skip
            connection.execute(insert(tables.webhooks).values(row))
        return Webhook(made, url, key, wanted, cursor, 0, 0, 0.0, "", 0)

    def webhooks(self) -> list[Webhook]:
        """All of them, by id, without their secrets."""
        from sqlalchemy import func, select

        from pelton.store import tables

        with self._store.read() as connection:
            found = []
            for row in connection.execute(select(tables.webhooks).order_by(tables.webhooks.c.id)):
                after = _after(select(func.count()).select_from(tables.events), row)
                waiting = connection.execute(after).scalar_one()
                found.append(
                    Webhook(
                        row.id, row.url, MASK, _actions(row), row.cursor, waiting,
                        row.attempts, row.next_at, row.last_error, row.given_up,
                    )
                )  # fmt: skip
            return found

    def webhook_remove(self, key: str, actor: str = "", now: float | None = None) -> None:
        """Nobody is told there from here on. Raises NotFound."""
        from sqlalchemy import delete, select

        from pelton.store import tables

        with self._store.write() as connection:
            mine = tables.webhooks.c.id == key
            row = connection.execute(select(tables.webhooks.c.url).where(mine)).first()
            if row is None:
                raise NotFound(f"there is no webhook {key[:60]!r}: the list of webhooks shows their ids")
            connection.execute(delete(tables.webhooks).where(mine))
            append(connection, "webhook_remove", "", actor, {"webhook": key, "host": host_of(row.url)}, now)

    # ---- deliveries

    def claim(self, process: str, now: float) -> Delivery | None:
        """The next event of a webhook that is due, for this process alone until its lease ends; None: nothing is due.

        `now` is in seconds since 1970. The webhook that has waited longest comes first.
        """
        rows = self._store.rows("webhooks")  # the cheap look: most stores have none
        due = [row["cursor"] for row in rows if row["lease_until"] <= now and row["next_at"] <= now]
        return self._claim(process, now) if due and self._newest() > min(due) else None

    def _claim(self, process: str, now: float) -> Delivery | None:
        from sqlalchemy import select, update

        from pelton.store import tables

        hooks = tables.webhooks.c
        due = select(tables.webhooks).where(hooks.lease_until <= now, hooks.next_at <= now)
        with self._store.write() as connection:
            newest = _newest(connection)
            for row in connection.execute(due.order_by(hooks.next_at, hooks.id)).all():
                if row.cursor >= newest:
                    continue
                event = connection.execute(_after(select(tables.events), row).order_by(tables.events.c.id)).first()
                change = update(tables.webhooks).where(hooks.id == row.id, hooks.cursor == row.cursor)
                if event is None:
                    connection.execute(change.values(cursor=newest))  # none of them is for this one
                    continue
                lease = f"{process}/{secrets.token_hex(8)}"
                leased = {"lease_by": lease, "lease_until": now + LEASE_SECONDS, "attempts": row.attempts + 1}
                connection.execute(change.values(leased))
                return Delivery(row.id, row.url, row.secret, _event(event), row.attempts + 1, lease)
        return None

    def delivered(self, delivery: Delivery, now: float) -> bool:
        """The receiver has the event. False: the lease had ended, and another process may deliver it again."""
        return self._end(delivery, {"cursor": delivery.event.id, "attempts": 0, "next_at": now, "last_error": ""})

    def failed(self, delivery: Delivery, error: str, now: float) -> bool:
        """The receiver does not have it: tried again later, or given up after the last attempt, and the next event goes
        on. `error` is shown to people: no secrets. Returns whether it was given up."""
        from pelton.store import tables

        told = error[:LONGEST_ERROR]
        if delivery.attempt < MOST_ATTEMPTS:
            self._end(delivery, {"next_at": now + pause_after(delivery.attempt, self._chance()), "last_error": told})
            return False
        more = tables.webhooks.c.given_up + 1
        return self._end(
            delivery,
            {"cursor": delivery.event.id, "attempts": 0, "next_at": now, "last_error": told, "given_up": more},
        )

    def _end(self, delivery: Delivery, values: dict[str, Any]) -> bool:
        """Ends the lease, if it is still held."""
        from sqlalchemy import update

        from pelton.store import tables

        hooks = tables.webhooks.c
        mine = update(tables.webhooks).where(hooks.id == delivery.webhook, hooks.lease_by == delivery.lease)
        with self._store.write() as connection:
            return connection.execute(mine.values(lease_by="", lease_until=0.0, **values)).rowcount == 1

    def _newest(self) -> int:
        with self._store.read() as connection:
            return _newest(connection)


def host_of(url: str) -> str:
    """What of an address may stand in logs: paths and queries of webhooks are often secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _events(name: str, action: str) -> Select[Any]:
    from sqlalchemy import select

    from pelton.store import tables

    query = select(tables.events)
    if name:
        query = query.where(tables.events.c.name == name)
    return query.where(tables.events.c.action == action) if action else query


def _after(query: Select[Any], webhook: Row[Any]) -> Select[Any]:
    """The events that a webhook has not seen and wants."""
    from pelton.store import tables

    query = query.where(tables.events.c.id > webhook.cursor)
    actions = _actions(webhook)
    return query.where(tables.events.c.action.in_(actions)) if actions else query


def _newest(connection: Connection) -> int:
    """The id of the last event, 0 before the first."""
    from sqlalchemy import func, select

    from pelton.store import tables

    return connection.execute(select(func.max(tables.events.c.id))).scalar_one() or 0


def _event(row: Row[Any]) -> Event:
    return Event(row.id, row.at, row.action, row.name, row.actor, msgspec.json.decode(row.details))


def _actions(row: Row[Any]) -> tuple[str, ...]:
    return msgspec.json.decode(row.actions, type=tuple[str, ...])


# ---- what a person gives


def _check_url(url: str) -> None:
    """Raises InvalidInput. The address is not repeated in full: it may hold a secret."""
    if len(url) > LONGEST_URL:
        raise InvalidInput(f"the webhook's address has {len(url)} characters; {LONGEST_URL} are allowed")
    if not all("!" <= sign <= "~" for sign in url):
        raise InvalidInput("the webhook's address has spaces or other signs than ASCII: write them percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidInput(f"the webhook's address cannot be read: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise InvalidInput("a webhook's address is https://HOST/PATH or http://HOST/PATH")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("a webhook's address may hold no user and password: check its signature instead")
    if parts.fragment:
        raise InvalidInput("a webhook's address may have no part after '#': it would not be sent")


def _checked_secret(secret: str) -> str:
    if not LEAST_SECRET <= len(secret) <= LONGEST_SECRET or not all("!" <= sign <= "~" for sign in secret):
        raise InvalidInput(
            f"a webhook's secret has {LEAST_SECRET} to {LONGEST_SECRET} ASCII characters without spaces; "
            "leave it out to have one made"
        )
    return secret


def _checked_actions(actions: Sequence[str]) -> tuple[str, ...]:
    if len(actions) > MOST_ACTIONS:
        raise InvalidInput(f"{len(actions)} actions are given; at most {MOST_ACTIONS} are allowed, none means all")
    for action in actions:
        if not _ACTION.fullmatch(action):
            raise InvalidInput(f"{action[:80]!r} is no action: they are words such as deploy or rollback")
    return tuple(dict.fromkeys(actions))
