"""Starting a rollout, and moving it by hand: pause, resume, abort, promote. The steward of a server moves it otherwise."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from pelton.control import moves
from pelton.control.answers import Moved
from pelton.control.desk import UNKNOWN, Desk
from pelton.control.moves import Move
from pelton.control.views import rates
from pelton.deployments import Deployment
from pelton.errors import Conflict, InvalidInput, NotFound
from pelton.rollout.plan import Plan, estimate
from pelton.rollout.state import Limits, Rollout

if TYPE_CHECKING:
    from pelton.packages import Package

DEFAULT_STEPS = (0.01, 0.05, 0.25, 0.5, 1.0)
DEFAULT_LIMITS = Limits()
HOUR = 3600.0


class Started(msgspec.Struct, frozen=True):
    """A rollout and what to expect of it. `rollout.revision` is 0 where it was only planned (`started` False).

    `warnings`: what the person should know, the plan's own not among them."""

    rollout: Rollout
    plan: Plan
    deployment: Deployment
    started: bool
    warnings: list[str]


class Rollouts(Desk):
    """The operations on rollouts. They raise NotFound where none is open, and Conflict where somebody else was first."""

    def start_rollout(
        self,
        ref: str,
        steps: Sequence[float] = DEFAULT_STEPS,
        limits: Limits = DEFAULT_LIMITS,
        why: str = "",
        dry_run: bool = False,
        force: bool = False,
        shadow_share: float = 0.1,
        actor: str = "",
    ) -> Started:
        """Gives a version rising shares of the calls, until its evidence promotes it or rolls it back.

        `steps`: shares, the last is 1.0. `dry_run`: only plans. `force`: also where callers of the deployed version would
        break. `shadow_share`: of calls to copy, where disagreement is limited. Where no version was ever deployed, the
        one that the processes report to serve is deployed first. Raises NotFound, InvalidInput, Conflict."""
        package = self._package(ref)
        deployment = self._base(package.name)
        self._check_start(deployment, package, shadow_share, steps)
        if limits.disagreement is not None:
            from pelton.control.compatibility import check_comparable

            check_comparable(package.manifest)
        warnings = self._check_callers(deployment, package, force)
        plan = self._plan(package.name, tuple(steps), limits)
        if limits.disagreement is not None and deployment.shadow is not None:
            warnings.append(f"the shadow {deployment.shadow.version[:12]} gives its place to the candidate")
        now = self.clock()
        rollout = Rollout(
            new_id(), package.name, deployment.version, package.version, tuple(steps), limits,
            reason=why, started_at=now, step_at=now, actor=actor or UNKNOWN,
        )  # fmt: skip
        if dry_run:
            return Started(rollout, plan, deployment, False, warnings)
        if not deployment.revision:
            deployment = self._write(deployment, 0, actor, "deploy", "it served before the rollout")
        rollout, moved = moves.started(rollout, deployment, shadow_share)
        told = {"candidate": rollout.candidate, "stable": rollout.stable, "steps": list(rollout.steps)}
        begun, changed = self.deployments.change_rollout(
            rollout, 0, actor or UNKNOWN, "rollout", why, moved, {**told, "limits": msgspec.to_builtins(limits)}
        )
        assert changed is not None
        return Started(begun, plan, changed, True, warnings)

    def pause(self, name: str, why: str = "", expect: int | None = None, actor: str = "") -> Moved:
        """The candidate keeps its share, and no verdict moves it, for better or worse, until `resume`.

        `expect`, here and below: the revision of the rollout that the caller saw."""
        rollout, _ = self._open(name, expect)
        if rollout.status == "paused":
            return Moved(rollout, None, False, f"the rollout of {name} is paused already; nothing changed")
        return self._move(replace(rollout, status="paused", reason=why or "paused by hand"), "pause", why, actor)

    def resume(self, name: str, why: str = "", expect: int | None = None, actor: str = "") -> Moved:
        """Verdicts move the candidate again. One that had run out of time gets its hours once more."""
        rollout, _ = self._open(name, expect)
        if rollout.status == "running":
            return Moved(rollout, None, False, f"the rollout of {name} is running already; nothing changed")
        now = self.clock()
        limits = rollout.limits
        passed = (now - rollout.started_at) / HOUR
        if passed >= limits.max_hours:
            limits = replace(limits, max_hours=passed + limits.max_hours)
        resumed = replace(rollout, status="running", reason=why or "resumed by hand", step_at=now, limits=limits)
        return self._move(resumed, "resume", why, actor)

    def abort(self, name: str, why: str = "", expect: int | None = None, actor: str = "") -> Moved:
        """The candidate is out; the deployed version answers every call."""
        rollout, deployment = self._open(name, expect)
        move = moves.ended(rollout, deployment, self.clock(), "aborted", why or "aborted by hand")
        return self._move_both(move, "abort", why, actor)

    def promote(self, name: str, why: str = "", expect: int | None = None, actor: str = "") -> Moved:
        """The candidate becomes the deployed version now, whatever its evidence says."""
        rollout, deployment = self._open(name, expect)
        move = moves.promoted(rollout, deployment, self.clock(), why or "promoted by hand")
        return self._move_both(move, "promote", why, actor)

    def _move(self, rollout: Rollout, action: str, why: str, actor: str) -> Moved:
        moved, _ = self.deployments.change_rollout(rollout, rollout.revision, actor or UNKNOWN, action, why)
        return Moved(moved, None, True, f"the rollout of {moved.name}:{moved.candidate[:12]} is {moved.status}")

    def _move_both(self, move: Move, action: str, why: str, actor: str) -> Moved:
        rollout, deployment = self.deployments.change_rollout(
            move[0], move[0].revision, actor or UNKNOWN, action, why, move[1]
        )
        assert deployment is not None
        return Moved(
            rollout, deployment, True,
            f"the rollout of {rollout.name}:{rollout.candidate[:12]} is {rollout.status}; {deployment.version[:12]} answers "
            f"every call, revision {deployment.revision}",
        )  # fmt: skip

    def _open(self, name: str, expect: int | None) -> tuple[Rollout, Deployment]:
        """The open rollout of a model with its deployment."""
        deployment = self.deployments.get(name)
        rollout = self._rollout_of(deployment) if deployment is not None else None
        if deployment is None or rollout is None:
            raise NotFound(f"no rollout of {name!r} is open; start one: pelton rollout {name}:VERSION")
        if expect is not None and expect != rollout.revision:
            raise Conflict(
                f"the rollout of {name!r} is at revision {rollout.revision}, not {expect}; look at "
                f"`pelton rollout status {name}`, then try again"
            )
        return rollout, deployment

    def _base(self, name: str) -> Deployment:
        """What the candidate is compared with: the deployment, or, not written yet, one of what serves."""
        deployment = self.deployments.get(name)
        if deployment is None:
            deployment = Deployment(name, version=self._seen_serving(name))
        if not deployment.version:
            raise Conflict(
                f"no version of {name!r} is served, so there is nothing to compare with: pelton deploy {name}"
            )
        return deployment

    def _check_start(
        self, deployment: Deployment, package: Package, shadow_share: float, steps: Sequence[float]
    ) -> None:
        name = deployment.name
        if deployment.rollout:
            raise Conflict(
                f"a rollout of {name}:{deployment.candidate[:12]} is open; end it first: pelton rollout promote|abort {name}"
            )
        if package.version == deployment.version:
            raise InvalidInput(f"{name}:{package.version[:12]} is what is deployed; a rollout needs another version")
        if not 0 < shadow_share <= 1:
            raise InvalidInput(f"the share of calls to copy is above 0 and at most 1, not {shadow_share:g}")
        if len(steps) == 1:
            raise InvalidInput(f"one step only is no rollout; give smaller ones before it, or: pelton deploy {name}")

    def _check_callers(self, deployment: Deployment, package: Package, force: bool) -> list[str]:
        """Warnings where `force` is set; else raises InvalidInput where callers would break."""
        from pelton.control.compatibility import incompatible

        deployed = self._package(f"{deployment.name}:{deployment.version}")
        found = incompatible(deployed.manifest, package.manifest)
        if found and not force:
            raise InvalidInput(
                f"callers of {deployment.name}:{deployment.version[:12]} would break on {package.version[:12]}: "
                f"{'; '.join(found)} (--force starts it all the same)"
            )
        return [f"callers may break: {one}" for one in found]

    def _plan(self, name: str, steps: tuple[float, ...], limits: Limits) -> Plan:
        reports = [process.models[name] for process in self.deployments.processes().values() if name in process.models]
        return estimate(steps, limits, *rates(reports))


def parse_steps(text: str) -> tuple[float, ...]:
    """Shares out of percents with commas: "1,5,25,50,100". Raises InvalidInput."""
    try:
        steps = tuple(float(part.strip().removesuffix("%")) / 100 for part in text.split(","))
    except ValueError:
        raise InvalidInput(f"steps are percents with commas, such as 1,5,25,50,100, not {text!r}") from None
    return steps


def new_id() -> str:
    """The id of a rollout."""
    return f"ro_{secrets.token_hex(6)}"
