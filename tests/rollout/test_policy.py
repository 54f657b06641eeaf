"""What becomes of a rollout: each verdict with its reason, and what must hold for any evidence."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelton.rollout import Arm, Decision, Limits, Pairs, Rollout, Stretch, decide
from pelton.rollout.policy import alphas

STEPS = (0.01, 0.1, 0.5, 1.0)
HOUR = 3600.0


def rollout(step: int = 1, limits: Limits = Limits(), **changes: Any) -> Rollout:
    given = Rollout("r1", "fraud", "a" * 64, "b" * 64, STEPS, limits, step=step, routes=(7, 8, 9), started_at=100.0)
    return msgspec.structs.replace(given, step_at=200.0, **changes)


def stretch(
    weight: float, calls: int, errors: tuple[int, int] = (0, 0), slow: tuple[int, int] = (0, 0), route: int = 8
) -> Stretch:
    """`calls` of both, split as the weight says. Events: (deployed, candidate)."""
    mine = round(calls * weight)
    return Stretch(route, weight, Arm(calls - mine, errors[0], slow[0]), Arm(mine, errors[1], slow[1]))


def test_without_any_call_it_holds_and_says_so():
    found = decide(rollout(), [], 300.0)
    assert found.kind == "hold"
    assert found.reason == "0 of 100 candidate calls at 10 %"


def test_a_step_is_left_after_its_calls_and_its_time():
    limits = Limits(min_calls=100, min_seconds=60)
    few, enough = [stretch(0.1, 990)], [stretch(0.1, 1000)]
    assert decide(rollout(0, limits), enough, 500.0).kind == "hold"  # they were of another step
    assert decide(rollout(1, limits), few, 500.0).reason == "99 of 100 candidate calls at 10 %"
    assert decide(rollout(1, limits), enough, 230.0).reason == "10 % is kept for 30 s more"
    assert decide(rollout(1, limits), enough, 261.0).kind == "advance"


def test_the_last_step_needs_the_verdict_on_every_metric():
    limits = Limits(min_calls=100)
    short = decide(rollout(2, limits), [stretch(0.5, 400)], 300.0)
    assert short.kind == "hold"
    assert "errors: candidate 0 of 200, deployed 0 of 200; needs about" in short.reason
    assert "more candidate calls to show an increase below 1 %" in short.reason
    slow = decide(rollout(2, limits), [stretch(0.5, 4000, slow=(1500, 1500))], 300.0)
    assert slow.kind == "hold"
    assert slow.reason.startswith("slow: candidate 1,500 of 2,000")
    assert slow.figures["metrics"]["errors"]["verdict"] == "passed"
    assert decide(rollout(2, limits), [stretch(0.5, 4000)], 300.0).kind == "promote"


def test_the_calls_that_are_said_to_be_needed_are_enough():
    missing = decide(rollout(2), [stretch(0.5, 400, (2, 2))], 300.0).figures["metrics"]["errors"]["calls_needed"]
    assert 500 < missing < 5000
    share = (4.5 / 401) * (missing * 1.1)
    more = stretch(0.5, 400 + round(2.2 * missing), (2 + round(share), 2 + round(share)))
    assert decide(rollout(2), [more], 300.0).figures["metrics"]["errors"]["verdict"] == "passed"


def test_evidence_of_all_steps_counts_for_the_verdict():
    parts = [stretch(0.1, 6000, (20, 2), route=7), stretch(0.5, 900, (3, 3), route=8)]
    assert decide(rollout(2), parts, 300.0).kind == "promote"
    assert decide(rollout(2), parts[1:], 300.0).kind == "hold"


def test_errors_of_the_candidate_roll_back_and_the_reason_has_the_counts():
    found = decide(rollout(1), [stretch(0.1, 500, (4, 6))], 201.0)
    assert found.kind == "roll_back"
    assert found.reason.startswith("errors: candidate 6 of 50, deployed 4 of 450; 6 fell on the candidate where 1.0")
    figures = found.figures["metrics"]["errors"]
    assert figures["log_e"] > figures["log_e_limit"] == pytest.approx(math.log(1 / 0.035))


def test_slow_calls_roll_back_too_and_the_worst_metric_is_named():
    assert "slow" in decide(rollout(1), [stretch(0.1, 500, slow=(4, 9))], 201.0).reason
    both = decide(rollout(1), [stretch(0.1, 500, errors=(4, 6), slow=(4, 40))], 201.0)
    assert both.reason.startswith("slow: candidate 40")


def test_harm_is_seen_before_the_calls_of_a_step_are_complete():
    assert decide(rollout(0), [stretch(0.01, 500, (0, 4))], 201.0).kind == "roll_back"


def test_a_better_candidate_is_not_rolled_back():
    found = decide(rollout(2), [stretch(0.5, 4000, (200, 20))], 300.0)
    assert found.kind == "promote"


def test_callers_that_call_often_count_once_and_cannot_carry_a_broken_candidate_through():
    """Twenty callers, two of them on the candidate, where everything fails: their errors count once each."""
    busy = Stretch(8, 0.1, Arm(90_000, repeats=89_982), Arm(10_000, errors=2, repeats=9_998))
    found = decide(rollout(1), [busy], 300.0)
    assert found.kind == "advance"  # to more callers
    last = msgspec.structs.replace(rollout(2), steps=(0.01, 0.05, 0.1, 1.0))
    held = decide(last, [busy], 300.0)
    assert held.kind == "hold"
    assert "errors: candidate 2 of 2, deployed 0 of 18" in held.reason
    blind = msgspec.structs.replace(busy, stable=Arm(90_000), candidate=Arm(10_000, errors=2))
    assert decide(last, [blind], 300.0).kind == "promote"  # what would happen if every call counted


def test_a_process_without_the_candidate_does_not_make_it_look_good():
    lacking = Stretch(8, 0.5, Arm(1_000_000, 10_000), Arm(150, 2))
    assert decide(rollout(2), [lacking], 300.0).kind == "hold"


def test_too_old_without_a_verdict_is_given_up_but_a_verdict_comes_first():
    limits = Limits(max_hours=2)
    late = 100.0 + 2 * HOUR + 1
    assert decide(rollout(1, limits), [], late - 2).kind == "hold"
    gone = decide(rollout(1, limits), [], late)
    assert gone.kind == "give_up"
    assert gone.reason == "no verdict in 2 hours: 0 of 100 candidate calls at 10 %"
    assert decide(rollout(2, limits), [stretch(0.5, 4000)], late).kind == "promote"
    assert decide(rollout(1, limits), [stretch(0.1, 500, (4, 9))], late).kind == "roll_back"


@pytest.mark.parametrize("status", ["paused", "held", "promoted", "rolled_back", "aborted"])
def test_only_a_running_rollout_goes_on(status: str):
    assert decide(rollout(1, status=status), [stretch(0.1, 90_000)], 1e9).kind == "hold"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("paused", "roll_back"),
        ("held", "roll_back"),
        ("promoted", "hold"),
        ("rolled_back", "hold"),
        ("aborted", "hold"),
    ],
)
def test_a_candidate_that_harms_is_rolled_back_as_long_as_it_takes_calls(status: str, kind: str):
    assert decide(rollout(1, status=status), [stretch(0.1, 500, (4, 9))], 300.0).kind == kind


def test_evidence_of_other_routes_is_not_its_own():
    assert decide(rollout(1), [stretch(0.1, 500, (4, 9), route=3)], 300.0).kind == "hold"


def pairs(count: int, different: int) -> Stretch:
    return Stretch(8, 0.5, Arm(2000), Arm(2000), Pairs(pairs=count, disagreements=different))


def test_answers_that_differ_too_often_roll_back_and_answers_that_do_not_are_needed_to_promote():
    limits = Limits(disagreement=0.02)
    assert decide(rollout(2, limits), [pairs(400, 40)], 300.0).kind == "roll_back"
    unknown = decide(rollout(2, limits), [pairs(0, 0)], 300.0)
    assert (unknown.kind, unknown.reason) == ("hold", "disagreement: no copied call was answered by both yet")
    between = decide(rollout(2, limits), [pairs(400, 8)], 300.0)
    assert between.kind == "hold"
    assert "8 of 400 copied calls; their share is between" in between.reason
    assert decide(rollout(2, limits), [pairs(3000, 20)], 300.0).kind == "promote"
    assert decide(rollout(2), [pairs(400, 400)], 300.0).kind == "promote"  # not looked at


def test_all_calls_at_once_wait_for_the_least_number_and_have_nobody_to_be_compared_with():
    whole = rollout(0, Limits(min_calls=50, min_seconds=30), steps=(1.0,))
    assert decide(rollout(0, Limits(min_calls=0), steps=(1.0,)), [], 200.0).kind == "promote"
    assert decide(whole, [stretch(1.0, 49)], 300.0).kind == "hold"
    assert decide(whole, [stretch(1.0, 50, errors=(0, 1))], 210.0).kind == "hold"
    assert decide(whole, [stretch(1.0, 50, errors=(0, 1))], 231.0).kind == "promote"
    broken = decide(whole, [stretch(1.0, 40, errors=(0, 20))], 201.0)
    assert broken.kind == "roll_back"
    assert broken.reason == "errors: candidate 20 of 40, surely more than 1 %"


def test_the_parts_of_alpha_add_up_to_alpha():
    for limits in (Limits(alpha=0.05), Limits(alpha=0.01, disagreement=0.1)):
        assert sum(alphas(limits).values()) == pytest.approx(limits.alpha)


@pytest.mark.parametrize(("base", "mine", "expected"), [(0.01, 0.01, "promoted"), (0.01, 0.08, "rolled_back")])
def test_whole_lives_end_as_they_should(base: float, mine: float, expected: str):
    """Steps, weights and verdicts together, through `decide` alone."""
    ends = [_live(np.random.default_rng(seed), base, mine) for seed in range(8)]
    assert ends.count(expected) >= 7


def _live(rng: np.random.Generator, base: float, mine: float) -> str:
    now, state = 100.0, rollout(0, Limits(min_calls=50), routes=(0, 1, 2))
    evidence = [Stretch(route, weight) for route, weight in enumerate(STEPS[:-1])]
    while state.status == "running":
        part = evidence[state.step]
        calls = int(rng.binomial(1000, state.weight))
        part.candidate.add(Arm(calls, int(rng.binomial(calls, mine))))
        part.stable.add(Arm(1000 - calls, int(rng.binomial(1000 - calls, base))))
        now += 5.0
        found = decide(state, evidence, now)
        if found.kind == "advance":
            state = msgspec.structs.replace(state, step=state.step + 1, step_at=now)
        elif found.kind != "hold":
            ends = {"promote": "promoted", "roll_back": "rolled_back", "give_up": "held"}
            state = msgspec.structs.replace(state, status=ends[found.kind])
    return state.status


counts = st.integers(0, 10**7)
arms = st.builds(Arm, calls=counts, errors=counts, slow=counts, repeats=st.integers(0, 10**6))
stretches = st.lists(
    st.builds(
        Stretch,
        route=st.integers(6, 10),
        weight=st.sampled_from([0.0, *STEPS]),
        stable=arms,
        candidate=arms,
        pairs=st.builds(Pairs, pairs=counts, disagreements=counts),
    ),
    max_size=4,
)
limits = st.builds(
    Limits,
    error_increase=st.floats(1e-6, 0.999),
    slow_increase=st.floats(1e-6, 0.999),
    disagreement=st.none() | st.floats(1e-6, 0.999),
    alpha=st.floats(1e-6, 0.5),
    min_calls=st.integers(0, 1000),
)
plans = st.builds(
    rollout,
    step=st.integers(0, 3),
    limits=limits,
    status=st.sampled_from(["running", "paused", "held", "promoted"]),
)
VERDICTS = ["harm", "undecided", "passed"]


def known(decision: Decision) -> str:
    return json.dumps(msgspec.to_builtins(decision), allow_nan=False, sort_keys=True)


@settings(max_examples=150, deadline=None)
@given(plans, stretches, st.floats(0, 1e10))
def test_any_evidence_gives_a_verdict_that_json_can_hold(plan: Rollout, parts: list[Stretch], now: float):
    before = copy.deepcopy(parts)
    found = decide(plan, parts, now)
    assert found.reason
    text = known(found)
    assert parts == before
    assert known(decide(plan, copy.deepcopy(parts), now)) == text


@settings(max_examples=100, deadline=None)
@given(limits, stretches, st.integers(1, 50), st.sampled_from(["errors", "slow"]))
def test_events_more_on_the_candidate_never_help_it(limit: Limits, parts: list[Stretch], more: int, what: str):
    for part in parts:
        part.candidate.calls = part.candidate.repeats + getattr(part.candidate, what) + more
    worse = copy.deepcopy(parts)
    for part in worse:
        setattr(part.candidate, what, getattr(part.candidate, what) + more)
    before, after = (
        decide(rollout(2, limit), evidence, 300.0).figures["metrics"][what]["verdict"] for evidence in (parts, worse)
    )
    assert VERDICTS.index(after) <= VERDICTS.index(before)


@settings(max_examples=100, deadline=None)
@given(limits, stretches, st.integers(1, 50))
def test_events_more_on_the_deployed_version_never_make_the_candidate_harmful(
    limit: Limits, parts: list[Stretch], more: int
):
    worse = copy.deepcopy(parts)
    for part in worse:
        part.stable.errors += more
    verdicts = [decide(rollout(2, limit), evidence, 300.0).figures["metrics"]["errors"] for evidence in (parts, worse)]
    assert verdicts[1]["log_e"] <= verdicts[0]["log_e"] + 1e-9


@settings(max_examples=100, deadline=None)
@given(limits, stretches, st.floats(0, 1e6), st.randoms())
def test_the_order_of_evidence_does_not_matter(limit: Limits, parts: list[Stretch], now: float, random: Any):
    plan = rollout(2, limit)
    mixed = list(parts)
    random.shuffle(mixed)
    assert decide(plan, mixed, now).kind == decide(plan, parts, now).kind
