"""The bets against "not worse", at points that are known."""

from __future__ import annotations

import math

import pytest

from pelton.rollout.eprocess import RATIOS, Events, harm, log_beta, log_e, log_harm, log_limit, log_product

W10 = [(3, 3, 3.9964), (2, 2, 2.4159), (3, 4, 3.3032), (5, 10, 4.0753), (10, 100, -1.8094)]
# smallest number on the candidate that the beta-binomial bet calls harm at 5 %, for 3, 5, 10, ... events in all
SMALLEST = {
    0.05: [(3, 2), (5, 3), (10, 4), (20, 5), (50, 9), (100, 13), (200, 22), (500, 43)],
    0.10: [(3, 3), (5, 4), (10, 5), (20, 7), (50, 13), (100, 21), (200, 35), (500, 74)],
    0.20: [(3, None), (5, 5), (10, 7), (20, 10), (50, 19), (100, 33), (200, 59), (500, 131)],
    0.50: [(3, None), (5, None), (10, 10), (20, 17), (50, 36), (100, 65), (200, 123), (500, 287)],
}


@pytest.mark.parametrize(("k", "n", "expected"), W10)
def test_the_beta_binomial_bet_has_its_known_values(k: int, n: int, expected: float):
    assert log_e(k, n, 0.1) == pytest.approx(expected, abs=5e-5)


def test_the_beta_binomial_bet_has_its_known_value_at_half():
    assert log_e(10, 12, 0.5) == pytest.approx(1.9098, abs=5e-5)


@pytest.mark.parametrize("weight", sorted(SMALLEST))
def test_the_beta_binomial_bet_calls_harm_from_the_known_counts_on(weight: float):
    for n, smallest in SMALLEST[weight]:
        harmful = [k for k in range(n + 1) if k / n > weight and log_e(k, n, weight) > math.log(20)]
        assert (harmful[0] if harmful else None) == smallest, (weight, n)


def test_log_beta_is_that_of_integrals_that_are_known():
    assert log_beta(1, 1) == pytest.approx(0)
    assert log_beta(2, 3) == pytest.approx(math.log(1 / 12))
    assert log_beta(0.5, 0.5) == pytest.approx(math.log(math.pi))


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("events", [1, 2, 7, 30])
def test_both_bets_have_mean_one_where_the_versions_are_equal(weight: float, events: int):
    """Over every way in which the events can fall: what Ville's bound rests on."""
    chances = [math.comb(events, k) * weight**k * (1 - weight) ** (events - k) for k in range(events + 1)]
    for bet in (lambda k: log_e(k, events, weight), lambda k: log_harm([Events(k, events, weight)])):
        assert sum(chance * math.exp(bet(k)) for k, chance in enumerate(chances)) == pytest.approx(1)


def test_the_bet_on_ratios_has_mean_one_over_two_weights_together():
    total = 0.0
    for k in range(6):
        for m in range(9):
            chance = math.comb(5, k) * 0.1**k * 0.9 ** (5 - k) * math.comb(8, m) * 0.5**8
            total += chance * math.exp(log_harm([Events(k, 5, 0.1), Events(m, 8, 0.5)]))
    assert total == pytest.approx(1)


@pytest.mark.parametrize("better", [0.3, 0.9])
def test_the_bet_on_ratios_falls_on_average_where_the_candidate_is_better(better: float):
    share = 0.1 * better / (0.1 * better + 0.9)
    mean = sum(
        math.comb(20, k) * share**k * (1 - share) ** (20 - k) * math.exp(log_harm([Events(k, 20, 0.1)]))
        for k in range(21)
    )
    assert mean < 1


def test_stakes_add_up_to_one_and_bet_on_worse_alone():
    assert sum(RATIOS.values()) == pytest.approx(1)
    assert min(RATIOS) > 1


def test_a_stretch_cut_in_two_is_the_same_evidence():
    whole = [Events(9, 40, 0.1), Events(4, 5, 0.5)]
    cut = [Events(2, 15, 0.1), Events(4, 5, 0.5), Events(7, 25, 0.1)]
    assert log_harm(cut) == pytest.approx(log_harm(whole))
    assert log_product(cut) == pytest.approx(log_e(9, 40, 0.1) + log_e(4, 5, 0.5))


def test_small_increases_at_two_weights_are_harm_together_though_neither_is_alone():
    first, second = Events(34, 200, 0.1), Events(120, 200, 0.5)
    alone = [harm([part], 0.01).found for part in (first, second)]
    assert alone == [False, False]
    assert harm([first, second], 0.01).found


def test_stretches_in_which_one_version_took_all_calls_say_nothing():
    nothing = [Events(50, 50, 1.0), Events(0, 50, 0.0), Events(0, 0, 0.1)]
    assert log_harm(nothing) == pytest.approx(0)
    assert not harm(nothing, 0.05).found


def test_a_candidate_without_its_share_of_errors_is_never_harmful():
    found = harm([Events(0, 400, 0.5)], 0.05)
    assert found.log_e < 0
    assert not found.found
    assert found.expected == 200


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1e-300, 0.05, 1.0, 3.0])
def test_limits_are_finite(alpha: float):
    assert 0 <= log_limit(alpha) < 30


def test_counts_of_years_do_not_overflow():
    assert math.isfinite(log_harm([Events(10**9, 10**10, 0.1)]))
    assert math.isfinite(log_e(10**9, 10**10, 0.1))
