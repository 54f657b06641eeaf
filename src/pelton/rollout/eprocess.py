"""Is the candidate worse? An e-process on events split by the router's known weight; it may be looked at at any time.

The router sends each call to the candidate with the known probability w. If both versions fail equally often, each
error falls on the candidate with probability w, whatever the traffic was and however it changed. A bet against that
is a martingale with mean 1 where it is true, so it ever exceeds 1/alpha with probability alpha at most (Ville).

Two bets are here. `log_e` mixes over the candidate's share of the errors (beta-binomial; closed form, one weight).
`log_harm` mixes over how many times more often the candidate fails, from `RATIOS`: it bets on "worse" alone, and the
same ratio holds at every weight, so stretches of different weights help each other. Rollouts use `log_harm`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, lgamma, log
from typing import Final, NamedTuple

# How many times as often the candidate fails -> part of the stake on it. Chosen by simulation (tests/rollout): most on
# what a broken version looks like, enough on small increases.
RATIOS: Final = {1.25: 1 / 9, 1.6: 1 / 9, 2.5: 1.5 / 9, 4.5: 3 / 9, 10.0: 2 / 9, 50.0: 0.5 / 9}
_SMALLEST_ALPHA: Final = 1e-12


class Events(NamedTuple):
    """Events of calls that were split alike: `candidate` of `total` fell on the candidate, whose share is `weight`."""

    candidate: float
    total: float
    weight: float


class Harm(NamedTuple):
    """What the bet says. `expected`: events that would fall on a candidate as good as the deployed version."""

    log_e: float
    limit: float  # log_e above it is harm
    events: float
    expected: float
    found: bool


def log_beta(a: float, b: float) -> float:
    """Logarithm of the beta function."""
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def log_e(k: float, n: float, w: float) -> float:
    """Beta-binomial bet on one weight 0 < w < 1: k of n events fell on the candidate. Two-sided: also large for few."""
    a, b = 4 * w + 1, 4 * (1 - w)
    return log_beta(a + k, b + n - k) - log_beta(a, b) - k * log(w) - (n - k) * log(1 - w)


def log_product(stretches: Iterable[Events]) -> float:
    """The beta-binomial bet over stretches of different weights: each begins anew, and their products multiply."""
    return sum(log_e(part.candidate, part.total, part.weight) for part in joined(stretches))


def log_harm(stretches: Iterable[Events]) -> float:
    """Bets that the candidate fails `RATIOS` times as often, over all stretches together.

    Where the candidate is better than the deployed version it falls on average: nobody is rolled back for being good.
    """
    parts = joined(stretches)
    return log_mixture(
        [log(stake) + sum(_log_ratio_bet(part, ratio) for part in parts) for ratio, stake in RATIOS.items()]
    )


def harm(stretches: Iterable[Events], alpha: float) -> Harm:
    """Whether the candidate is worse. Chance to say so of one that is not, over all looks: `alpha` at most."""
    parts = joined(stretches)
    value, limit = log_harm(parts), log_limit(alpha)
    events = sum(part.candidate for part in parts)
    expected = sum(part.total * part.weight for part in parts)
    return Harm(value, limit, events, expected, value > limit and events > expected)


def joined(stretches: Iterable[Events]) -> list[Events]:
    """Stretches of equal weight as one. Those that compare nothing (all calls to one version) are left out."""
    found: dict[float, Events] = {}
    for part in stretches:
        if 0 < part.weight < 1 and part.total > 0:
            other = found.get(part.weight, Events(0, 0, part.weight))
            found[part.weight] = Events(part.candidate + other.candidate, part.total + other.total, part.weight)
    return list(found.values())


def log_limit(alpha: float) -> float:
    """ln(1/alpha): what a bet must exceed. Finite for every number."""
    return -log(min(max(alpha, _SMALLEST_ALPHA), 1.0))


def log_mixture(values: Sequence[float]) -> float:
    """Logarithm of the sum of the exponentials: bets side by side, each with its stake."""
    highest = max(values)
    if highest == float("-inf"):
        return highest
    return highest + log(sum(exp(value - highest) for value in values))


def _log_ratio_bet(part: Events, ratio: float) -> float:
    """Likelihood of the split where the candidate fails `ratio` times as often, against where both fail alike."""
    both = part.weight * ratio + 1 - part.weight
    return part.candidate * log(ratio) - part.total * log(both)
