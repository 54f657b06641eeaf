"""Bringing models to the state that a `deploy.toml` declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pelton.control import desired as desired_state
from pelton.control.desired import Desired, Step
from pelton.control.desk import Desk, version_ref
from pelton.deployments import Deployment
from pelton.errors import Conflict


class Applied(msgspec.Struct, frozen=True):
    """What was done about each model of the file, or, `done` being False, what would be."""

    steps: list[Step]
    done: bool

    @property
    def changes(self) -> int:
        return sum(step.action != "nothing" for step in self.steps)


class Applying(Desk):
    """Plans and applies desired state."""

    def plan_apply(self, desired: Desired) -> list[Step]:
        """One step a model of `desired`, in its order. Raises NotFound and InvalidInput for references without a version."""
        deployments = self.deployments.all()
        steps = []
        for name, model in desired.models.items():
            version = self._resolved(name, model.version, model.alias) if model.serve else ""
            shadow = model.shadow
            shadowed = self._resolved(name, shadow.version, shadow.alias) if shadow is not None else ""
            now = deployments.get(name) or Deployment(name, previous=self._seen_serving(name))
            steps.append(desired_state.step(now, model, version, shadowed))
        return steps

    def apply(
        self, desired: Desired | Mapping[str, Any], why: str = "", dry_run: bool = False, actor: str = ""
    ) -> Applied:
        """Makes it so; a second time it changes nothing. `dry_run`: only says what would be done.

        Everything is planned first; each model is then changed by compare-and-swap against the plan. Raises Conflict
        where a rollout is open (before anything is changed), or where somebody else was first: then the models before
        it in the file are changed, and applying again does the rest."""
        if not isinstance(desired, Desired):
            desired = desired_state.from_values(desired, "the desired state")
        steps = self.plan_apply(desired)
        if dry_run:
            return Applied(steps, False)
        blocked = [step.name for step in steps if step.action == "blocked"]
        if blocked:
            raise Conflict(
                f"a rollout is open for {', '.join(blocked)}: promote or abort it first; nothing was changed"
            )
        done = []
        for step in steps:
            if step.action == "nothing":
                done.append(step)
                continue
            action = "undeploy" if step.action == "undeploy" else "deploy"
            changed = self._write(step.target, step.revision, actor, action, why or "applied")
            done.append(msgspec.structs.replace(step, revision=changed.revision, target=changed))
        return Applied(done, True)

    def _resolved(self, name: str, version: str, alias: str) -> str:
        """The full version, "" for neither a version nor an alias."""
        if not version and not alias:
            return ""
        return self._package(version_ref(name, f"@{alias}" if alias else version)).version
