"""Before a rollout starts: how long it takes at the traffic of now, and which difference it can see."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import Final

import msgspec

from pelton.errors import InvalidInput
from pelton.rollout.confidence import Counts, log_not_worse, share_bounds
from pelton.rollout.eprocess import Events, log_harm, log_limit
from pelton.rollout.policy import alphas, percent
from pelton.rollout.state import Limits

_MOST: Final = 1e10  # calls
_POWER: Final = 0.8416  # standard deviations below the mean: 80 % of cases have more


class Step(msgspec.Struct, frozen=True):
    """One step: the candidate's share, calls of both versions, and seconds. None: it never ends."""

    weight: float
    calls: float | None
    seconds: float | None


class Plan(msgspec.Struct, frozen=True):
    """What to expect if the candidate is as good as the deployed version. None: it never ends, or nothing is seen."""

    calls_per_second: float
    steps: tuple[Step, ...]
    seconds: float | None  # in all
    calls: float | None  # of both versions, until the verdict
    candidate_calls: float | None
    error_share: float
    slow_share: float
    detectable_errors: float | None  # share of errors of a candidate that is found within these calls, 80 % of times
    detectable_slow: float | None
    warnings: tuple[str, ...]

    def text(self) -> str:
        """For people, several lines."""
        lines = [f"at {self.calls_per_second:,.1f} calls/s:"]
        lines += [f"  {percent(step.weight):>7}  {_duration(step.seconds)}" for step in self.steps]
        if self.seconds is not None and self.candidate_calls is not None:
            calls = f"{self.candidate_calls:,.0f} candidate calls"
            lines.append(f"about {_duration(self.seconds)} in all, {calls}, if the candidate is as good")
        for what, base, found in (
            ("errors", self.error_share, self.detectable_errors),
            ("slow calls", self.slow_share, self.detectable_slow),
        ):
            if found is not None:
                lines.append(f"{what}: now {percent(base)}; {percent(found)} or more is found in 4 of 5 cases")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def check(steps: Sequence[float], limits: Limits) -> None:
    """Raises InvalidInput where a rollout could not be carried out, naming the field and the mend."""
    rising = all(low < high for low, high in pairwise(steps))
    if not steps or not rising or steps[0] <= 0 or steps[-1] != 1.0:
        raise InvalidInput(f"steps must rise, be above 0 % and end with 100 %, not {[percent(one) for one in steps]}")
    shares = {"error_increase": limits.error_increase, "slow_increase": limits.slow_increase}
    if limits.disagreement is not None:
        shares["disagreement"] = limits.disagreement
    for name, share in shares.items():
        if not 0 < share < 1:
            raise InvalidInput(f"{name} is a share of calls above 0 and below 1, not {share}; 0.01 is one in a hundred")
    if not 0 < limits.alpha <= 0.5:
        raise InvalidInput(f"alpha must be above 0 and at most 0.5, not {limits.alpha}; 0.05 is usual")
    amounts = {"min_calls": limits.min_calls, "min_seconds": limits.min_seconds, "latency_ms": limits.latency_ms}
    for name, amount in amounts.items():
        if not 0 <= amount < float("inf"):
            raise InvalidInput(f"{name} must not be negative, but is {amount}")
    if not 0 < limits.max_hours < float("inf"):
        raise InvalidInput(f"max_hours must be above 0, not {limits.max_hours}")


def estimate(
    steps: Sequence[float], limits: Limits, calls_per_second: float, error_share: float, slow_share: float
) -> Plan:
    """Raises InvalidInput for steps and limits that cannot be carried out."""
    check(steps, limits)
    rate = calls_per_second if 0 < calls_per_second < float("inf") else 0.0
    errors, slow = _share(error_share), _share(slow_share)
    first = [(weight, _fewest(weight, limits, rate)) for weight in steps[:-1]]
    if not first:
        only = float(limits.min_calls)
        return _plan(limits, rate, (errors, slow), (Step(1.0, only, _seconds(only, limits, rate)),), (None, None))
    margins = ((errors, limits.error_increase), (slow, limits.slow_increase))
    needed = [_until_verdict(first, share, margin, limits.alpha) for share, margin in margins]
    last = None if None in needed else max([first[-1][1], *(one for one in needed if one is not None)])
    calls = [*first[:-1], (first[-1][0], last)]
    parts = tuple(
        Step(weight, count, None if count is None else _seconds(count, limits, rate)) for weight, count in calls
    )
    seen: tuple[float | None, float | None] = (None, None)
    if last is not None:
        split = [*first[:-1], (first[-1][0], last)]
        parts_of_alpha = alphas(limits)
        seen = (
            _detectable(split, errors, parts_of_alpha["errors"]),
            _detectable(split, slow, parts_of_alpha["slow"]),
        )
    return _plan(limits, rate, (errors, slow), parts, seen)


def _plan(
    limits: Limits,
    rate: float,
    shares: tuple[float, float],
    steps: tuple[Step, ...],
    seen: tuple[float | None, float | None],
) -> Plan:
    times, calls = [step.seconds for step in steps], [step.calls for step in steps]
    seconds = None if None in times else sum(time for time in times if time is not None)
    endless = None in calls
    total = None if endless else sum(count for count in calls if count is not None)
    mine = None if endless else sum(step.weight * step.calls for step in steps if step.calls is not None)
    warnings = _warnings(limits, rate, seconds, endless)
    return Plan(rate, steps, seconds, total, mine, *shares, *seen, warnings)


def _warnings(limits: Limits, rate: float, seconds: float | None, endless: bool) -> tuple[str, ...]:
    found = []
    if rate <= 0:
        found.append("no traffic: without calls the rollout never finishes")
    if endless:
        found.append("a margin is too small to be shown by any number of calls; allow a larger increase")
    elif seconds is not None and seconds > limits.max_hours * 3600:
        found.append(
            f"takes about {_duration(seconds)}, but max_hours is {limits.max_hours:g}: it would be held without a "
            "verdict; allow a larger increase or more hours, or give the last step but one a larger share"
        )
    if limits.disagreement is not None:
        pairs = _pairs(limits.disagreement, limits.alpha)
        found.append(f"disagreement is limited: needs a shadow, and {pairs:,} copied calls even if all answers agree")
    return tuple(found)


def _pairs(limit: float, alpha: float) -> int:
    """Copied calls without a disagreement that show its share to be below the limit."""
    low, high = 0, 1
    while share_bounds(0, high, alpha).high >= limit:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if share_bounds(0, middle, alpha).high < limit else (middle, high)
    return high


def _fewest(weight: float, limits: Limits, rate: float) -> float:
    """Calls of both versions in a step that only waits for its least number of calls and seconds."""
    return max(limits.min_calls / weight, limits.min_seconds * rate)


def _seconds(calls: float, limits: Limits, rate: float) -> float | None:
    if rate <= 0:
        return None if calls > 0 else limits.min_seconds
    return max(calls / rate, limits.min_seconds)


def _until_verdict(first: Sequence[tuple[float, float]], share: float, margin: float, alpha: float) -> float | None:
    """Calls in the last step until the expected counts of two equal versions show "not worse"."""
    weight, limit = first[-1][0], log_limit(alpha)
    before = [_expected(one, calls, share, share) for one, calls in first[:-1]]

    def enough(calls: float) -> bool:
        return log_not_worse([*before, _expected(weight, calls, share, share)], margin) >= limit

    if not enough(_MOST):
        return None
    low, high = 0.0, _MOST
    while high - low > max(1.0, high / 1000):
        middle = sqrt(max(low, 1.0) * high) if high > 4 * max(low, 1.0) else (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _detectable(split: Sequence[tuple[float, float]], share: float, alpha: float) -> float | None:
    """The smallest share of events of the candidate that is found with 80 % power.

    That is where the bet at the expected counts, the candidate's events less 0.84 of their standard deviation, reaches
    its limit."""
    limit = log_limit(alpha)

    def found(mine: float) -> bool:
        ours = sum(calls * weight for weight, calls in split) * mine
        fewer = max(1 - _POWER / sqrt(ours), 0.0) if ours > 0 else 0.0
        events = [
            Events(fewer * calls * weight * mine, fewer * calls * weight * mine + calls * (1 - weight) * share, weight)
            for weight, calls in split
        ]
        return log_harm(events) > limit

    if not found(1.0):
        return None
    low, high = share, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def _expected(weight: float, calls: float, candidate: float, stable: float) -> Counts:
    mine, theirs = calls * weight, calls * (1 - weight)
    return Counts(weight, mine, mine * candidate, theirs, theirs * stable)


def _share(share: float) -> float:
    return min(max(share, 0.0), 1.0) if share == share else 0.0


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "never ends"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
