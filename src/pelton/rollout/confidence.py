"""What is surely true of shares, at every look: confidence sequences, and "not worse by more than the margin".

All bounds hold at all times at once with probability 1 - alpha, so whoever looks often is not fooled. A bound is where
a bet against the value reaches 1/alpha (see `eprocess`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf, log, log1p, sqrt
from typing import Final, NamedTuple

from pelton.rollout.eprocess import log_beta, log_limit, log_mixture

# Parts of what may be bet; each gets the same stake. The best one is about margin / (share + margin).
STAKES: Final = (0.02, 0.05, 0.11, 0.22, 0.4, 0.6, 0.8, 0.93)
_HALVINGS: Final = 28


class Bounds(NamedTuple):
    """From and to."""

    low: float
    high: float


class Counts(NamedTuple):
    """Calls that were split alike, and the events among them. `weight`: the candidate's share by the router."""

    weight: float
    candidate_calls: float
    candidate_events: float
    stable_calls: float
    stable_events: float


_NOTHING: Final = Counts(0.0, 0, 0, 0, 0)


def log_e_share(k: float, n: float, share: float) -> float:
    """Bet against "events have this share", k of n seen: a mixture over all shares (beta 1/2, 1/2)."""
    null = _xlogy(k, share) + _xlogy(n - k, 1 - share)
    return inf if null == -inf else log_beta(k + 0.5, n - k + 0.5) - log_beta(0.5, 0.5) - null


def share_bounds(k: float, n: float, alpha: float) -> Bounds:
    """Where the share of events lies, k of n seen. Without data: 0 to 1."""
    if n <= 0:
        return Bounds(0.0, 1.0)
    limit, seen = log_limit(alpha), k / n
    low = _edge(lambda share: log_e_share(k, n, share) >= limit, 0.0, seen) if k > 0 else 0.0
    high = _edge(lambda share: log_e_share(k, n, share) >= limit, 1.0, seen) if k < n else 1.0
    return Bounds(low, high)


def log_not_worse(stretches: Iterable[Counts], margin: float) -> float:
    """Bet against "the candidate's share is larger than the deployed version's by `margin` or more".

    Each call pays by what it shows of the difference, weighted by how seldom its version is picked: the mean of that
    is the difference, whatever the base share does in the meantime. The bets rise with the margin, so they give bounds.
    """
    return _mixture(_thinned(stretches), margin)


def log_worse(stretches: Iterable[Counts], margin: float) -> float:
    """The mirror: bet against "the candidate's share is larger by `margin` at most"."""
    return _mixture(_mirrored(stretches), -margin)


def not_worse(stretches: Sequence[Counts], margin: float, alpha: float) -> bool:
    """Whether the candidate's share is surely below the deployed version's plus `margin`.

    Chance to say so of one that is worse by the margin or more, over all looks: `alpha` at most."""
    return log_not_worse(stretches, margin) >= log_limit(alpha)


def increase_bounds(stretches: Sequence[Counts], alpha: float) -> Bounds:
    """Where the candidate's share minus the deployed version's lies. Each end holds with probability 1 - alpha."""
    limit = log_limit(alpha)
    thinned, mirrored = _thinned(stretches), _mirrored(stretches)
    low = _edge(lambda margin: _mixture(mirrored, -margin) >= limit, -1.0, 1.0)
    high = _edge(lambda margin: _mixture(thinned, margin) >= limit, 1.0, -1.0)
    return Bounds(min(low, high), max(low, high))


def mean_bounds(n: float, total: float, squares: float, alpha: float) -> Bounds | None:
    """Where the mean of numbers lies, of which the sum and the sum of squares are known. None: fewer than two.

    An asymptotic confidence sequence (Waudby-Smith and others, 2021), tightest near 100 numbers."""
    if n < 2:
        return None
    mean = total / n
    deviation = sqrt(max(squares / n - mean * mean, 0.0))
    tight = 2 * log_limit(alpha) / 100
    width = deviation * sqrt((n * tight + 1) / (n * n * tight) * (log(n * tight + 1) + 2 * log_limit(alpha)))
    return Bounds(mean - width, mean + width)


def joined(stretches: Iterable[Counts]) -> list[Counts]:
    """Stretches of equal weight as one. Those in which all calls went to one version are left out."""
    found: dict[float, Counts] = {}
    for part in stretches:
        if 0 < part.weight < 1:
            sums = (mine + more for mine, more in zip(found.get(part.weight, _NOTHING)[1:], part[1:], strict=True))
            found[part.weight] = Counts(part.weight, *sums)
    return list(found.values())


def _mixture(parts: Sequence[Counts], margin: float) -> float:
    bets = [sum(_log_bet(part, margin, stake) for part in parts) for stake in STAKES]
    return log_mixture(bets) - log(len(bets))


def _log_bet(part: Counts, margin: float, stake: float) -> float:
    """One stake on one stretch. -inf: the stake could lose more than there is."""
    size = stake * part.weight
    nothing = 1 + size * margin
    event = nothing - stake  # on the candidate
    if event <= 0 or nothing <= 0:
        return -inf
    calls = part.candidate_calls + part.stable_calls - part.candidate_events - part.stable_events
    other = nothing + size / (1 - part.weight)
    return calls * log1p(size * margin) + part.candidate_events * log(event) + part.stable_events * log(other)


def _thinned(stretches: Iterable[Counts]) -> list[Counts]:
    """Takes away calls of the deployed version where the candidate got fewer than its weight.

    A process without the candidate in memory sends its calls to the deployed version: they tell nothing about the
    candidate. Fewer calls of the deployed version only lower the bet."""
    parts = []
    for part in joined(stretches):
        due = part.candidate_calls * (1 - part.weight) / part.weight
        if part.stable_calls > due:
            events = part.stable_events * (due / part.stable_calls)
            part = part._replace(stable_calls=due, stable_events=events)
        parts.append(part)
    return parts


def _mirrored(stretches: Iterable[Counts]) -> list[Counts]:
    """The two versions change places."""
    return [
        Counts(1 - part.weight, part.stable_calls, part.stable_events, part.candidate_calls, part.candidate_events)
        for part in joined(stretches)
    ]


def _edge(outside: Callable[[float], bool], far: float, near: float) -> float:
    """The last value, from `near` to `far`, that is not outside; to the outer side of it."""
    if not outside(far):
        return far
    for _ in range(_HALVINGS):
        middle = (far + near) / 2
        if outside(middle):
            far = middle
        else:
            near = middle
    return far


def _xlogy(x: float, y: float) -> float:
    if x == 0:
        return 0.0
    return x * log(y) if y > 0 else -inf
