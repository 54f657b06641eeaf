from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from pelton.control import Control
from pelton.control.rollouts import parse_steps
from pelton.deployments import Deployment, Shadow
from pelton.errors import Conflict, InvalidInput, NotFound
from pelton.events import Events
from pelton.rollout.state import Arm, Limits, Stretch
from pelton.types import TensorSpec

STEPS = (0.05, 0.25, 1.0)


@pytest.fixture
def two(control, add) -> tuple[str, str]:
    """The deployed version and another one."""
    one, two = add("v1"), add("v2")
    control.deploy(f"fraud:{one}")
    return one, two


def test_a_rollout_gives_the_candidate_its_first_share(control, two, clock):
    one, candidate = two
    started = control.start_rollout(f"fraud:{candidate}", STEPS, why="new features", actor="ann@desk")
    rollout = started.rollout
    assert started.started
    assert (rollout.stable, rollout.candidate, rollout.steps, rollout.step, rollout.status) == (
        one,
        candidate,
        STEPS,
        0,
        "running",
    )
    assert (rollout.routes, rollout.started_at, rollout.actor) == ((2,), clock(), "ann@desk")
    assert started.deployment == Deployment("fraud", 2, one, candidate=candidate, weight=0.05, rollout=rollout.id)
    assert control.deployments.rollout(rollout.id) == rollout
    event = Events(control.store).latest(1)[0]
    assert (event.action, event.actor, event.details["steps"]) == ("rollout", "ann@desk", list(STEPS))


def test_a_dry_run_plans_and_changes_nothing(control, two, report):
    one, candidate = two
    report("p1", versions={one: "serves"}, calls_per_second=30.0, errors_share=0.01, slow_share=0.02)
    report("p2", versions={one: "serves"}, calls_per_second=10.0, errors_share=0.05)
    planned = control.start_rollout(f"fraud:{candidate}", STEPS, dry_run=True)
    assert not planned.started
    assert planned.rollout.revision == 0
    assert planned.plan.calls_per_second == 40.0
    assert planned.plan.error_share == pytest.approx(0.02)
    assert planned.plan.slow_share == pytest.approx(0.015)
    assert planned.plan.seconds > 0
    assert control.deployment("fraud").revision == 1
    assert control.rollouts("fraud").rollouts == []


def test_without_a_deployment_what_the_processes_serve_is_deployed_first(control, add, report):
    one, candidate = add("v1"), add("v2")
    report("p1", versions={one: "serves", candidate: "warm"})
    assert control.start_rollout(f"fraud:{candidate}", dry_run=True).rollout.stable == one
    assert control.deployments.get("fraud") is None
    started = control.start_rollout(f"fraud:{candidate}", actor="ann")
    assert [(change.action, change.deployment.version) for change in control.history("fraud").changes] == [
        ("rollout", one),
        ("deploy", one),
    ]
    assert started.rollout.routes == (2,)


def test_where_nothing_is_served_there_is_nothing_to_compare_with(control, add):
    add("v1")
    with pytest.raises(Conflict, match="pelton deploy fraud"):
        control.start_rollout("fraud")


def test_a_rollout_of_the_deployed_version_is_refused(control, two):
    with pytest.raises(InvalidInput, match="another version"):
        control.start_rollout(f"fraud:{two[0]}")


def test_while_a_rollout_is_open_no_other_starts_and_nothing_is_deployed(control, two, add):
    third = add("v3")
    control.start_rollout(f"fraud:{two[1]}")
    with pytest.raises(Conflict, match="end it first"):
        control.start_rollout(f"fraud:{third}")
    with pytest.raises(Conflict, match="end it first"):
        control.deploy(f"fraud:{third}")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"inputs": (TensorSpec("x", "FP32", (4,)),)}, r"input 'x' was \[3\] and is \[4\]"),
        ({"inputs": (TensorSpec("z", "FP32", (3,)),)}, "input 'x' is not taken any more"),
        ({"inputs": (TensorSpec("x", "FP64", (3,)),)}, "input 'x' was tensor FP32 and is tensor FP64"),
        ({"outputs": (TensorSpec("y", "FP32", (2,)),)}, r"output 'y' was FP32\[1\] and is FP32\[2\]"),
        ({"outputs": (TensorSpec("score", "FP32", (1,)),)}, "output 'y' is gone"),
    ],
)
def test_a_candidate_that_would_break_callers_is_refused_unless_forced(control, two, add, changed, told):
    other = add("other", **changed)
    with pytest.raises(InvalidInput, match=told):
        control.start_rollout(f"fraud:{other}")
    started = control.start_rollout(f"fraud:{other}", force=True)
    assert started.started
    assert any("callers may break" in warning for warning in started.warnings)


def test_what_only_widens_does_not_break_callers(control, two, add):
    wider = add(
        "wider",
        inputs=(TensorSpec("x", "FP32", (-1,)),),
        outputs=(TensorSpec("y", "FP32", (1,)), TensorSpec("why", "BYTES", (1,))),
    )
    assert control.start_rollout(f"fraud:{wider}").warnings == []


@pytest.mark.parametrize("steps", [(), (1.0,), (0.5, 0.1, 1.0), (0.1, 0.5), (0.0, 1.0), (0.5, 1.5)])
def test_steps_that_cannot_be_carried_out_are_refused(control, two, steps):
    with pytest.raises(InvalidInput, match="step"):
        control.start_rollout(f"fraud:{two[1]}", steps)
    assert control.deployment("fraud").revision == 1


def test_a_limit_of_disagreement_sets_the_candidate_as_shadow_until_the_end(control, two, add):
    third = add("v3")
    control.shadow("fraud", third)
    started = control.start_rollout(f"fraud:{two[1]}", limits=Limits(disagreement=0.02), shadow_share=0.5)
    assert started.deployment.shadow == Shadow(two[1], 0.5)
    assert any("gives its place" in warning for warning in started.warnings)
    assert control.promote("fraud").deployment.shadow is None


def test_a_latency_limit_decides_which_calls_count_as_slow(control, two):
    started = control.start_rollout(f"fraud:{two[1]}", limits=Limits(latency_ms=15.0))
    assert started.deployment.slow_ms == 15.0


# ---- by hand


def test_promoting_deploys_the_candidate_and_keeps_the_other_to_go_back_to(control, two):
    one, candidate = two
    control.start_rollout(f"fraud:{candidate}")
    moved = control.promote("fraud", "good", actor="ann@desk")
    assert moved.deployment == Deployment("fraud", 3, candidate, one)
    assert (moved.rollout.status, moved.rollout.reason) == ("promoted", "good")
    assert moved.rollout.ended_at > 0
    assert control.rollback("fraud").deployment.version == one


def test_aborting_takes_the_candidate_out(control, two):
    control.start_rollout(f"fraud:{two[1]}")
    moved = control.abort("fraud", "not today")
    assert moved.deployment == Deployment("fraud", 3, two[0])
    assert (moved.rollout.status, moved.rollout.reason) == ("aborted", "not today")
    with pytest.raises(NotFound, match="no rollout"):
        control.abort("fraud")


def test_pausing_leaves_the_share_and_resuming_goes_on(control, two):
    control.start_rollout(f"fraud:{two[1]}")
    assert control.pause("fraud").rollout.status == "paused"
    assert not control.pause("fraud").changed
    assert control.deployment("fraud").weight == 0.01
    assert control.resume("fraud").rollout.status == "running"
    assert not control.resume("fraud").changed
    assert control.deployment("fraud").revision == 2


def test_a_rollout_that_ran_out_of_time_gets_its_hours_again_when_resumed(control, two, clock):
    rollout = control.start_rollout(f"fraud:{two[1]}", limits=Limits(max_hours=2.0)).rollout
    clock.advance(3 * 3600.0)
    assert control.status("fraud").models[0].rollout.verdict == "give_up"
    control.pause("fraud")
    resumed = control.resume("fraud").rollout
    assert resumed.started_at == rollout.started_at
    assert resumed.limits.max_hours == pytest.approx(5.0)
    assert control.status("fraud").models[0].rollout.verdict == "hold"


@pytest.mark.parametrize("order", ["pause", "resume", "abort", "promote"])
def test_orders_about_a_rollout_need_one_and_its_present_revision(control, two, order):
    with pytest.raises(NotFound, match="no rollout of 'fraud' is open"):
        getattr(control, order)("fraud")
    control.start_rollout(f"fraud:{two[1]}")
    with pytest.raises(Conflict, match="revision 1, not 9"):
        getattr(control, order)("fraud", expect=9)


def test_of_operators_that_promote_abort_and_roll_back_at_once_one_wins(control, two):
    control.start_rollout(f"fraud:{two[1]}")
    orders = [
        lambda: control.promote("fraud"),
        lambda: control.abort("fraud"),
        lambda: control.rollback("fraud", expect=2),
    ]

    def give(order) -> bool:
        try:
            return bool(order().changed)
        except (Conflict, NotFound):
            return False

    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(give, orders))
    assert sorted(outcomes) == [False, False, True]
    assert control.deployment("fraud").revision == 3
    assert len(control.history("fraud").changes) == 3


def test_the_status_tells_the_verdict_on_the_evidence_of_all_processes(control, two):
    rollout = control.start_rollout(f"fraud:{two[1]}", STEPS).rollout
    for process in ("p1", "p2"):
        stretch = Stretch(rollout.routes[0], 0.05, Arm(calls=1900, errors=10), Arm(calls=100, errors=30))
        control.deployments.put_evidence("fraud", process, stretch)
    state = control.status("fraud").models[0].rollout
    assert state.verdict == "roll_back"
    assert "60 of 200" in state.reason
    assert state.evidence[0].candidate.errors == 60
    assert state.figures["candidate_calls"] == 200


@pytest.mark.parametrize(
    ("text", "steps"),
    [("1,5,25,50,100", (0.01, 0.05, 0.25, 0.5, 1.0)), ("10%, 100%", (0.1, 1.0)), ("0.5,100", (0.005, 1.0))],
)
def test_steps_are_written_in_percent(text, steps):
    assert parse_steps(text) == pytest.approx(steps)


@pytest.mark.parametrize("text", ["", "a,b", "1;5", "1,,5"])
def test_steps_that_are_no_percents_are_refused(text):
    with pytest.raises(InvalidInput, match="percents with commas"):
        parse_steps(text)


def test_two_controls_of_one_store_see_each_others_rollouts(control, two, clock):
    control.start_rollout(f"fraud:{two[1]}")
    other = Control(control.store, control.registry, clock)
    assert other.abort("fraud").changed
