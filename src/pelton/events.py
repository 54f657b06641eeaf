"""The audit log, and who is told of it. Events are appended in the transaction of the change that they tell of, and never
changed or deleted by this code."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, func, insert, select

from pelton.store import tables

# Readers remember the last id they saw, so ids must become visible in order. SQLite has one writer at a time; in
# PostgreSQL this lock, held to the end of the transaction, keeps a later event from being seen before an earlier one.
ORDER_LOCK: Final = 0x50454C54


def append(
    connection: Connection,
    action: str,
    name: str,
    actor: str,
    details: Mapping[str, Any] | None = None,
    at: float | None = None,
) -> int:
    """Adds one event to the transaction of `connection` and returns its id. Best called last in a transaction.

    `action` is a short fixed word ("deploy", "alias", ...), `name` the model or "", `details` whatever JSON can hold and
    everybody who reads the log may see: no secrets. `at` is in seconds since 1970, now by default.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(ORDER_LOCK)))
    done = connection.execute(
        insert(tables.events).values(
            at=time.time() if at is None else at,
            actor=actor,
            action=action,
            name=name,
            details=msgspec.json.encode(dict(details or {})).decode(),
        )
    )
    key = done.inserted_primary_key
    assert key is not None
    return int(key[0])
