"""What is said before a rollout starts comes true, within what can be foretold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pelton.errors import InvalidInput
from pelton.rollout import Limits
from pelton.rollout.confidence import Counts, not_worse
from pelton.rollout.eprocess import Events, harm
from pelton.rollout.plan import check, estimate
from pelton.rollout.policy import alphas

STEPS = (0.01, 0.1, 0.5, 1.0)


@pytest.mark.parametrize(
    ("steps", "share", "margin"), [((0.1, 1.0), 0.01, 0.01), ((0.5, 1.0), 0.05, 0.02), ((0.01, 0.1, 1.0), 0.002, 0.01)]
)
def test_the_calls_until_the_verdict_are_those_of_the_middle_life(steps: Any, share: float, margin: float):
    limits = Limits(error_increase=margin, slow_increase=0.5)
    plan = estimate(steps, limits, 100.0, share, 0.0)
    rng = np.random.default_rng(1)
    needed = sorted(_life(rng, plan, share, margin) for _ in range(60))
    assert plan.calls == pytest.approx(needed[30], rel=0.35)


def _life(rng: np.random.Generator, plan: Any, share: float, margin: float) -> float:
    """Calls of both versions until an equal candidate is shown to be so."""
    counts, calls = [], 0.0
    for step in plan.steps[:-1]:
        counts.append(_split(rng, step.weight, int(step.calls), share, share))
        calls += step.calls
    last = Counts(plan.steps[-1].weight, 0, 0, 0, 0)
    look = max(int(plan.steps[-1].calls) // 20, 50)
    while not not_worse([*counts, last], margin, 0.05):
        more = _split(rng, last.weight, look, share, share)
        last = Counts(last.weight, *(a + b for a, b in zip(last[1:], more[1:], strict=True)))
        calls += look
    return calls


def _split(rng: np.random.Generator, weight: float, calls: int, stable: float, candidate: float) -> Counts:
    mine = int(rng.binomial(calls, weight))
    return Counts(
        weight, mine, int(rng.binomial(mine, candidate)), calls - mine, int(rng.binomial(calls - mine, stable))
    )


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.05])
def test_the_share_that_is_said_to_be_found_is_found_in_about_four_of_five_cases(share: float):
    limits = Limits()
    plan = estimate(STEPS, limits, 100.0, share, 0.0)
    assert plan.detectable_errors is not None
    assert plan.detectable_errors > share
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(400):
        events = []
        for step in plan.steps:
            counts = _split(rng, step.weight, int(step.calls or 0), share, plan.detectable_errors)
            events.append(Events(counts.candidate_events, counts.candidate_events + counts.stable_events, step.weight))
        found += harm(events, alphas(limits)["errors"]).found
    assert 0.68 <= found / 400 <= 0.95


def test_steps_take_their_least_calls_or_their_least_time():
    plan = estimate(STEPS, Limits(min_calls=100, min_seconds=30), 200.0, 0.01, 0.01)
    assert plan.steps[0].seconds == pytest.approx(100 / 0.01 / 200)
    assert plan.steps[1].seconds == pytest.approx(30)
    assert plan.seconds == pytest.approx(sum(step.seconds or 0 for step in plan.steps))
    assert [step.weight for step in plan.steps] == [0.01, 0.1, 0.5]
    assert not plan.warnings


def test_without_traffic_it_says_that_it_never_finishes():
    plan = estimate(STEPS, Limits(), 0.0, 0.01, 0.01)
    assert plan.seconds is None
    assert "no traffic: without calls the rollout never finishes" in plan.warnings
    assert "never ends" in plan.text()


def test_a_margin_too_small_for_the_traffic_is_said_before():
    plan = estimate(STEPS, Limits(error_increase=0.001), 1.0, 0.02, 0.0)
    assert plan.seconds is not None
    assert plan.seconds > 24 * 3600
    assert "but max_hours is 24: it would be held" in plan.warnings[0]
    assert "h in all" in plan.text()
    never = estimate(STEPS, Limits(error_increase=1e-9), 100.0, 0.02, 0.0)
    assert never.calls is None
    assert "too small" in never.warnings[0]


def test_a_larger_margin_a_larger_share_and_fewer_errors_take_fewer_calls():
    def calls(margin: float, weight: float, share: float) -> float:
        found = estimate((weight, 1.0), Limits(error_increase=margin, slow_increase=0.5), 10.0, share, 0.0)
        return found.calls or 0.0

    assert calls(0.02, 0.1, 0.01) < calls(0.01, 0.1, 0.01)
    assert calls(0.01, 0.5, 0.01) < calls(0.01, 0.1, 0.01)
    assert calls(0.01, 0.1, 0.001) < calls(0.01, 0.1, 0.01)


def test_the_copied_calls_for_a_limit_of_disagreement_are_said():
    (warning,) = estimate(STEPS, Limits(disagreement=0.01), 100.0, 0.01, 0.01).warnings
    assert "needs a shadow, and 680 copied calls" in warning


def test_all_at_once_only_waits():
    plan = estimate((1.0,), Limits(min_calls=500), 50.0, 0.01, 0.01)
    assert plan.seconds == pytest.approx(10.0)
    assert plan.detectable_errors is None
    assert estimate((1.0,), Limits(min_calls=0), 0.0, 0.01, 0.01).seconds == 0.0


@pytest.mark.parametrize("share", [-1.0, 2.0, float("nan")])
def test_shares_that_are_none_are_taken_for_the_nearest(share: float):
    plan = estimate((0.1, 1.0), Limits(), 10.0, share, share)
    assert 0 <= plan.error_share <= 1
    assert plan.text()


@pytest.mark.parametrize("steps", [(), (0.5,), (0.5, 0.1, 1.0), (0.0, 1.0), (0.1, 0.1, 1.0), (0.1, 1.5), (-0.1, 1.0)])
def test_steps_that_cannot_be_walked_are_refused(steps: Any):
    with pytest.raises(InvalidInput, match="steps must rise"):
        check(steps, Limits())


@pytest.mark.parametrize(
    "changes",
    [
        {"error_increase": 0.0},
        {"slow_increase": 1.0},
        {"disagreement": -0.1},
        {"alpha": 0.0},
        {"alpha": 0.9},
        {"min_calls": -1},
        {"min_seconds": float("inf")},
        {"max_hours": 0.0},
        {"latency_ms": float("nan")},
    ],
)
def test_limits_that_mean_nothing_are_refused_by_name(changes: Any):
    (name,) = changes
    with pytest.raises(InvalidInput, match=name):
        check((0.1, 1.0), Limits(**changes))
