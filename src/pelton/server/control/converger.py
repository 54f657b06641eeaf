"""Brings a process to what the store says: executes the plan's actions on its fleet. Belongs to the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from msgspec.structs import replace

from pelton.deployments import Deployment
from pelton.engine import Engine, Served
from pelton.errors import Disagrees, NoRoom, NotFound, NotReady, PeltonError
from pelton.server.control import plan as planning
from pelton.server.control.evidence import Evidence
from pelton.server.control.plan import Action, Load, Present, Scope
from pelton.server.fleet import LOADING, Fleet

log = logging.getLogger(__name__)

MOST_ROUNDS: Final = 8  # of planning in one step: two are usual
HOPELESS: Final = 3  # failed loads in a row, after which a candidate is given up


class Places(Protocol):
    """Which of several workers holds a model."""

    def mine(self, name: str) -> bool:
        """Whether this process holds the model."""

    def find(self, name: str, version: str) -> bool:
        """Asks for a place for a model that has none, and will have this version; False: it has one, or needs none."""


class Alone:
    """The places of a process without siblings."""

    def mine(self, name: str) -> bool:
        return True

    def find(self, name: str, version: str) -> bool:
        raise AssertionError("every model has its place here")


class Converger:
    """What this process does for every model that the store decides on. `changed` is called when any of it changes."""

    def __init__(
        self,
        engine: Engine,
        fleet: Fleet,
        scope: Scope,
        evidence: Evidence,
        keep_warm: float,
        places: Places | None = None,
    ) -> None:
        self.scope = scope
        self.desired: dict[str, Deployment] = {}
        self.changed: Callable[[], None] = lambda: None
        self._engine = engine
        self._fleet = fleet
        self._evidence = evidence
        self._keep_warm = keep_warm
        self._places: Places = places or Alone()
        self._present: dict[str, Present] = {}
        self._timed: set[str] = set()  # models for which something becomes due by time alone
        self._tasks: set[asyncio.Task[None]] = set()

    def follows(self, name: str) -> bool:
        """Whether the store has decided what is served as `name`, and this process follows it."""
        return name in self.desired and self.scope.follows(name)

    def holds(self, name: str) -> bool:
        """Whether a model has its place in this process."""
        return self._places.mine(name)

    def take(self, desired: Mapping[str, Deployment]) -> None:
        """The store says something else than before. A model that it knows no more goes on as it is."""
        before, self.desired = self.desired, {**self.desired, **desired}
        for name, wanted in desired.items():
            if before.get(name) != wanted and self.scope.follows(name):
                self._step(name)

    def tick(self) -> None:
        """Some time has passed: begins what has become due by that."""
        for name in list(self._timed):
            self._step(name)

    def placed(self, name: str) -> None:
        """A model has got its place among the workers."""
        if self.follows(name):
            self._step(name)

    def busy(self) -> bool:
        """Whether anything is being loaded."""
        return bool(self._tasks)

    async def settled(self) -> None:
        """Returns when nothing is being loaded."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def load(self, name: str) -> None:
        """Somebody asks for a deployed model: a load that failed is tried again now. Raises NotReady with the reason."""
        wanted = self.desired[name]
        if not wanted.version:
            raise NotFound(f"{name!r} is not deployed; deploy a version: pelton deploy {name}:VERSION")
        present = self.present(name)
        failed = present.loads.get(wanted.version)
        if failed is not None and failed.state == "failed":
            self._note(name, {key: load for key, load in present.loads.items() if load is not failed})
            self._step(name)
        await self.settled()
        if self.present(name).current != wanted.version:
            reason = self.states(name).get(wanted.version, LOADING)
            raise NotReady(f"{name}:{wanted.version[:12]} is deployed and cannot be served: {reason}")

    def present(self, name: str) -> Present:
        """What this process does for a model now. What is in memory is the directory's to say."""
        noted = self._present.get(name, Present())
        directory = self._engine.directory
        current = directory.current().get(name)
        loads = {version: load for version, load in noted.loads.items() if load.state != "ready"}
        for served in directory.versions(name):
            loads[served.version] = noted.loads.get(served.version, Load("ready"))
            if loads[served.version].state != "ready":
                loads[served.version] = Load("ready")
        return replace(noted, current=current.version if current is not None else "", loads=loads)

    def unfit(self) -> dict[tuple[str, str], str]:
        """(model, version) -> why this process cannot ever serve it: its answers are wrong, or every try failed."""
        return {
            (name, version): f"it cannot be served: {load.reason}"
            for name, present in self._present.items()
            for version, load in present.loads.items()
            if load.state == "failed" and (load.wrong or load.failures >= HOPELESS)
        }

    def states(self, name: str) -> dict[str, str]:
        """For people: version -> what it does here, or why it cannot be served."""
        return planning.states(self.desired.get(name) if self.scope.follows(name) else None, self.present(name))

    # ---- executing

    def _step(self, name: str) -> None:
        wanted = self.desired[name]
        self._timed.discard(name)
        if not self._places.mine(name):
            if self._places.find(name, wanted.version):
                self._timed.add(name)
            return
        for _ in range(MOST_ROUNDS):
            actions = planning.plan(wanted, self.present(name), self._engine.clock(), self._keep_warm)
            if not actions:
                break
            for action in actions:
                self._do(name, wanted, action)
        else:
            log.error("model %s: its plan does not come to an end: %s", name, actions)
        self._announce(name, wanted)
        present = self.present(name)
        if present.warm or any(load.state == "failed" for load in present.loads.values()):
            self._timed.add(name)

    def _do(self, name: str, wanted: Deployment, action: Action) -> None:
        present = self.present(name)
        if isinstance(action, planning.Begin):
            self._begin(name, action)
        elif isinstance(action, planning.Switch):
            if action.version:
                self._fleet.switch(self._served(name, action.version))
            else:
                self._fleet.withdraw(name)
            self._present[name] = replace(self.present(name), sharing=None, mirroring=None)
        elif isinstance(action, planning.Keep):
            self._present[name] = replace(present, warm={action.version: action.until})
        elif isinstance(action, planning.Share):
            self._share(wanted, present, action.sharing)
        elif isinstance(action, planning.Mirror):
            self._mirror(wanted, present, action.mirroring)
        elif isinstance(action, planning.Release):
            self._release(name, action.version)
        else:
            self._present[name] = replace(present, converged=action.revision)
            log.info("model %s: revision %d is in place", name, action.revision)
        self.changed()

    def _begin(self, name: str, action: planning.Begin) -> None:
        load = Load("loading", action.revision, self._engine.clock(), action.failures)
        self._note(name, {**self.present(name).loads, action.version: load})
        task = asyncio.get_running_loop().create_task(self._load(name, action))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, name: str, action: planning.Begin) -> None:
        version = action.version
        try:
            await self._fleet.stage(name, version)
            load = Load("ready", action.revision, self._engine.clock())
        except Exception as error:  # whatever a model's files and libraries raise
            reason = str(error) if isinstance(error, PeltonError) else f"{type(error).__name__}: {error}"
            if not isinstance(error, PeltonError):
                log.exception("model %s:%s cannot be served", name, version[:12])
            failures = action.failures + 1
            again = planning.retry_after(failures)
            log.error("model %s:%s cannot be served: %s (again in %.0f s)", name, version[:12], reason, again)
            why, wrong, short = f"it failed to load: {reason}", isinstance(error, Disagrees), isinstance(error, NoRoom)
            load = Load("failed", action.revision, self._engine.clock(), failures, why, wrong, short)
        self._note(name, {**self.present(name).loads, version: load})
        self.changed()
        self._step(name)

    def _share(self, wanted: Deployment, present: Present, sharing: planning.Sharing | None) -> None:
        name = wanted.name
        current = self._served(name, present.current) if present.current else None
        if current is not None:
            current.split = None
            if sharing is not None:
                from pelton.server.control.splits import LiveSplit

                candidate = self._served(name, sharing.candidate)
                slow = sharing.slow_ms / 1e3 or current.target
                self._evidence.open(name, sharing.route, sharing.weight, sharing.candidate, slow)
                current.split = LiveSplit(wanted.rollout or name, sharing.weight, sharing.route, current, candidate)
        self._present[name] = replace(present, sharing=sharing)

    def _mirror(self, wanted: Deployment, present: Present, mirroring: planning.Mirroring | None) -> None:
        name = wanted.name
        current = self._served(name, present.current) if present.current else None
        if current is not None:
            current.mirror = None
            if mirroring is not None and current.lane is not None:
                log.error("model %s: a language model cannot have a shadow; no calls are copied", name)
            elif mirroring is not None:
                from pelton.server.control.splits import LiveMirror

                shadow = self._served(name, mirroring.shadow.version)
                pairs = self._evidence.pairs(name, mirroring.route, wanted.weight)
                current.mirror = LiveMirror(self._engine, current, shadow, mirroring.shadow, pairs)
        self._present[name] = replace(present, mirroring=mirroring)

    def _release(self, name: str, version: str) -> None:
        present = self.present(name)
        for served in self._engine.directory.versions(name):
            if served.version == version:
                self._fleet.release(served)
        self._note(name, {key: load for key, load in present.loads.items() if key != version})
        warm = {key: until for key, until in present.warm.items() if key != version}
        self._present[name] = replace(self._present[name], warm=warm)

    def _announce(self, name: str, wanted: Deployment) -> None:
        """Where nothing serves although something should: why."""
        directory = self._engine.directory
        if wanted.version and name not in directory.current():
            load = self.present(name).loads.get(wanted.version)
            directory.announce(name, load.reason if load is not None and load.reason else LOADING)
        elif not wanted.version and name not in directory.current() and name not in directory.states():
            self._fleet.withdraw(name)

    def _note(self, name: str, loads: Mapping[str, Load]) -> None:
        self._present[name] = replace(self._present.get(name, Present()), loads=dict(loads))

    def _served(self, name: str, version: str) -> Served:
        return self._engine.directory.find(name, version)
