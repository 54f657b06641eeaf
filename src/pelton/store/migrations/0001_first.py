"""The first schema: registry, deployments, rollouts, evidence, events, webhooks. Kept as it was then."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Connection, Float, Index, Integer, MetaData, Table, Text

metadata: Final = MetaData()

Serial: Final = BigInteger().with_variant(Integer, "sqlite")

Table(
    "migrations",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("applied_at", Float, nullable=False),
)

Table(
    "versions",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("added_at", Float, nullable=False),
    Column("added_by", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("parent", Text, nullable=False),
    Column("derivation", Text, nullable=False),
    Column("accepted_on", Text, nullable=False),
    Column("metrics", Text, nullable=False),
)

Table(
    "aliases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("version", Text, nullable=False),
    Column("revision", Integer, nullable=False),
)

Table(
    "alias_history",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False),
    Column("alias", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("from_version", Text, nullable=False),
    Column("to_version", Text, nullable=False),
    Column("at", Float, nullable=False),
    Column("actor", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Index("alias_history_of", "name", "alias", "revision", unique=True),
)

Table(
    "deployments",
    metadata,
    Column("name", Text, primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("spec", Text, nullable=False),
)

Table(
    "deployment_history",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("spec", Text, nullable=False),
    Column("at", Float, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("why", Text, nullable=False),
    Index("deployment_history_of", "name", "revision", unique=True),
)

Table(
    "processes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at", Float, nullable=False),
    Column("status", Text, nullable=False),
)

Table(
    "rollouts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("open", Integer, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("spec", Text, nullable=False),
    Index("rollouts_of", "name", "started_at"),
)

Table(
    "evidence",
    metadata,
    Column("name", Text, primary_key=True),
    Column("route", Integer, primary_key=True),
    Column("process", Text, primary_key=True),
    Column("at", Float, nullable=False),
    Column("counts", Text, nullable=False),
)

Table(
    "events",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("details", Text, nullable=False),
)

Table(
    "webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("actions", Text, nullable=False),
    Column("cursor", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", Float, nullable=False),
    Column("lease_by", Text, nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("given_up", Integer, nullable=False),
)


def apply(connection: Connection) -> None:
    """Makes all tables."""
    metadata.create_all(connection, checkfirst=False)
