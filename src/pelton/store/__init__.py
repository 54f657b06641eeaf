"""The store: tables, numbered migrations, connections. SQLite by default, PostgreSQL by URL."""

from pelton.store.store import Store

__all__ = ["Store"]
