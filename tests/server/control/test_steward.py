"""The steward: verdicts become changes of the store, by exactly one of all processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from pelton.control import moves
from pelton.deployments import Deployment, Deployments
from pelton.rollout import Arm, Limits, Rollout, Stretch
from pelton.server.control.steward import ACTOR, Steward
from pelton.store import Store
from pelton.testing import ManualClock

STABLE, CANDIDATE = "a" * 64, "b" * 64
KEY = ("m", CANDIDATE)


class Running:
    """A rollout of model m, at its first step of 50 %, with a step of 80 % before the last."""

    def __init__(self, store: Store) -> None:
        self.clock = ManualClock(1000.0)
        self.deployments = Deployments(store, self.clock)
        deployed = self.deployments.change(Deployment("m", version=STABLE), 0, "me", "deploy")
        limits = Limits(min_calls=50, error_increase=0.05, slow_increase=0.05, max_hours=1.0)
        new = Rollout("r", "m", STABLE, CANDIDATE, (0.5, 0.8, 1.0), limits, started_at=1000.0, step_at=1000.0)
        rollout, moved = moves.started(new, deployed, 0.1)
        self.deployments.change_rollout(rollout, 0, "me", "rollout", "", moved)

    def see(self, calls: int, errors: int = 0) -> None:
        """Evidence of the present step: so many calls of each version, with the candidate's errors."""
        now = self.deployment
        stretch = Stretch(now.revision, now.weight, Arm(calls), Arm(calls, errors))
        self.deployments.put_evidence("m", "process", stretch)

    def tick(self, unfit: dict[tuple[str, str], str] | None = None) -> None:
        Steward(self.deployments, self.clock).tick({"m": self.deployment}, unfit or {})

    @property
    def deployment(self) -> Deployment:
        found = self.deployments.get("m")
        assert found is not None
        return found

    @property
    def rollout(self) -> Rollout:
        found = self.deployments.rollout("r")
        assert found is not None
        return found


@pytest.fixture
def running(store_url: str) -> Iterator[Running]:
    store = Store.open(store_url)
    yield Running(store)
    store.close()


def test_nothing_moves_without_evidence(running: Running) -> None:
    before = running.rollout, running.deployment
    running.tick()
    assert (running.rollout, running.deployment) == before


def test_a_good_candidate_goes_step_by_step_until_it_is_promoted(running: Running) -> None:
    running.see(60)
    running.tick()
    assert (running.rollout.step, running.rollout.status, running.deployment.weight) == (1, "running", 0.8)
    assert running.rollout.routes == (2, 3)
    running.tick()
    assert running.rollout.step == 1, "the calls of the step before do not count for this one"
    running.see(5000)
    running.tick()
    assert running.rollout.status == "promoted"
    now = running.deployment
    assert (now.version, now.previous, now.candidate, now.weight, now.rollout) == (CANDIDATE, STABLE, "", 0.0, "")
    changes = running.deployments.history("m")
    assert [change.action for change in changes] == ["promote", "advance", "rollout", "deploy"]
    assert {change.actor for change in changes[:2]} == {ACTOR}


def test_a_bad_candidate_is_out(running: Running) -> None:
    running.see(100, errors=50)
    running.tick()
    assert (running.rollout.status, running.deployment.candidate) == ("rolled_back", "")
    assert "errors" in running.rollout.reason
    assert running.deployment.version == STABLE


def test_a_candidate_that_cannot_be_served_is_out_at_once(running: Running) -> None:
    running.tick({KEY: "it cannot be served: golden request 0"})
    assert (running.rollout.status, running.rollout.reason) == (
        "rolled_back",
        "it cannot be served: golden request 0",
    )


def test_one_without_a_verdict_in_time_waits_for_a_person(running: Running) -> None:
    running.clock.advance(3601)
    running.tick()
    assert (running.rollout.status, running.deployment.weight) == ("held", 0.5)
    before = running.rollout.revision
    running.see(100)
    running.tick()
    assert running.rollout.revision == before, "only a person moves it on"
    running.see(200, errors=180)
    running.tick()
    assert running.rollout.status == "rolled_back"


def test_a_paused_rollout_stays_unless_its_candidate_harms(running: Running) -> None:
    running.deployments.change_rollout(
        replace(running.rollout, status="paused"), running.rollout.revision, "me", "pause"
    )
    running.see(100)
    running.tick()
    assert running.rollout.status == "paused"
    running.see(200, errors=180)
    running.tick()
    assert (running.rollout.status, running.deployment.candidate) == ("rolled_back", "")


def test_of_many_stewards_exactly_one_makes_each_move(running: Running) -> None:
    running.see(60)
    desired = {"m": running.deployment}
    ready, failures = threading.Barrier(6), list[BaseException]()

    def tick() -> None:
        steward = Steward(running.deployments, running.clock)
        ready.wait(20)
        try:
            steward.tick(desired, {})
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads: list[Any] = [threading.Thread(target=tick) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert running.rollout.step == 1
    assert [change.action for change in running.deployments.history("m")] == ["advance", "rollout", "deploy"]
