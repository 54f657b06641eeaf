"""What a process does next so that it serves what the store says. Pure: a state and a time in, actions out.

The order is always: load and warm beside what serves, check the golden requests, switch, drain and release. A version
that could not be loaded, or that answered its golden requests wrongly, is never switched to; what served goes on.
`plan` is asked again after its actions were begun, and whenever a load ends or time has passed; it says nothing when
nothing is to be done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from pelton.deployments import Deployment, Shadow

RETRY_FIRST: Final = 5.0  # seconds until a version that could not be loaded is tried again; doubled each time
RETRY_LONGEST: Final = 600.0

Word = Literal["loading", "ready", "failed"]


class Scope(msgspec.Struct, frozen=True):
    """Which models a process serves: `names`, or, where `everything` is set, all of the registry and what is deployed
    later. `pins`: name -> version that was asked for when the process was started; the store is not followed for it."""

    everything: bool = True
    names: frozenset[str] = frozenset()
    pins: dict[str, str] = {}

    def follows(self, name: str) -> bool:
        """Whether the store decides what this process serves as `name`."""
        return name not in self.pins and (self.everything or name in self.names)


class Load(msgspec.Struct, frozen=True):
    """How loading a version went. `revision`: that of the deployment which asked for it; `at`: when this was known;
    `failures`: in a row; `reason`: of the last one; `wrong`: it has answered its golden requests wrongly; `short`: it
    had no memory beside the others."""

    state: Word
    revision: int = 0
    at: float = 0.0
    failures: int = 0
    reason: str = ""
    wrong: bool = False
    short: bool = False


class Sharing(msgspec.Struct, frozen=True):
    """How calls are shared between the version that serves and a candidate. `route`: the revision that says so."""

    candidate: str
    weight: float
    route: int
    slow_ms: float = 0.0


class Mirroring(msgspec.Struct, frozen=True):
    """Copies of calls go to a shadow. `route`: the revision that says so."""

    shadow: Shadow
    route: int


class Present(msgspec.Struct, frozen=True):
    """What a process does for one model now. `current` answers callers that name no version; "": none does.

    `warm`: version -> until when it is kept for a rollback."""

    current: str = ""
    loads: Mapping[str, Load] = {}
    sharing: Sharing | None = None
    mirroring: Mirroring | None = None
    warm: Mapping[str, float] = {}
    converged: int = 0


# ---- actions, on one model


class Begin(msgspec.Struct, frozen=True):
    """Load a version beside what serves."""

    version: str
    revision: int
    failures: int = 0


class Switch(msgspec.Struct, frozen=True):
    """From now on this version answers, which is loaded. "": none does."""

    version: str


class Keep(msgspec.Struct, frozen=True):
    """Keep a version that does not serve any more until `until`."""

    version: str
    until: float


class Share(msgspec.Struct, frozen=True):
    """Share the calls of the current version; None: it gets all."""

    sharing: Sharing | None


class Mirror(msgspec.Struct, frozen=True):
    """Copy calls of the current version; None: no more."""

    mirroring: Mirroring | None


class Release(msgspec.Struct, frozen=True):
    """Nothing needs this version any more: what it has accepted is answered, then its memory is given back."""

    version: str


class Reached(msgspec.Struct, frozen=True):
    """Everything that the revision asks for is in place."""

    revision: int


Action = Begin | Switch | Keep | Share | Mirror | Release | Reached


def starting(scope: Scope, desired: Mapping[str, Deployment], newest: Mapping[str, str]) -> dict[str, str]:
    """Name -> version that a process loads when it starts without asking the store further: pins, and what has never
    been deployed. What has been is left to `plan`."""
    left = {name: version for name, version in newest.items() if not (scope.follows(name) and name in desired)}
    return {**left, **scope.pins}


def plan(wanted: Deployment, have: Present, now: float, keep_warm: float) -> list[Action]:
    """What to do now for one model. `keep_warm`: seconds that the version before is kept after a switch."""
    actions: list[Action] = [
        Begin(version, wanted.revision, load.failures if load is not None else 0)
        for version in needed(wanted)
        if _due(load := have.loads.get(version), wanted.revision, now)
    ]
    ready = {version for version, load in have.loads.items() if load.state == "ready"}
    warm = dict(have.warm)
    serving, sharing, mirroring = have.current, have.sharing, have.mirroring
    if serving != wanted.version and (not wanted.version or wanted.version in ready):
        if serving and serving == wanted.previous and keep_warm > 0:
            warm[serving] = now + keep_warm
            actions.append(Keep(serving, warm[serving]))
        actions.append(Switch(wanted.version))
        serving, sharing, mirroring = wanted.version, None, None
    actions += _attached(wanted, serving, ready, sharing, mirroring)
    kept = {*needed(wanted), serving}
    short = any(load.short for version, load in have.loads.items() if version in kept)  # memory comes before a rollback
    if now < warm.get(wanted.previous, 0.0) and not short:
        kept.add(wanted.previous)
    actions += [
        Release(version) for version, load in have.loads.items() if version not in kept and load.state != "loading"
    ]
    if have.converged != wanted.revision and serving == wanted.version and ready.issuperset(needed(wanted)):
        actions.append(Reached(wanted.revision))
    return actions


def needed(wanted: Deployment) -> list[str]:
    """The versions that must be in memory: what serves first."""
    shadow = wanted.shadow.version if wanted.shadow is not None else ""
    found = dict.fromkeys((wanted.version, wanted.candidate, shadow))
    return [version for version in found if version]


def states(wanted: Deployment | None, have: Present) -> dict[str, str]:
    """For people: version -> "serves", "candidate", "shadow", "warm", "loading", or why it cannot be served."""
    return {version: _state(version, wanted, have) for version in have.loads}


def retry_after(failures: int) -> float:
    """Seconds until a version that failed so often in a row is tried again."""
    return float(min(RETRY_FIRST * 2.0 ** min(failures - 1, 30), RETRY_LONGEST))


def _attached(
    wanted: Deployment, serving: str, ready: set[str], sharing: Sharing | None, mirroring: Mirroring | None
) -> list[Action]:
    """What becomes of the split and the mirror of the version that serves."""
    actions: list[Action] = []
    right = bool(serving) and serving == wanted.version
    share = mirror = None
    if right and wanted.weight > 0 and wanted.candidate in ready and wanted.candidate != serving:
        share = Sharing(wanted.candidate, min(wanted.weight, 1.0), wanted.revision, wanted.slow_ms)
    if right and wanted.shadow is not None and wanted.shadow.version in ready and wanted.shadow.version != serving:
        mirror = Mirroring(wanted.shadow, wanted.revision)
    if share != sharing:
        actions.append(Share(share))
    if mirror != mirroring:
        actions.append(Mirror(mirror))
    return actions


def _due(load: Load | None, revision: int, now: float) -> bool:
    """Whether loading should begin: never tried, or it failed and the revision is another one, or long enough ago."""
    if load is None:
        return True
    if load.state != "failed":
        return False
    return load.revision != revision or now >= load.at + retry_after(load.failures)


def _state(version: str, wanted: Deployment | None, have: Present) -> str:
    load = have.loads[version]
    if version == have.current:
        return "serves"
    if load.state != "ready":
        return "loading" if load.state == "loading" else load.reason
    if wanted is not None and version == wanted.candidate:
        return "candidate"
    if wanted is not None and wanted.shadow is not None and version == wanted.shadow.version:
        return "shadow"
    return "warm"
