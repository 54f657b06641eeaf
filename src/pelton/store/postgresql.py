"""PostgreSQL, through psycopg 3. For servers on several machines, or a database that is backed up anyway.

Every transaction sets its own limits, and nothing is prepared on the server: a pooler between us and it (pgbouncer)
does no harm, and a schema that another process has just migrated does not meet old plans.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from pelton.errors import Conflict, ExtraMissing, PeltonError, Refused, SettingInvalid

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

# Writers take turns on this advisory lock, which is the database's own: "pelton" in ASCII
LOCK: Final = 0x70656C746F6E
STATEMENT_SECONDS: Final = 30
IDLE_SECONDS: Final = 60
CONNECT_SECONDS: Final = 5
_POOL: Final = 5
# of psycopg and the server: lost connections, a server that starts or stops, too many clients, lock waits, deadlocks
_LATER: Final = ("08", "57P", "53300", "55P03", "40", "57014", "25P03")
_FULL: Final = ("53100", "53200")
_FORBIDDEN: Final = ("42501", "25006")
# at connecting the driver gives the server's words without their code
_ADDRESS: Final = re.compile(r"authentication failed|does not exist|no pg_hba|no password supplied|could not translate")
_SECRET: Final = re.compile(r"(password|passwd|sslpassword|sslkey)=[^&\s]*", re.IGNORECASE)


class PostgreSQL:
    """A database of a server."""

    def __init__(self, url: str, timeout: float) -> None:
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            import psycopg  # noqa: F401 - tells early what SQLAlchemy would tell late
        except ImportError:
            raise ExtraMissing("a store in PostgreSQL", "postgres") from None
        try:
            self._url: URL = make_url(url).set(drivername="postgresql+psycopg")
        except (ArgumentError, ValueError):
            # the text is not repeated: its password may be in any part of it
            raise SettingInvalid(
                "the store's address cannot be read: write postgresql://USER:PASSWORD@HOST:5432/DATABASE; "
                "signs like '@', '/' or '%' in the password are written as %40, %2F, %25"
            ) from None
        if not self._url.database:
            raise SettingInvalid("the store's address names no database: postgresql://USER:PASSWORD@HOST/DATABASE")
        self.shown = _SECRET.sub(r"\1=***", self._url.set(drivername="postgresql").render_as_string())
        self._timeout = timeout

    def engine(self) -> Engine:
        from sqlalchemy import create_engine

        arguments: dict[str, Any] = {"prepare_threshold": None}
        for name, value in (("connect_timeout", CONNECT_SECONDS), ("application_name", "pelton")):
            if name not in self._url.query:
                arguments[name] = value
        return create_engine(
            self._url,
            connect_args=arguments,
            pool_size=_POOL,
            max_overflow=20,
            pool_pre_ping=True,  # after a restart of the server the dead connections are replaced
            pool_timeout=self._timeout,
            hide_parameters=True,
        )

    def begin(self, connection: Connection, write: bool, alone: bool) -> None:
        """All in one message: limits, what may be seen, and the turn among the writers."""
        said = [
            f"SET LOCAL statement_timeout = {STATEMENT_SECONDS * 1000}",
            f"SET LOCAL lock_timeout = {max(1, int(self._timeout * 1000))}",
            f"SET LOCAL idle_in_transaction_session_timeout = {IDLE_SECONDS * 1000}",
        ]
        if write:
            said.insert(0, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE")
            if alone:
                said.append(f"SELECT pg_advisory_xact_lock({LOCK})")
        else:
            said.insert(0, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # several statements in one message need the driver's own cursor, without parameters
        cursor = connection.connection.cursor()
        try:
            cursor.execute("; ".join(said))
        finally:
            cursor.close()

    def newest(self) -> int | None:
        return None

    def rows(self, table: str, equal: dict[str, Any]) -> list[dict[str, Any]] | None:
        return None

    def values(self, table: str, column: str) -> list[Any] | None:
        return None

    def put(self, table: str, key: dict[str, Any], values: dict[str, Any]) -> bool:
        return False

    def remove(self, table: str, equal: dict[str, Any]) -> bool:
        return False

    def plain(self) -> None:
        return None

    def explain(self, error: Exception, committing: bool) -> Exception:
        import psycopg
        from sqlalchemy.exc import TimeoutError as PoolTimeout

        if isinstance(error, PoolTimeout):
            return Refused(f"all connections to {self.shown} are in use: try again", reason="store")
        cause = getattr(error, "orig", None) or error
        if not isinstance(cause, psycopg.Error):
            return error
        state = cause.sqlstate or ""
        # the server's own line, without the rows that it repeats under it
        text = _SECRET.sub(r"\1=***", " ".join((cause.diag.message_primary or str(cause)).split()))
        if state == "23505":
            return Conflict(f"somebody else has just written the same to {self.shown}: look, then try again")
        if state.startswith("23"):
            return PeltonError(f"{self.shown}: {text}")
        if state.startswith(_FULL):
            return PeltonError(f"{self.shown}: {text}; the server has no room, nothing was changed")
        if state.startswith(_FORBIDDEN):
            return PeltonError(f"{self.shown}: {text}; its user needs the right to write and to create tables")
        if state.startswith(("28", "3D")) or (not state and _ADDRESS.search(text)):
            return PeltonError(f"{self.shown}: {text}; check user, password and database of the store's address")
        if state.startswith(_LATER) or (not state and isinstance(cause, psycopg.OperationalError)):
            doubt = "; whether the last change was made is not known: look before you repeat it" if committing else ""
            return Refused(f"the store {self.shown} cannot be used now: {text}{doubt}", reason="store")
        return error

    def close(self) -> None:
        """Nothing is held beside the engine."""
