"""Desired state: which version of each model should answer, with which candidate, weight and shadow; and who runs what.

Changes are compare-and-swap on a revision, kept in an append-only history with who and why. Server processes watch the
revisions and converge (`pelton.server.control`); they report here what they run, and the evidence that they saw.

Nothing here imports SQLAlchemy: on SQLite all of it does without, so that a process starts and a rollback ends at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from pelton.errors import Conflict, PeltonError
from pelton.rollout.evidence import merge
from pelton.rollout.state import OPEN, Rollout, Stretch
from pelton.store import Store
from pelton.store.sheet import Sheet

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
    "loading", or why it cannot be served. `converged`: the revision that it has reached, 0 for none. `pinned`: it was
    started for one version and does not follow the deployment."""

    versions: dict[str, str] = {}
    converged: int = 0
    calls_per_second: float = 0.0  # over the last full minute
    errors_share: float = 0.0
    slow_share: float = 0.0
    pinned: bool = False


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
        rows = self._store.rows("deployments", name=name)
        return _read(rows[0]["spec"], Deployment) if rows else None

    def all(self) -> dict[str, Deployment]:
        """Every model that was ever deployed, by name."""
        return {
            row["name"]: _read(row["spec"], Deployment) for row in sorted(self._store.rows("deployments"), key=_name)
        }

    def revisions(self) -> dict[str, int]:
        """The revision of every deployment: the cheap question whether anything has changed."""
        return {row["name"]: row["revision"] for row in self._store.rows("deployments")}

    def change(self, new: Deployment, expect: int, actor: str, action: str, why: str = "") -> Deployment:
        """Makes `new` the state of its model, if that is still at revision `expect` (0: never deployed).

        Returns it with its revision, `expect` + 1. State, history and event are written together or not at all.
        Raises Conflict."""
        from pelton import events

        with self._store.sheet() as sheet:
            changed = self._swap(sheet, new, expect, actor, action, why)
            events.note(sheet, action, new.name, actor, _details(changed, why), self._clock())
        return changed

    def history(self, name: str, limit: int = 50, before: int | None = None) -> list[Change]:
        """Changes of a model's deployment, the newest first; with `before`, those of lower revisions only."""
        rows = self._store.rows("deployment_history", name=name)
        found = [row for row in rows if before is None or row["revision"] < before]
        return [_change(row) for row in sorted(found, key=_revision, reverse=True)[:limit]]

    # ---- rollouts

    def rollout(self, key: str) -> Rollout | None:
        """One rollout by its id."""
        rows = self._store.rows("rollouts", id=key)
        return _read(rows[0]["spec"], Rollout) if rows else None

    def open_rollouts(self) -> list[Rollout]:
        """Every rollout that may still change, the oldest first."""
        rows = self._store.rows("rollouts", open=1)
        return [_read(row["spec"], Rollout) for row in sorted(rows, key=_started)]

    def rollouts(self, name: str, limit: int = 50) -> list[Rollout]:
        """Rollouts of a model, the newest first."""
        rows = sorted(self._store.rows("rollouts", name=name), key=_started, reverse=True)
        return [_read(row["spec"], Rollout) for row in rows[:limit]]

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
        from pelton import events

        rollout = msgspec.structs.replace(new, revision=expect + 1)
        with self._store.sheet() as sheet:
            _swap_rollout(sheet, rollout, expect)
            changed = None
            if deployment is not None:
                changed = self._swap(sheet, deployment, deployment.revision, actor, action, why)
            about = {"rollout": rollout.id, "status": rollout.status, "step": rollout.step, **(details or {})}
            if changed is not None:
                about = {**_details(changed, why), **about}
            elif why:
                about["why"] = why
            events.note(sheet, action, rollout.name, actor, about, self._clock())
        return rollout, changed

    # ---- what processes report

    def report(self, process: str, status: ProcessStatus) -> None:
        """Replaces the report of a process; a sign of life. Its first one clears those of the long dead."""
        now = self._clock()
        known = {row["id"]: row["at"] for row in self._store.rows("processes")}
        self._store.put("processes", {"id": process}, {"at": now, "status": _text(status)})
        if process not in known:
            for other, at in known.items():
                if at < now - KEPT_SECONDS:
                    self._store.remove("processes", id=other, at=at)

    def forget(self, process: str) -> None:
        """Takes a process's report away: it has ended."""
        self._store.remove("processes", id=process)

    def processes(self, max_age: float = LIVE_SECONDS) -> dict[str, ProcessStatus]:
        """Reports of the processes that gave a sign of life in the last `max_age` seconds, by process id."""
        since = self._clock() - max_age
        rows = [row for row in self._store.rows("processes") if row["at"] >= since]
        return {row["id"]: _read(row["status"], ProcessStatus) for row in sorted(rows, key=lambda row: str(row["id"]))}

    def put_evidence(self, name: str, process: str, stretch: Stretch) -> None:
        """Replaces what one process saw of the calls that `stretch.route` routed. Counts only grow."""
        mine = {"name": name, "route": stretch.route, "process": process}
        self._store.put("evidence", mine, {"at": self._clock(), "counts": _text(stretch)})

    def evidence(self, name: str, routes: Iterable[int]) -> list[Stretch]:
        """What all processes saw, one stretch a route, in the order of routes; routes without evidence are left out."""
        wanted = sorted(set(routes))
        rows = [row for route in wanted for row in self._store.rows("evidence", name=name, route=route)]
        return merge(_read(row["counts"], Stretch) for row in rows)

    def _swap(self, sheet: Sheet, new: Deployment, expect: int, actor: str, action: str, why: str) -> Deployment:
        """The compare-and-swap of one deployment, with its row of history."""
        found = sheet.rows("deployments", name=new.name)
        if (found[0]["revision"] if found else 0) != expect:
            raise _conflict(sheet, new.name, expect)
        _require(sheet, new.name, _runs(new) - (_runs(_read(found[0]["spec"], Deployment)) if found else set()))
        changed = msgspec.structs.replace(new, revision=expect + 1)
        values = {"revision": changed.revision, "spec": _text(changed)}
        if found:
            sheet.update("deployments", {"name": new.name}, values)
        else:
            sheet.insert("deployments", name=new.name, **values)
        about = {"at": self._clock(), "actor": actor, "action": action, "why": why}
        sheet.insert("deployment_history", name=new.name, **values, **about)
        return changed


def _runs(deployment: Deployment) -> set[str]:
    """The versions that processes load for it."""
    shadow = deployment.shadow.version if deployment.shadow else ""
    return {deployment.version, deployment.candidate, shadow} - {""}


def _require(sheet: Sheet, name: str, wanted: set[str]) -> None:
    """What was removed since it was looked up must not run: garbage collection and `remove` take turns with this.

    Garbage collection leaves every model one version, so of a model without any nothing is asked."""
    known = {row["version"] for row in sheet.rows("versions", name=name)} if wanted else set()
    missing = wanted - known
    if known and missing:
        raise Conflict(
            f"{name}:{min(missing)[:12]} is not in the registry any more: nothing was changed; add it again, or name "
            "another version"
        )


def _swap_rollout(sheet: Sheet, rollout: Rollout, expect: int) -> None:
    """The compare-and-swap of one rollout. A model has one open rollout at most."""
    found = sheet.rows("rollouts", id=rollout.id)
    revision = found[0]["revision"] if found else 0
    if revision != expect:
        raise Conflict(
            f"the rollout {rollout.id} of {rollout.name!r} has moved on to revision {revision}, it is not at {expect}; "
            f"see `pelton rollout status {rollout.name}`, then try again"
        )
    others = [row["id"] for row in sheet.rows("rollouts", name=rollout.name, open=1) if row["id"] != rollout.id]
    if others and rollout.status in OPEN:
        raise Conflict(f"the rollout {others[0]} of {rollout.name!r} is still open; promote or abort it first")
    values = {"revision": rollout.revision, "open": int(rollout.status in OPEN), "spec": _text(rollout)}
    if found:
        sheet.update("rollouts", {"id": rollout.id}, values)
    else:
        sheet.insert("rollouts", id=rollout.id, name=rollout.name, started_at=rollout.started_at, **values)


def _conflict(sheet: Sheet, name: str, expect: int) -> Conflict:
    """Says who was first, so that nobody has to look it up."""
    rows = sheet.rows("deployment_history", name=name)
    if not rows:
        return Conflict(f"{name!r} is not deployed, so it is not at revision {expect}")
    last = max(rows, key=_revision)
    why = f": {last['why']}" if last["why"] else ""
    return Conflict(
        f"{name!r} is at revision {last['revision']}, not {expect}: {last['actor']} was first ({last['action']}{why}); "
        "look at it, then try again"
    )


def _name(row: dict[str, Any]) -> str:
    return str(row["name"])


def _revision(row: dict[str, Any]) -> int:
    return int(row["revision"])


def _started(row: dict[str, Any]) -> tuple[float, str]:
    return row["started_at"], row["id"]


def _details(deployment: Deployment, why: str) -> dict[str, Any]:
    """What an event tells of a change."""
    details: dict[str, Any] = msgspec.to_builtins(deployment)
    del details["name"]
    if why:
        details["why"] = why
    return details


def _change(row: dict[str, Any]) -> Change:
    deployment = _read(row["spec"], Deployment)
    return Change(row["name"], row["revision"], row["at"], row["actor"], row["action"], deployment, row["why"])


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
