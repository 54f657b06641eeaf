"""The store: tables, numbered migrations, connections. SQLite by default, PostgreSQL by URL."""
