"""Desired state: which version of each model should answer, with which candidate, weight and shadow; and who runs what.

Changes are compare-and-swap on a revision, kept in an append-only history with who and why. Server processes watch the
revisions and converge (`pelton.server.control`); they report here what they run, and the evidence that they saw.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from sqlalchemy import Connection, Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from pelton import events
from pelton.errors import Conflict, PeltonError
from pelton.rollout.state import OPEN, Rollout, Stretch
from pelton.store import tables

if TYPE_CHECKING:
    from pelton.store import Store

LIVE_SECONDS: Final = 15.0  # a process that has been silent for longer is taken for dead
KEPT_SECONDS: Final = 3600.0  # reports of the dead are cleared after this


class Shadow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Copies of live calls go to `version`, and the answers are compared pairwise."""

    version: str
    share: float = 0.1  # of the calls that the deployed version answers, above 0 and at most 1
    tolerance: float = 0.01  # numbers that differ by less, relative to the larger, agree
    segment: str = ""  # an input field; disagreements are also counted by its value


class Deployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What should answer for one model. Versions are full digests; "" is none.

    `revision` also names the stretch of calls that were routed in this way: records carry it as `route`.
    """

    name: str
    revision: int = 0
    version: str = ""  # "": the model is not served
    previous: str = ""  # served before; kept warm, so that `rollback` is one write
    candidate: str = ""
    weight: float = 0.0  # share of calls that go to the candidate, 0 to 1
    shadow: Shadow | None = None
    rollout: str = ""  # id of the rollout that moves the weight
    slow_ms: float = 0.0  # a call that takes longer counts as slow; 0: the model's own target

    def versions(self) -> set[str]:
        """Every version that this needs: to answer, to compare, or to go back to."""
        shadow = self.shadow.version if self.shadow is not None else ""
        return {self.version, self.previous, self.candidate, shadow} - {""}


class ModelStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one process does for one model. `versions`: full digest -> "serves", "candidate", "shadow", "warm",
    "loading", or why it cannot be served. `converged`: the revision that it has reached, 0 for none."""

    versions: dict[str, str] = {}
    converged: int = 0
    calls_per_second: float = 0.0  # over the last full minute
    errors_share: float = 0.0
    slow_share: float = 0.0


class ProcessStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """The report of a process that serves."""

    host: str
    pid: int
    port: int
    worker: int
    started_at: float
    models: dict[str, ModelStatus] = {}


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of a deployment's history: what it became at `revision`, when, by whom, by which action, and why."""

    name: str
    revision: int
    at: float
    actor: str
    action: str
    deployment: Deployment
    why: str = ""


class Deployments:
    """Deployments, their history, rollouts, evidence and reports of processes in a store. Safe between threads and
    processes. `clock` gives seconds since 1970."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    # ---- deployments

    def get(self, name: str) -> Deployment | None:
        """What should answer for a model; None: it was never deployed. An undeployed one has the version ""."""
        with self._store.read() as connection:
            return _deployment(connection, name)

    def all(self) -> dict[str, Deployment]:
        """Every model that was ever deployed."""
        with self._store.read() as connection:
            rows = connection.execute(select(tables.deployments.c.spec))
            found = [_read(row.spec, Deployment) for row in rows]
        return {deployment.name: deployment for deployment in found}

    def revisions(self) -> dict[str, int]:
        """The revision of every deployment: the cheap question whether anything has changed."""
        table = tables.deployments
        with self._store.read() as connection:
            return {row.name: row.revision for row in connection.execute(select(table.c.name, table.c.revision))}

    def change(self, new: Deployment, expect: int, actor: str, action: str, why: str = "") -> Deployment:
        """Makes `new` the state of its model, if that is still at revision `expect` (0: never deployed).

        Returns it with its revision, `expect` + 1. State, history and event are written together or not at all.
        Raises Conflict."""
        with self._store.write() as connection:
            changed = self._swap(connection, new, expect, actor, action, why)
            events.append(connection, action, new.name, actor, _details(changed, why), self._clock())
        return changed

    def history(self, name: str, limit: int = 50, before: int | None = None) -> list[Change]:
        """Changes of a model's deployment, the newest first; with `before`, those of lower revisions only."""
        table = tables.deployment_history
        query = select(table).where(table.c.name == name).order_by(table.c.revision.desc()).limit(limit)
        if before is not None:
            query = query.where(table.c.revision < before)
        with self._store.read() as connection:
            return [_change(row) for row in connection.execute(query)]

    # ---- rollouts

    def rollout(self, key: str) -> Rollout | None:
        """One rollout by its id."""
        table = tables.rollouts
        with self._store.read() as connection:
            spec = connection.execute(select(table.c.spec).where(table.c.id == key)).scalar_one_or_none()
        return None if spec is None else _read(spec, Rollout)

    def open_rollouts(self) -> list[Rollout]:
        """Every rollout that may still change."""
        table = tables.rollouts
        with self._store.read() as connection:
            rows = connection.execute(select(table.c.spec).where(table.c.open == 1).order_by(table.c.started_at))
            return [_read(row.spec, Rollout) for row in rows]

    def rollouts(self, name: str, limit: int = 50) -> list[Rollout]:
        """Rollouts of a model, the newest first."""
        table = tables.rollouts
        query = select(table.c.spec).where(table.c.name == name)
        query = query.order_by(table.c.started_at.desc(), table.c.id.desc()).limit(limit)
        with self._store.read() as connection:
            return [_read(row.spec, Rollout) for row in connection.execute(query)]

    def change_rollout(
        self,
        new: Rollout,
        expect: int,
        actor: str,
        action: str,
        why: str = "",
        deployment: Deployment | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> tuple[Rollout, Deployment | None]:
        """Moves a rollout that is at revision `expect` (0: it starts), and with it its deployment, in one transaction.

        `deployment` is the new state; its `revision` is that of the state it was made from, and counts up by one.
        `details` go into the event. Returns both with their revisions. Raises Conflict, and then neither has moved."""
        rollout = msgspec.structs.replace(new, revision=expect + 1)
        with self._store.write() as connection:
            _swap_rollout(connection, rollout, expect)
            changed = None
            if deployment is not None:
                changed = self._swap(connection, deployment, deployment.revision, actor, action, why)
            about = {"rollout": rollout.id, "status": rollout.status, "step": rollout.step, **(details or {})}
            if changed is not None:
                about = {**_details(changed, why), **about}
            elif why:
                about["why"] = why
            events.append(connection, action, rollout.name, actor, about, self._clock())
        return rollout, changed

    # ---- what processes report

    def report(self, process: str, status: ProcessStatus) -> None:
        """Replaces the report of a process; a sign of life."""
        table = tables.processes
        now = self._clock()
        values = {"at": now, "status": _text(status)}
        with self._store.write() as connection:
            done = connection.execute(update(table).where(table.c.id == process).values(values))
            if not done.rowcount:
                connection.execute(delete(table).where(table.c.at < now - KEPT_SECONDS))
                connection.execute(insert(table).values(id=process, **values))

    def forget(self, process: str) -> None:
        """Takes a process's report away: it has ended."""
        with self._store.write() as connection:
            connection.execute(delete(tables.processes).where(tables.processes.c.id == process))

    def processes(self, max_age: float = LIVE_SECONDS) -> dict[str, ProcessStatus]:
        """Reports of the processes that gave a sign of life in the last `max_age` seconds, by process id."""
        table = tables.processes
        query = select(table).where(table.c.at >= self._clock() - max_age).order_by(table.c.id)
        with self._store.read() as connection:
            return {row.id: _read(row.status, ProcessStatus) for row in connection.execute(query)}

    def put_evidence(self, name: str, process: str, stretch: Stretch) -> None:
        """Replaces what one process saw of the calls that `stretch.route` routed. Counts only grow."""
        table = tables.evidence
        values = {"at": self._clock(), "counts": _text(stretch)}
        mine = (table.c.name == name, table.c.route == stretch.route, table.c.process == process)
        with self._store.write() as connection:
            done = connection.execute(update(table).where(*mine).values(values))
            if not done.rowcount:
                connection.execute(insert(table).values(name=name, route=stretch.route, process=process, **values))

    def evidence(self, name: str, routes: Iterable[int]) -> list[Stretch]:
        """What all processes saw, one stretch a route, in the order of routes; routes without evidence are left out."""
        table = tables.evidence
        query = select(table.c.counts).where(table.c.name == name, table.c.route.in_(list(routes)))
        with self._store.read() as connection:
            rows = connection.execute(query.order_by(table.c.route, table.c.process)).all()
        merged: dict[int, Stretch] = {}
        for row in rows:
            stretch = _read(row.counts, Stretch)
            if stretch.route in merged:
                merged[stretch.route].add(stretch)
            else:
                merged[stretch.route] = stretch
        return list(merged.values())

    def _swap(
        self, connection: Connection, new: Deployment, expect: int, actor: str, action: str, why: str
    ) -> Deployment:
        """The compare-and-swap of one deployment, with its row of history."""
        changed = msgspec.structs.replace(new, revision=expect + 1)
        table = tables.deployments
        values = {"revision": changed.revision, "spec": _text(changed)}
        if expect:
            done = connection.execute(
                update(table).where(table.c.name == new.name, table.c.revision == expect).values(values)
            )
            if not done.rowcount:
                raise _conflict(connection, new.name, expect)
        elif _deployment(connection, new.name) is not None:
            raise _conflict(connection, new.name, expect)
        else:
            try:
                connection.execute(insert(table).values(name=new.name, **values))
            except IntegrityError:  # somebody else's first deployment came between
                raise Conflict(f"somebody else has just deployed {new.name!r}; look at it, then try again") from None
        connection.execute(
            insert(tables.deployment_history).values(
                name=new.name, at=self._clock(), actor=actor, action=action, why=why, **values
            )
        )
        return changed


def _deployment(connection: Connection, name: str) -> Deployment | None:
    table = tables.deployments
    spec = connection.execute(select(table.c.spec).where(table.c.name == name)).scalar_one_or_none()
    return None if spec is None else _read(spec, Deployment)


def _swap_rollout(connection: Connection, rollout: Rollout, expect: int) -> None:
    """The compare-and-swap of one rollout. A model has one open rollout at most."""
    table = tables.rollouts
    values = {"revision": rollout.revision, "open": int(rollout.status in OPEN), "spec": _text(rollout)}
    if expect:
        mine = (table.c.id == rollout.id, table.c.revision == expect)
        if not connection.execute(update(table).where(*mine).values(values)).rowcount:
            raise Conflict(
                f"the rollout {rollout.id} of {rollout.name!r} has moved on; see `pelton rollout status {rollout.name}`"
            )
        return
    other = connection.execute(select(table.c.id).where(table.c.name == rollout.name, table.c.open == 1)).first()
    if other is not None:
        raise Conflict(f"the rollout {other.id} of {rollout.name!r} is still open; promote or abort it first")
    try:
        connection.execute(
            insert(table).values(id=rollout.id, name=rollout.name, started_at=rollout.started_at, **values)
        )
    except IntegrityError:
        raise Conflict(f"there is a rollout {rollout.id} already") from None


def _conflict(connection: Connection, name: str, expect: int) -> Conflict:
    """Says who was first, so that nobody has to look it up."""
    table = tables.deployment_history
    query = select(table).where(table.c.name == name).order_by(table.c.revision.desc()).limit(1)
    row = connection.execute(query).first()
    if row is None:
        return Conflict(f"{name!r} is not deployed, so it is not at revision {expect}")
    why = f": {row.why}" if row.why else ""
    return Conflict(
        f"{name!r} is at revision {row.revision}, not {expect}: {row.actor} was first ({row.action}{why}); "
        "look at it, then try again"
    )


def _details(deployment: Deployment, why: str) -> dict[str, Any]:
    """What an event tells of a change."""
    details: dict[str, Any] = msgspec.to_builtins(deployment)
    del details["name"]
    if why:
        details["why"] = why
    return details


def _change(row: Row[Any]) -> Change:
    return Change(row.name, row.revision, row.at, row.actor, row.action, _read(row.spec, Deployment), row.why)


def _text(value: msgspec.Struct) -> str:
    return msgspec.json.encode(value).decode()


T = TypeVar("T")


def _read(text: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise PeltonError(
            f"the store holds a {kind.__name__} that this Pelton cannot read ({error}); "
            "was it written by a newer version? Upgrade this one"
        ) from None
