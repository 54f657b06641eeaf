"""How many requests a percentile claim needs.

"At least a share p of all requests is inside the limit" is accepted from n requests with t over the limit when so few
would be unlikely if the claim were false: P(Binomial(n, 1-p) <= t) < 1 - confidence. This is the early stopping rule
of MLPerf's LoadGen, where it is written with the regularized incomplete beta function I_p(n-t, t+1). It takes requests
as independent; neighbours in one queue are not quite, so long runs are worth more than the numbers say.
"""

from __future__ import annotations

import math


def binomial_tail(n: int, t: int, q: float) -> float:
    """P(Binomial(n, q) <= t) for 0 < q < 1: the exact sum, each term from log-gamma so that no n overflows."""
    if t < 0:
        return 0.0
    if t >= n:
        return 1.0
    return min(1.0, math.fsum(_pmf(n, k, q) for k in range(t + 1)))


def holds(n: int, over: int, percentile: float = 0.99, confidence: float = 0.99) -> bool:
    """Whether `over` of `n` requests over the limit prove that `percentile` of all are inside it."""
    return n > 0 and over <= max_over(n, percentile, confidence)


def max_over(n: int, percentile: float = 0.99, confidence: float = 0.99) -> int:
    """How many of `n` requests may be over the limit; -1 where `n` proves nothing even with none over."""
    total, over = 0.0, -1
    while over + 1 < n:
        total += _pmf(n, over + 1, 1 - percentile)
        if total >= 1 - confidence:
            break
        over += 1
    return over


def least_requests(over: int, percentile: float = 0.99, confidence: float = 0.99) -> int:
    """The fewest requests that prove the percentile when `over` of them are over the limit."""
    q, alpha = 1 - percentile, 1 - confidence
    low, high = over + 1, 2 * (over + 1)
    while binomial_tail(high, over, q) >= alpha:
        low, high = high, 2 * high
    while low < high:  # the tail falls as n grows
        middle = (low + high) // 2
        if binomial_tail(middle, over, q) < alpha:
            high = middle
        else:
            low = middle + 1
    return low


def _pmf(n: int, k: int, q: float) -> float:
    """P(Binomial(n, q) = k)."""
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log + k * math.log(q) + (n - k) * math.log1p(-q))
