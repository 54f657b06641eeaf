"""The error rates that are promised, by simulating whole lives of rollouts, looked at every 100 calls.

The bets are computed for thousands of lives at once; the first test shows that they are those of `pelton.rollout`.
`python tests/rollout/test_simulation.py` prints the tables of docs/rollouts.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from pelton.rollout import Limits
from pelton.rollout.confidence import STAKES, Counts, log_e_share, log_not_worse, log_worse
from pelton.rollout.eprocess import RATIOS, Events, harm, log_e, log_harm
from pelton.rollout.policy import alphas
from pelton.routing import Sticky

Floats = NDArray[np.float64]
LOOK = 100
ALPHA = 0.05
MOVING = ((0.01, 100), (0.05, 40), (0.25, 40), (0.5, 120))  # weight, looks


class Lives(NamedTuple):
    """[lives, looks] of one weight: calls and events until each look."""

    weight: float
    mine: Floats
    mine_events: Floats
    other: Floats
    other_events: Floats


def lives(
    rng: np.random.Generator,
    steps: tuple[tuple[float, int], ...],
    base: Any,
    mine: Any,
    count: int,
) -> list[Lives]:
    """`base`, `mine`: shares of events, numbers or one per look."""
    looks = sum(number for _, number in steps)
    weights = np.repeat([weight for weight, _ in steps], [number for _, number in steps])
    calls = rng.binomial(LOOK, weights, (count, looks))
    events = rng.binomial(calls, np.broadcast_to(mine, looks))
    others = rng.binomial(LOOK - calls, np.broadcast_to(base, looks))
    found = []
    for weight, _ in steps:
        here = weights == weight
        parts = (np.cumsum(np.where(here, part, 0), 1, dtype=float) for part in (calls, events, LOOK - calls, others))
        found.append(Lives(weight, *parts))
    return found


def harm_bets(parts: list[Lives]) -> Floats:
    total = np.full(parts[0].mine.shape, -np.inf)
    for ratio, stake in RATIOS.items():
        bet = np.full(total.shape, math.log(stake))
        for part in parts:
            events = part.mine_events + part.other_events
            bet += part.mine_events * math.log(ratio) - events * math.log(part.weight * ratio + 1 - part.weight)
        total = np.logaddexp(total, bet)
    return total


def harmful(parts: list[Lives], alpha: float) -> NDArray[np.bool_]:
    events = sum(part.mine_events for part in parts)
    expected = sum(part.weight * (part.mine_events + part.other_events) for part in parts)
    found: NDArray[np.bool_] = (harm_bets(parts) > -math.log(alpha)) & (events > expected)
    return found


def margin_bets(parts: list[Lives], margin: float, thin: bool = True) -> Floats:
    total = np.full(parts[0].mine.shape, -np.inf)
    for stake in STAKES:
        bet = np.full(total.shape, -math.log(len(STAKES)))
        for part in parts:
            size = stake * part.weight
            due = part.mine * (1 - part.weight) / part.weight
            kept = np.minimum(due / np.maximum(part.other, 1), 1) if thin else 1.0
            other, events = part.other * kept, part.other_events * kept
            bet += (part.mine + other - part.mine_events - events) * math.log1p(size * margin)
            bet += part.mine_events * math.log(1 + size * margin - stake)
            bet += events * math.log(1 + size * margin + size / (1 - part.weight))
        total = np.logaddexp(total, bet)
    return total


def swapped(parts: list[Lives]) -> list[Lives]:
    return [Lives(1 - p.weight, p.other, p.other_events, p.mine, p.mine_events) for p in parts]


def rate(hits: NDArray[np.bool_]) -> float:
    """Share of lives in which it ever happens."""
    return float(hits.any(1).mean())


def median(hits: NDArray[np.bool_], quantile: float = 0.5) -> float:
    """Calls until it happens, in the middle life."""
    first = np.where(hits.any(1), (hits.argmax(1) + 1) * LOOK, np.inf)
    return float(np.quantile(first, quantile, method="higher"))


def steady(weight: float, calls: int) -> tuple[tuple[float, int], ...]:
    return ((weight, calls // LOOK),)


def test_the_bets_simulated_here_are_those_of_the_product():
    parts = lives(np.random.default_rng(1), MOVING, 0.02, 0.03, 4)
    bets, margins, mirrors = harm_bets(parts), margin_bets(parts, 0.01), margin_bets(swapped(parts), -0.01, thin=False)
    for life in range(4):
        for look in range(0, bets.shape[1], 23):
            here = [Counts(part.weight, *(float(column[life, look]) for column in part[1:])) for part in parts]
            events = [Events(c.candidate_events, c.candidate_events + c.stable_events, c.weight) for c in here]
            assert bets[life, look] == pytest.approx(log_harm(events), abs=1e-9)
            assert margins[life, look] == pytest.approx(log_not_worse(here, 0.01), abs=1e-9)
            assert mirrors[life, look] == pytest.approx(log_worse(here, 0.01), abs=1e-9)


@pytest.mark.parametrize("base", [0.001, 0.01, 0.05])
@pytest.mark.parametrize("steps", [steady(0.1, 20_000), MOVING], ids=["10 %", "1, 5, 25, 50 %"])
def test_an_equal_candidate_is_rolled_back_with_probability_alpha_at_most(base: float, steps: Any):
    """Over its whole life, errors and slow calls (four times as many of those) together."""
    rng = np.random.default_rng(2)
    shares = alphas(Limits(alpha=ALPHA))
    errors = lives(rng, steps, base, base, 3000)
    slow = lives(rng, steps, 4 * base, 4 * base, 3000)
    assert rate(harmful(errors, shares["errors"]) | harmful(slow, shares["slow"])) <= ALPHA
    assert rate(harmful(errors, ALPHA)) <= ALPHA  # nor would it with the whole alpha for one metric


def test_an_equal_candidate_is_safe_while_the_share_of_errors_drifts():
    looks = sum(number for _, number in MOVING)
    base = 0.001 + 0.1 * (np.arange(looks) % 50 > 40)  # a bad spell every 5,000 calls
    assert rate(harmful(lives(np.random.default_rng(3), MOVING, base, base, 3000), ALPHA)) <= ALPHA


def test_a_better_candidate_is_not_rolled_back():
    assert rate(harmful(lives(np.random.default_rng(4), steady(0.25, 20_000), 0.02, 0.015, 3000), ALPHA)) < 0.005


def test_a_test_that_must_not_be_peeked_at_rolls_back_good_versions():
    """The same lives, the usual z-test at nominal 5 %: this simulation does find tests that do not hold."""
    (part,) = lives(np.random.default_rng(5), steady(0.1, 20_000), 0.01, 0.01, 1000)
    pooled = (part.mine_events + part.other_events) / (part.mine + part.other)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / np.maximum(part.mine, 1) + 1 / part.other)) + 1e-12
    z = (part.mine_events / np.maximum(part.mine, 1) - part.other_events / part.other) / spread
    assert rate(z > 1.645) > 0.2


@pytest.mark.parametrize(
    ("base", "mine", "weight", "within"),
    [(0.01, 0.05, 0.1, 1100), (0.01, 0.10, 0.1, 400), (0.001, 0.01, 0.1, 4000), (0.01, 0.05, 0.5, 600)],
)
def test_a_broken_candidate_is_found_within_calls(base: float, mine: float, weight: float, within: int):
    """In the middle life, with the part of alpha that errors have."""
    parts = lives(np.random.default_rng(6), steady(weight, 20_000), base, mine, 3000)
    hits = harmful(parts, alphas(Limits(alpha=ALPHA))["errors"])
    assert rate(hits) > 0.99
    assert median(hits) <= within


def test_stretches_of_different_weight_find_more_together():
    """Errors doubled while the weight moves: one ratio for all stretches against a bet that begins anew in each."""
    parts = lives(np.random.default_rng(7), MOVING, 0.01, 0.02, 300)
    assert rate(harmful(parts, ALPHA)) > 0.95
    final = [[(p.mine_events[i, -1], p.other_events[i, -1], p.weight) for p in parts] for i in range(300)]
    apart = [sum(log_e(mine, mine + other, weight) for mine, other, weight in life) for life in final]
    together = harm_bets(parts)[:, -1]
    assert np.median(together) > np.median(apart)


@pytest.mark.parametrize(
    ("base", "margin", "steps"),
    [
        (0.0, 0.01, steady(0.1, 30_000)),
        (0.01, 0.01, steady(0.1, 30_000)),
        (0.05, 0.02, steady(0.5, 20_000)),
        (0.3, 0.05, steady(0.25, 20_000)),
        (0.01, 0.01, MOVING),
    ],
)
def test_a_candidate_worse_by_the_margin_is_promoted_with_probability_alpha_at_most(
    base: float, margin: float, steps: Any
):
    parts = lives(np.random.default_rng(8), steps, base, base + margin, 2500)
    assert rate(margin_bets(parts, margin) >= -math.log(ALPHA)) <= ALPHA


def test_nor_is_it_while_the_share_of_errors_drifts_and_the_weight_moves():
    looks = sum(number for _, number in MOVING)
    base = np.linspace(0.08, 0.0, looks)  # bad while the candidate gets few calls, good when it gets many
    parts = lives(np.random.default_rng(9), MOVING, base, base + 0.01, 2500)
    assert rate(margin_bets(parts, 0.01) >= -math.log(ALPHA)) <= ALPHA
    pooled = [sum(column) for column in zip(*(part[1:] for part in parts), strict=True)]
    naive = pooled[1] / np.maximum(pooled[0], 1) - pooled[3] / pooled[2]
    assert (naive[:, -1] < 0).mean() > 0.9  # shares of all calls call it better: that is why they are not compared


@pytest.mark.parametrize(
    ("base", "margin", "weight", "within"),
    [(0.01, 0.01, 0.1, 16_000), (0.001, 0.01, 0.1, 5500), (0.05, 0.02, 0.5, 5500), (0.0, 0.01, 0.5, 1100)],
)
def test_an_equal_candidate_is_shown_to_be_so_within_calls(base: float, margin: float, weight: float, within: int):
    hits = margin_bets(lives(np.random.default_rng(10), steady(weight, 60_000), base, base, 400), margin)
    assert median(hits >= -math.log(ALPHA)) <= within


def test_bounds_of_the_increase_hold_at_all_looks():
    parts = lives(np.random.default_rng(11), MOVING, 0.03, 0.05, 2500)
    assert rate(margin_bets(parts, 0.02) >= -math.log(ALPHA)) <= ALPHA
    assert rate(margin_bets(swapped(parts), -0.02, thin=False) >= -math.log(ALPHA)) <= ALPHA


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5])
def test_bounds_of_a_share_hold_at_all_looks(share: float):
    """A life leaves its bounds where the bet against the true share ever reaches 1/alpha."""
    rng = np.random.default_rng(12)
    counts = rng.binomial(LOOK, share, (1500, 100)).cumsum(1)
    n = np.arange(1, 101) * LOOK
    values = {
        (k, int(n_)): log_e_share(k, int(n_), share) for j, n_ in enumerate(n) for k in set(counts[:, j].tolist())
    }
    hits = np.array([[values[int(k), int(n[j])] >= -math.log(ALPHA) for j, k in enumerate(life)] for life in counts])
    assert rate(hits) <= ALPHA


def test_callers_with_a_key_are_counted_once_since_one_broken_caller_is_many_errors():
    """Forty callers of which every call fails, whichever version answers: 50 calls each, in any order."""
    rng = np.random.default_rng(14)
    each, once = [], []
    for life in range(250):
        split = Sticky(f"life-{life}", 0.1)
        mine = np.array([split.pick(b"caller-%d" % number)[0] for number in range(40)])
        order = rng.permutation(np.repeat(np.arange(40), 50))
        first = np.unique(order, return_index=True)[1]
        for found, calls in ((each, order), (once, order[np.sort(first)])):
            events = np.cumsum(mine[calls])
            looks = range(0, len(calls), 1 + len(calls) // 200)
            found.append(any(harm([Events(int(events[n]), n + 1, 0.1)], ALPHA).found for n in looks))
    assert np.mean(each) > 0.3
    assert np.mean(once) <= ALPHA


@pytest.mark.parametrize("callers", [5, 40, 400])
def test_callers_that_always_fail_and_keep_their_version_from_step_to_step_are_no_harm(callers: int):
    """Counted once at each step. A key with the candidate at 1 % has it at 50 %: steps are not independent then."""
    assert _repeated([weight for weight, _ in MOVING], callers) <= ALPHA


def _repeated(weights: list[float], callers: int) -> float:
    """False alarms where the same callers fail in each of several stretches, counted once in each."""
    places = np.random.default_rng(15).random((4000, callers))
    found = np.zeros(4000, bool)
    parts: list[Lives] = []
    for weight in weights:
        mine = (places < weight).sum(1, keepdims=True).astype(float)
        parts.append(Lives(weight, mine, mine, callers - mine, callers - mine))
        found |= harmful(parts, ALPHA)[:, 0]
    return float(found.mean())


def table() -> None:
    """Prints the measured tables."""
    rng = np.random.default_rng(13)
    share = alphas(Limits(alpha=ALPHA))["errors"]
    print("| deployed -> candidate | share of calls | rolled back | calls, middle life (candidate) | 4 of 5 lives |")
    print("|---|---|---|---|---|")
    cases = [(0.01, 0.01, 0.1), (0.001, 0.001, 0.1), (0.05, 0.05, 0.1), (0.01, 0.02, 0.1), (0.01, 0.03, 0.1)]
    cases += [(0.01, 0.05, 0.1), (0.01, 0.10, 0.1), (0.001, 0.01, 0.1), (0.0, 0.05, 0.1), (0.01, 0.05, 0.5)]
    cases += [(0.05, 0.07, 0.1), (0.01, 0.05, 0.01)]
    for base, mine, weight in cases:
        hits = harmful(lives(rng, steady(weight, 20_000), base, mine, 4000), share)
        middle, most = median(hits), median(hits, 0.8)
        shown = f"{middle:,.0f} ({middle * weight:,.0f})" if middle < np.inf else "-"
        last = f"{most:,.0f}" if most < np.inf else "-"
        print(f"| {base:.1%} -> {mine:.1%} | {weight:.0%} | {rate(hits):.1%} | {shown} | {last} |")
    print(
        "\n| both | margin | share of calls | calls, middle life (candidate) | 4 of 5 lives | promoted if worse by it |"
    )
    print("|---|---|---|---|---|---|")
    equals = [(0.0, 0.01, 0.1), (0.001, 0.01, 0.1), (0.01, 0.01, 0.1), (0.01, 0.01, 0.5), (0.05, 0.01, 0.5)]
    equals += [(0.05, 0.02, 0.1), (0.05, 0.02, 0.5), (0.01, 0.005, 0.5)]
    for base, margin, weight in equals:
        equal = margin_bets(lives(rng, steady(weight, 100_000), base, base, 400), margin) >= -math.log(ALPHA)
        worse = margin_bets(lives(rng, steady(weight, 30_000), base, base + margin, 2500), margin) >= -math.log(ALPHA)
        middle = median(equal)
        shown = f"{middle:,.0f} ({middle * weight:,.0f})"
        print(f"| {base:.1%} | {margin:.1%} | {weight:.0%} | {shown} | {median(equal, 0.8):,.0f} | {rate(worse):.1%} |")
    print(f"\nforty callers that always fail, ten stretches of 10 %: {_repeated([0.1] * 10, 40):.1%} false alarms")


if __name__ == "__main__":
    table()
