"""Every table of the store. Times are seconds since 1970; what only one room reads is kept as JSON text."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, Table, Text

metadata: Final = MetaData()

# SQLite counts up only INTEGER keys by itself; PostgreSQL's may outgrow 32 bits
Serial: Final = BigInteger().with_variant(Integer, "sqlite")

migrations: Final = Table(
    "migrations",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("applied_at", Float, nullable=False),
)

# ---- the registry

versions: Final = Table(
    "versions",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Text, primary_key=True),  # digest of the files, 64 hexadecimal digits
    Column("added_at", Float, nullable=False),  # strictly rising within a model
    Column("added_by", Text, nullable=False),
    Column("source", Text, nullable=False),  # where it came from, as the user wrote it
    Column("size", BigInteger, nullable=False),  # bytes of all files
    Column("parent", Text, nullable=False),  # the version that this one derives from, or ""
    Column("derivation", Text, nullable=False),  # by what: "int8", "q4_0", ...
    Column("accepted_on", Text, nullable=False),  # hardware on which its quality was accepted
    Column("metrics", Text, nullable=False),  # JSON object: name -> number
)

aliases: Final = Table(
    "aliases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("version", Text, nullable=False),  # "" after it was taken away: its revision goes on counting
    Column("revision", Integer, nullable=False),
)

alias_history: Final = Table(
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
    Column("evidence", Text, nullable=False),  # JSON
    Index("alias_history_of", "name", "alias", "revision", unique=True),
)

# ---- what should run, and who observes it

deployments: Final = Table(
    "deployments",
    metadata,
    Column("name", Text, primary_key=True),
    Column("revision", Integer, nullable=False),  # counts up with every change; compare-and-swap is on it
    Column("spec", Text, nullable=False),  # JSON of `pelton.deployments.Deployment`
)

deployment_history: Final = Table(
    "deployment_history",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("spec", Text, nullable=False),
    Column("at", Float, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),  # "deploy", "undeploy", "rollout", "advance", "promote", "rollback", ...
    Column("why", Text, nullable=False),
    Index("deployment_history_of", "name", "revision", unique=True),
)

processes: Final = Table(
    "processes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at", Float, nullable=False),  # last sign of life
    Column("status", Text, nullable=False),  # JSON of `pelton.deployments.ProcessStatus`
)

# ---- rollouts

rollouts: Final = Table(
    "rollouts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("open", Integer, nullable=False),  # 1 while it may still change
    Column("started_at", Float, nullable=False),
    Column("spec", Text, nullable=False),  # JSON of `pelton.rollout.Rollout`
    Index("rollouts_of", "name", "started_at"),
)

# One row a process and stretch, overwritten by that process alone: counts add up, nobody waits for a lock.
evidence: Final = Table(
    "evidence",
    metadata,
    Column("name", Text, primary_key=True),
    Column("route", Integer, primary_key=True),  # revision of the deployment that routed the calls
    Column("process", Text, primary_key=True),
    Column("at", Float, nullable=False),
    Column("counts", Text, nullable=False),  # JSON of `pelton.rollout.Stretch`
)

# ---- events and who is told

events: Final = Table(
    "events",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("name", Text, nullable=False),  # the model, or ""
    Column("details", Text, nullable=False),  # JSON
)

webhooks: Final = Table(
    "webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", Text, nullable=False),
    Column("actions", Text, nullable=False),  # JSON list; empty: all
    Column("cursor", BigInteger, nullable=False),  # the last event that was delivered or given up
    Column("attempts", Integer, nullable=False),  # of the next event
    Column("next_at", Float, nullable=False),
    Column("lease_by", Text, nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("given_up", Integer, nullable=False),  # events that no attempt could deliver
)
