"""Deploy, undeploy, roll back, shadow: what a person changes about one model, each as one compare-and-swap."""

from __future__ import annotations

from msgspec.structs import replace

from pelton.control import moves
from pelton.control.answers import Changed
from pelton.control.desk import UNKNOWN, Desk, check_expected, version_ref
from pelton.deployments import Change, Deployment, Shadow
from pelton.errors import Conflict, InvalidInput, NotFound
from pelton.rollout.state import Rollout

PAGE = 100  # changes looked at in one go


class Deploys(Desk):
    """The operations on a deployment. Each raises Conflict where somebody else was first, or where `expect` (the
    revision that the caller saw, 0 for none) is not the present one."""

    def deploy(
        self, ref: str, why: str = "", expect: int | None = None, slow_ms: float | None = None, actor: str = ""
    ) -> Changed:
        """Makes a version the one that answers. `ref`: `name:version`, `name@alias`, or `name` for the newest.

        `slow_ms`: a call that takes longer counts as slow; 0: the model's target; None: as it was. Raises NotFound, and
        Conflict while a rollout is open."""
        package = self._package(ref)
        name, version = package.name, package.version
        deployment = self.deployments.get(name)
        revision = check_expected(deployment, name, expect)
        now = deployment or Deployment(name)
        if now.rollout:
            raise Conflict(
                f"a rollout of {name}:{now.candidate[:12]} is open; end it first: pelton rollout promote|abort {name}, "
                f"or pelton rollback {name}"
            )
        slow = now.slow_ms if slow_ms is None else _checked_slow(slow_ms)
        if now.version == version and now.slow_ms == slow:
            return Changed(now, False, f"{name}:{version[:12]} is deployed already; nothing changed")
        if deployment is None:
            now = replace(now, previous=self._seen_serving(name))
        new = replace(
            now, version=version, previous=_left(now, version), shadow=_still(now.shadow, version), slow_ms=slow
        )
        changed = self._write(new, revision, actor, "deploy", why)
        return Changed(changed, True, f"{name}:{version[:12]} is deployed, revision {changed.revision}")

    def undeploy(self, name: str, why: str = "", expect: int | None = None, actor: str = "") -> Changed:
        """Takes a model out of service; `rollback` brings it back. An open rollout is aborted. Raises NotFound."""
        deployment = self.deployments.get(name)
        if deployment is None:
            deployment = Deployment(name, version=self._seen_serving(name))
            if not deployment.version:
                raise NotFound(f"{name!r} is not deployed, and no process serves it")
        revision = check_expected(deployment, name, expect)
        if not deployment.version:
            return Changed(deployment, False, f"{name} is not deployed; nothing changed")
        rollout = self._rollout_of(deployment)
        if rollout is not None:
            ended, alone = moves.ended(rollout, deployment, self.clock(), "aborted", why or "undeployed")
            gone = replace(alone, version="", previous=deployment.version, shadow=None)
            _, changed = self.deployments.change_rollout(
                ended, rollout.revision, actor or UNKNOWN, "undeploy", why, gone
            )
            assert changed is not None
        else:
            gone = replace(deployment, version="", previous=deployment.version, shadow=None)
            changed = self._write(gone, revision, actor, "undeploy", why)
        return Changed(changed, True, f"{name} is not served any more, revision {changed.revision}")

    def rollback(self, name: str, why: str = "", to: str = "", expect: int | None = None, actor: str = "") -> Changed:
        """Undoes the last change of version: an open rollout is aborted, else the version that served before is back.

        `to` names another version of the model, or the first digits of one. Raises NotFound, and Conflict where there
        is nothing to go back to, which a rollback right after a rollback is, too."""
        deployment = self.deployments.get(name)
        if deployment is None:
            raise NotFound(f"{name!r} was never deployed, so there is nothing to go back to")
        revision = check_expected(deployment, name, expect)
        target = self._package(f"{name}:{to}").version if to else ""
        rollout = self._rollout_of(deployment)
        if rollout is not None:
            return self._abort_for_rollback(rollout, deployment, target, why, actor)
        target = target or self._before(deployment)
        if target == deployment.version:
            raise Conflict(f"{name}:{target[:12]} is what is deployed; there is nothing to roll back")
        shadow = _still(deployment.shadow, target)
        new = replace(deployment, version=target, previous=deployment.version, shadow=shadow)
        changed = self._write(new, revision, actor, "rollback", why)
        return Changed(changed, True, f"{name} is back at {target[:12]}, revision {changed.revision}")

    def shadow(
        self,
        name: str,
        version: str = "",
        share: float = 0.1,
        tolerance: float = 0.01,
        segment: str = "",
        why: str = "",
        expect: int | None = None,
        actor: str = "",
    ) -> Changed:
        """Copies `share` of the calls to a version (`VERSION` or `@ALIAS`) whose answers are compared; "": to none.

        Raises NotFound, InvalidInput."""
        deployment = self._served(name)
        revision = check_expected(deployment, name, expect)
        shadow = self._shadow(deployment, version, share, tolerance, segment) if version else None
        if shadow == deployment.shadow:
            return Changed(deployment, False, f"{name} has that shadow already; nothing changed")
        rollout = self._rollout_of(deployment)
        if rollout is not None and rollout.limits.disagreement is not None:
            raise Conflict(f"the rollout {rollout.id} of {name!r} compares answers itself; promote or abort it first")
        changed = self._write(replace(deployment, shadow=shadow), revision, actor, "shadow", why, rollout)
        told = f"copies of {shadow.share:.3g} of its calls go to {shadow.version[:12]}" if shadow else "has no shadow"
        return Changed(
            changed, True, f"{name}: {told}, revision {changed.revision}" if shadow else f"{name} {told} now"
        )

    def _shadow(self, deployment: Deployment, version: str, share: float, tolerance: float, segment: str) -> Shadow:
        if not 0 < share <= 1:
            raise InvalidInput(
                f"the share of calls to copy is above 0 and at most 1 (0.1 is one in ten), not {share:g}"
            )
        if not 0 <= tolerance < float("inf"):
            raise InvalidInput(f"the tolerance is a relative difference, 0 or more, not {tolerance:g}")
        package = self._package(version_ref(deployment.name, version))
        if package.version == deployment.version:
            raise InvalidInput(f"{deployment.name}:{package.version[:12]} is what answers; a shadow is another version")
        from pelton.control.compatibility import check_comparable  # it brings numpy

        check_comparable(package.manifest)
        return Shadow(package.version, share, tolerance, segment)

    def _abort_for_rollback(
        self, rollout: Rollout, deployment: Deployment, target: str, why: str, actor: str
    ) -> Changed:
        ended, alone = moves.ended(rollout, deployment, self.clock(), "aborted", why or "rolled back by hand")
        if target and target != alone.version:
            alone = replace(alone, version=target, previous=alone.version, shadow=_still(alone.shadow, target))
        _, changed = self.deployments.change_rollout(ended, rollout.revision, actor or UNKNOWN, "rollback", why, alone)
        assert changed is not None
        return Changed(
            changed, True,
            f"the rollout of {rollout.name}:{rollout.candidate[:12]} is aborted; {changed.version[:12]} answers every call, "
            f"revision {changed.revision}",
        )  # fmt: skip

    def _before(self, deployment: Deployment) -> str:
        """The version to go back to. Raises Conflict where there is none, or where going back has just been done."""
        name = deployment.name
        last = self.deployments.history(name, 1)
        made = last[0] if last and last[0].action == "rollback" else self._made_current(deployment)
        if made is not None and made.action == "rollback":
            other = deployment.previous[:12]
            onward = f"; if you want {other}, say so: pelton rollback {name} --to {other}" if other else ""
            raise Conflict(f"{name!r} was rolled back already, at revision {made.revision} by {made.actor}{onward}")
        if not deployment.previous:
            raise Conflict(
                f"no version of {name!r} served before {deployment.version[:12]}; name one: pelton rollback {name} --to VERSION"
            )
        return deployment.previous

    def _made_current(self, deployment: Deployment) -> Change | None:
        """The change that made the deployed version the deployed one."""
        found: Change | None = None
        before = deployment.revision + 1
        while page := self.deployments.history(deployment.name, PAGE, before):
            for change in page:
                if change.deployment.version != deployment.version:
                    return found
                found = change
            before = page[-1].revision
        return found


def _left(now: Deployment, version: str) -> str:
    """The version that served before, once `version` serves."""
    served = now.version or now.previous
    if served and served != version:
        return served
    return now.previous if now.previous != version else ""


def _still(shadow: Shadow | None, version: str) -> Shadow | None:
    """A shadow that has become the deployed version is none."""
    return None if shadow is not None and shadow.version == version else shadow


def _checked_slow(slow_ms: float) -> float:
    if not 0 <= slow_ms < float("inf"):
        raise InvalidInput(f"slow_ms is a time in milliseconds, or 0 for the model's own target, not {slow_ms:g}")
    return slow_ms
