"""What can answer: the versions in memory, found by name, and why others cannot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pelton.errors import NotFound, NotReady
from pelton.replicas import Replica
from pelton.scheduling import Scheduler
from pelton.types import Call

if TYPE_CHECKING:
    from pelton.engine.lane import Lane
    from pelton.engine.prompts import Prompts
    from pelton.language import Language
    from pelton.runtimes.language import Facts


class Pick(NamedTuple):
    """Which version a split has chosen for a call. `route` and `key` go into the call and its record."""

    served: Served
    route: int
    key: int


class Split(Protocol):
    """Shares the calls of a model between its deployed version and a candidate."""

    def pick(self, key: bytes | None) -> Pick:
        """The version for one call. `key`: what the caller sent to be treated alike every time, or None."""


class Mirror(Protocol):
    """Sends copies of the calls of a version to its shadow."""

    def watch(self, call: Call) -> None:
        """Sees a call before it is submitted. May wrap `call.done`; must never raise, delay or change the call."""


class Served:
    """A version that takes calls: its replica, its lane and its latency target in seconds.

    A language model has a `lane` for its generations, and its `language`; calls of texts go through `scheduler` as
    those of all other models."""

    def __init__(self, replica: Replica, scheduler: Scheduler | Prompts, target: float) -> None:
        self.replica = replica
        self.scheduler = scheduler
        self.target = target
        self.varies = replica.varies
        self.name = replica.name
        self.version = replica.version
        self.short_version = replica.version[:12]  # as people and headers name it
        self.wire_version = self.short_version.encode()
        self.language: Language | None = None
        self.lane: Lane | None = None
        self.split: Split | None = None  # set on a deployed version while it has a candidate
        self.mirror: Mirror | None = None  # set on a deployed version while it has a shadow
        self.codecs: dict[Any, Any] = {}  # the protocols' own: each compiled for this version

    @property
    def engine_facts(self) -> Facts | None:
        """What the engine of a language model says of itself; it may say something else after a restart."""
        return self.lane.facts if self.lane is not None else None

    def expect(self, caller: asyncio.Task[Any]) -> None:
        """A caller has found this version and needs a moment before it asks: until its task is done, the version stays."""
        self.scheduler.expected += 1
        caller.add_done_callback(self._came)

    def _came(self, caller: asyncio.Task[Any]) -> None:
        self.scheduler.expected -= 1
        self.scheduler.check_drained()

    def let_go(self) -> None:
        """Nothing is sent here any more. What refers back to this is dropped: the garbage collector, which does not look
        at what was there when the process started, would never find the cycle."""
        self.split = self.mirror = None
        self.codecs.clear()


class Directory:
    """Names and versions -> Served."""

    def __init__(self) -> None:
        self._current: dict[str, Served] = {}  # the version that answers when a caller names none
        self.answering = self._current.get  # the hot path of `find`
        self._versions: dict[tuple[str, str], Served] = {}
        self._states: dict[str, str] = {}  # of names that cannot answer: why

    def put(self, served: Served) -> None:
        """From now on `served` answers for its name."""
        self.add(served)
        self._current[served.name] = served
        self._states.pop(served.name, None)

    def add(self, served: Served) -> None:
        """From now on `served` answers callers that name its version."""
        self._versions[served.name, served.version] = served

    def withdraw(self, name: str, state: str) -> None:
        """Nothing answers callers that name no version; `state` tells them why."""
        self._current.pop(name, None)
        self._states[name] = state

    def remove(self, name: str, state: str) -> list[Served]:
        """No version of `name` answers any more; returns what did. `state` is told to callers."""
        gone = [self._versions.pop(key) for key in list(self._versions) if key[0] == name]
        self._current.pop(name, None)
        self._states[name] = state
        return gone

    def forget(self, served: Served) -> None:
        """Callers that name this version are not answered any more."""
        key = (served.name, served.version)
        if self._versions.get(key) is served:
            del self._versions[key]

    def announce(self, name: str, state: str) -> None:
        """`name` is known and cannot answer: it is loading, or it failed, and why."""
        self._states[name] = state

    def drop_state(self, name: str) -> None:
        """`name` is not this process's affair any more: callers are told that it is unknown here."""
        self._states.pop(name, None)

    def current(self) -> dict[str, Served]:
        """The answering version of each name."""
        return dict(self._current)

    def versions(self, name: str) -> list[Served]:
        """All versions of a name in memory."""
        return [served for (owner, _), served in self._versions.items() if owner == name]

    def everything(self) -> list[Served]:
        """All versions of all names in memory."""
        return list(self._versions.values())

    def states(self) -> dict[str, str]:
        """Names that cannot answer, and why: no version does, or its engine is away."""
        away = {
            name: served.lane.away
            for name, served in self._current.items()
            if served.lane is not None and served.lane.away
        }
        return {**away, **self._states}

    def find(self, name: str, version: str) -> Served:
        """Raises NotFound or NotReady, saying what is there. A version may be shortened to a unique prefix."""
        served = self._versions.get((name, version)) if version else self._current.get(name)
        if served is not None:
            return served
        state = self._states.get(name)
        if state is not None:
            raise NotReady(f"model {name!r} cannot answer: {state}", retry_after=1.0)
        versions = {served.version: served for served in self.versions(name)}
        if not versions:
            known = ", ".join(sorted(self._current)) or "none"
            raise NotFound(f"unknown model {name!r}; served here: {known}")
        matching = [full for full in versions if full.startswith(version)]
        if len(matching) == 1:
            return versions[matching[0]]
        raise NotFound(f"model {name!r} has no version {version!r} here; it has {', '.join(sorted(versions))}")
