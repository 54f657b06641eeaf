"""How a rollout and its deployment move together. Pure: state and time go in, the next state of both comes out.

A person orders these moves through `Control`, the steward of a server by its verdicts; both write what comes out with
`Deployments.change_rollout`, which is a compare-and-swap of both.
"""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from pelton.deployments import Deployment, Shadow
from pelton.rollout.state import Rollout

Move = tuple[Rollout, Deployment]
FULL = 1.0  # the weight of the last step: promote


def started(rollout: Rollout, deployment: Deployment, shadow_share: float) -> Move:
    """The first step. Where disagreement is limited, the candidate also answers copies of `shadow_share` of the calls."""
    shadow = deployment.shadow
    if rollout.limits.disagreement is not None:
        shadow = Shadow(rollout.candidate, shadow_share)
    moved = replace(
        deployment,
        candidate=rollout.candidate,
        weight=rollout.weight,
        rollout=rollout.id,
        shadow=shadow,
        slow_ms=rollout.limits.latency_ms or deployment.slow_ms,
    )
    return replace(rollout, routes=(deployment.revision + 1,)), moved


def advanced(rollout: Rollout, deployment: Deployment, now: float, reason: str) -> Move:
    """The next step; where that is the last one, the candidate is promoted."""
    step = rollout.step + 1
    if step >= len(rollout.steps) or rollout.steps[step] >= FULL:
        return promoted(rollout, deployment, now, reason)
    moved = replace(deployment, weight=rollout.steps[step])
    routes = (*rollout.routes, deployment.revision + 1)
    return replace(rollout, step=step, step_at=now, routes=routes, reason=reason), moved


def promoted(rollout: Rollout, deployment: Deployment, now: float, reason: str) -> Move:
    """The candidate becomes the deployed version; the one before it stays to go back to."""
    moved = replace(_alone(rollout, deployment), version=rollout.candidate, previous=rollout.stable)
    last = len(rollout.steps) - 1
    return replace(rollout, status="promoted", step=last, step_at=now, ended_at=now, reason=reason), moved


def ended(
    rollout: Rollout, deployment: Deployment, now: float, status: Literal["rolled_back", "aborted"], reason: str
) -> Move:
    """The candidate is out; what was deployed answers every call."""
    return replace(rollout, status=status, ended_at=now, reason=reason), _alone(rollout, deployment)


def rerouted(rollout: Rollout, deployment: Deployment) -> Rollout:
    """The rollout after a change of its deployment that is not a step of its own (a shadow, say): its calls go on
    counting, under the revision that the deployment is about to have."""
    return replace(rollout, routes=(*rollout.routes, deployment.revision + 1))


def _alone(rollout: Rollout, deployment: Deployment) -> Deployment:
    """Without the candidate, and without the shadow where that was the candidate."""
    shadow = deployment.shadow
    if shadow is not None and shadow.version == rollout.candidate:
        shadow = None
    return replace(deployment, candidate="", weight=0.0, rollout="", shadow=shadow)
