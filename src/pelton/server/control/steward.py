"""Moves open rollouts by their evidence. Every process does it; the store lets exactly one of them make each move.

Nothing is kept between two looks: what a rollout has reached stands in the store, so a process may be killed at any
time, and another one, or its successor, goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from pelton.control import moves
from pelton.deployments import Deployment, Deployments
from pelton.errors import Conflict
from pelton.rollout import OPEN, Decision, Rollout, decide

log = logging.getLogger(__name__)

ACTOR: Final = "steward"
ACTIONS: Final = {"advance": "advance", "promote": "promote", "roll_back": "rollback", "give_up": "hold"}


class Steward:
    """`clock` gives seconds since 1970."""

    def __init__(self, deployments: Deployments, clock: Callable[[], float] = time.time) -> None:
        self._deployments = deployments
        self._clock = clock

    def tick(self, desired: Mapping[str, Deployment], unfit: Mapping[tuple[str, str], str]) -> None:
        """Looks at every rollout that is named in `desired`, the state of the store as far as it is known.

        `unfit`: (model, version) -> why this process can never serve it."""
        for known in desired.values():
            if known.rollout:
                self._look(known.rollout, known.name, unfit)

    def _look(self, key: str, name: str, unfit: Mapping[tuple[str, str], str]) -> None:
        rollout, deployment = self._deployments.rollout(key), self._deployments.get(name)
        if rollout is None or deployment is None or deployment.rollout != key or rollout.status not in OPEN:
            return
        now = self._clock()
        reason = unfit.get((name, rollout.candidate))
        if reason is not None:
            decision = Decision("roll_back", reason)
        else:
            decision = decide(rollout, self._deployments.evidence(name, rollout.routes), now)
        if decision.kind != "hold":
            self._move(rollout, deployment, decision, now)

    def _move(self, rollout: Rollout, deployment: Deployment, decision: Decision, now: float) -> None:
        moved, changed = _outcome(rollout, deployment, decision, now)
        try:
            self._deployments.change_rollout(
                moved, rollout.revision, ACTOR, ACTIONS[decision.kind], decision.reason, changed, _told(decision)
            )
        except Conflict:  # another process, or a person, was first
            log.debug("model %s: its rollout was moved by another", rollout.name)
            return
        log.info(
            "model %s: rollout of %s: %s (%s)", rollout.name, rollout.candidate[:12], moved.status, decision.reason
        )


def _outcome(
    rollout: Rollout, deployment: Deployment, decision: Decision, now: float
) -> tuple[Rollout, Deployment | None]:
    """What the store shall hold."""
    if decision.kind == "advance":
        return moves.advanced(rollout, deployment, now, decision.reason)
    if decision.kind == "promote":
        return moves.promoted(rollout, deployment, now, decision.reason)
    if decision.kind == "roll_back":
        return moves.ended(rollout, deployment, now, "rolled_back", decision.reason)
    return replace(rollout, status="held", reason=decision.reason), None


def _told(decision: Decision) -> dict[str, Any]:
    return {"figures": decision.figures} if decision.figures else {}
