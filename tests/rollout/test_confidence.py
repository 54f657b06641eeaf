"""Bounds that hold at every look: their definition, their edges, and what must never loosen them."""

from __future__ import annotations

import math

import pytest

from pelton.rollout.confidence import (
    Counts,
    increase_bounds,
    log_e_share,
    log_not_worse,
    log_worse,
    mean_bounds,
    not_worse,
    share_bounds,
)

LIMIT = math.log(20)


def test_without_data_a_share_may_be_anything():
    assert share_bounds(0, 0, 0.05) == (0.0, 1.0)


@pytest.mark.parametrize(("k", "n"), [(1, 1), (3, 100), (50, 100), (99, 100), (700, 100_000)])
def test_a_bound_of_a_share_is_where_the_bet_reaches_its_limit(k: int, n: int):
    low, high = share_bounds(k, n, 0.05)
    assert low < k / n
    assert low == pytest.approx(0, abs=1e-9) or log_e_share(k, n, low) == pytest.approx(LIMIT, rel=1e-4)
    if k < n:
        assert high > k / n
        assert log_e_share(k, n, high) == pytest.approx(LIMIT, rel=1e-4)
    else:
        assert high == 1.0


def test_bounds_mirror_when_events_and_others_change_names():
    low, high = share_bounds(3, 40, 0.05)
    other = share_bounds(37, 40, 0.05)
    assert (1 - high, 1 - low) == pytest.approx(tuple(other), abs=1e-8)


def test_no_event_in_ten_thousand_bounds_the_share_near_one_in_a_thousand():
    low, high = share_bounds(0, 10_000, 0.05)
    assert low == 0
    assert 0.0003 < high < 0.001


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5])
@pytest.mark.parametrize(("base", "margin"), [(0.0, 0.01), (0.05, 0.01), (0.3, 0.1), (0.9, 0.1)])
def test_one_call_of_a_candidate_worse_by_the_margin_is_a_fair_bet(weight: float, base: float, margin: float):
    """The mean over version and outcome is 1, for every base share: so the bet holds while the base drifts."""
    cases = [
        (weight * (base + margin), Counts(weight, 1, 1, 0, 0)),
        (weight * (1 - base - margin), Counts(weight, 1, 0, 0, 0)),
        ((1 - weight) * base, Counts(weight, 0, 0, 1, 1)),
        ((1 - weight) * (1 - base), Counts(weight, 0, 0, 1, 0)),
    ]
    mean = sum(chance * math.exp(log_worse([_swapped(counts)], -margin)) for chance, counts in cases)
    assert mean == pytest.approx(1)
    assert sum(chance * math.exp(log_not_worse([counts], margin)) for chance, counts in cases) < 1 + 1e-9
    assert sum(chance * math.exp(log_worse([counts], margin)) for chance, counts in cases) < 1 + 1e-9


def _swapped(counts: Counts) -> Counts:
    """The mirror of the mirror: the bet of `log_not_worse` as it is before calls are left out."""
    weight, mine, mine_events, other, other_events = counts
    return Counts(1 - weight, other, other_events, mine, mine_events)


def test_the_bet_rises_with_the_margin():
    counts = [Counts(0.1, 900, 7, 8000, 60), Counts(0.5, 300, 1, 310, 4)]
    values = [log_not_worse(counts, margin / 100) for margin in range(0, 50)]
    assert values == sorted(values)


def test_bounds_of_the_increase_are_where_the_bets_reach_their_limits():
    counts = [Counts(0.1, 2000, 12, 18_000, 130)]
    low, high = increase_bounds(counts, 0.05)
    assert low < 12 / 2000 - 130 / 18_000 < high
    assert log_not_worse(counts, high) == pytest.approx(LIMIT, abs=1e-3)
    assert log_worse(counts, low) == pytest.approx(LIMIT, abs=1e-3)
    assert not_worse(counts, high + 1e-6, 0.05)
    assert not not_worse(counts, high - 1e-6, 0.05)


def test_without_data_an_increase_may_be_anything():
    assert increase_bounds([], 0.05) == (-1.0, 1.0)
    assert not not_worse([], 0.99, 0.05)


def test_a_candidate_that_got_no_calls_is_never_shown_to_be_good():
    """Processes that do not have it in memory send everything to the deployed version."""
    assert not not_worse([Counts(0.1, 0, 0, 1_000_000, 10_000)], 0.5, 0.05)


def test_calls_that_never_could_reach_the_candidate_do_not_help_it():
    fair = [Counts(0.1, 300, 2, 2700, 18)]
    lacking = [Counts(0.1, 300, 2, 27_000, 180)]
    assert log_not_worse(lacking, 0.01) == pytest.approx(log_not_worse(fair, 0.01))


def test_errors_of_the_deployed_version_at_bad_times_do_not_hide_those_of_the_candidate():
    """Added up, the candidate looks better (2.7 % against 4.5 %), since most of its calls came at a good time."""
    bad_time = Counts(0.05, 500, 75, 9500, 950)
    good_time = Counts(0.5, 5000, 75, 5000, 0)
    low, high = increase_bounds([bad_time, good_time], 0.05)
    assert low > 0
    assert not not_worse([bad_time, good_time], 0.01, 0.05)
    assert high > 0.014


def test_the_bet_on_the_difference_needs_less_than_half_the_calls_of_two_sequences():
    """Expected counts of two equal versions with 1 % errors, a tenth of the calls; margin 1 %."""

    def by_bet(calls: float) -> bool:
        return not_worse([Counts(0.1, calls / 10, calls / 1000, calls * 0.9, calls * 0.009)], 0.01, 0.05)

    def by_two(calls: float) -> bool:
        mine = share_bounds(calls / 1000, calls / 10, 0.025)
        return mine.high - share_bounds(calls * 0.009, calls * 0.9, 0.025).low < 0.01

    bet, two = (next(calls for calls in range(1000, 90_000, 500) if shows(calls)) for shows in (by_bet, by_two))
    assert bet < two / 2


def test_the_mean_of_numbers_lies_in_its_bounds_and_two_numbers_are_needed():
    assert mean_bounds(1, 1.0, 1.0, 0.05) is None
    bounds = mean_bounds(400, 40.0, 40.0, 0.05)  # 40 ones among zeros
    assert bounds is not None
    assert bounds.low < 0.1 < bounds.high
    assert bounds.high - bounds.low == pytest.approx(2 * 3.3 * 0.3 / 20, rel=0.2)
