"""What every operation works with: the store's rooms, the clock, and how references and conflicts are read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pelton.control import moves
from pelton.deployments import Deployment, Deployments
from pelton.errors import Conflict, NotFound
from pelton.rollout.state import Rollout
from pelton.store import Store

if TYPE_CHECKING:
    from pelton.packages import Package
    from pelton.registry import Registry

SERVES = "serves"  # the word of reports
UNKNOWN = "unknown"  # an actor that did not say who it is


class Desk:
    """The base of `Control`: its collaborators.

    `registry` may be a function that makes it: importing it costs a short command more than the command itself.
    `clock` gives seconds since 1970."""

    def __init__(
        self,
        store: Store,
        registry: Registry | Callable[[], Registry],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.clock = clock
        self.deployments = Deployments(store, clock)
        self._registry = registry

    @property
    def registry(self) -> Registry:
        """Models, versions and aliases."""
        if callable(self._registry):
            self._registry = self._registry()
        return self._registry

    def _package(self, ref: str) -> Package:
        """What `name`, `name:version` or `name@alias` means. Raises NotFound, InvalidInput, PackageInvalid."""
        from pelton.types import ModelRef  # it brings numpy, which a rollback does not need

        return self.registry.resolve(ModelRef.parse(ref))

    def _served(self, name: str) -> Deployment:
        """A deployment that serves a version. Raises NotFound."""
        deployment = self.deployments.get(name)
        if deployment is None or not deployment.version:
            raise NotFound(f"no version of {name!r} is deployed; deploy one: pelton deploy {name}:VERSION")
        return deployment

    def _seen_serving(self, name: str) -> str:
        """The version that most processes serve of a model without a deployment; "": none does."""
        counts: Counter[str] = Counter()
        for process in self.deployments.processes().values():
            if name in process.models:
                counts.update(version for version, state in process.models[name].versions.items() if state == SERVES)
        return max(sorted(counts), key=counts.__getitem__, default="")

    def _rollout_of(self, deployment: Deployment) -> Rollout | None:
        """The open rollout of a deployment."""
        return self.deployments.rollout(deployment.rollout) if deployment.rollout else None

    def _write(
        self, new: Deployment, expect: int, actor: str, action: str, why: str, rollout: Rollout | None = None
    ) -> Deployment:
        """Writes a deployment. Where a rollout is open, its calls go on counting under the new revision."""
        if rollout is None:
            return self.deployments.change(new, expect, actor or UNKNOWN, action, why)
        base = replace(new, revision=expect)
        moved = moves.rerouted(rollout, base)
        _, changed = self.deployments.change_rollout(moved, rollout.revision, actor or UNKNOWN, action, why, base)
        assert changed is not None
        return changed


def check_expected(deployment: Deployment | None, name: str, expect: int | None) -> int:
    """The revision that a change goes out from. Raises Conflict where the caller saw another one."""
    revision = deployment.revision if deployment is not None else 0
    if expect is not None and expect != revision:
        raise Conflict(
            f"the deployment of {name!r} is at revision {revision}, not {expect}; look at `pelton status {name}`, "
            "then try again"
        )
    return revision


def version_ref(name: str, version: str) -> str:
    """A reference out of a name and `VERSION`, `@ALIAS`, or a whole reference of that model."""
    for mark in (":", "@"):
        if version.startswith(name + mark):
            return version
    return name + version if version.startswith("@") else f"{name}:{version}"
