"""What becomes of a rollout now: hold, advance, promote, roll back, or give up and let a person decide. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec

from pelton.rollout.confidence import (
    Counts,
    increase_bounds,
    log_e_share,
    log_not_worse,
    share_bounds,
)
from pelton.rollout.eprocess import Events, Harm, harm, log_limit
from pelton.rollout.evidence import merge_pairs
from pelton.rollout.state import OPEN, Arm, Limits, Pairs, Rollout, Stretch

Kind = Literal["hold", "advance", "promote", "roll_back", "give_up"]
Verdict = Literal["undecided", "passed", "harm"]
ERRORS_PART: Final = 0.7
_MOST: Final = 1e9  # calls; more are not foretold
_PER_HOUR: Final = 3600.0


class Decision(msgspec.Struct, frozen=True):
    """`reason`: for people. `figures`: what the decision rests on, JSON-able (see `docs/rollouts.md`)."""

    kind: Kind
    reason: str
    figures: dict[str, Any] = {}


class Finding(msgspec.Struct, frozen=True):
    """One metric: its verdict, a sentence, and its figures. `strength`: of the evidence for harm, to name the worst."""

    metric: str
    verdict: Verdict
    text: str
    figures: dict[str, Any]
    strength: float = 0.0


def decide(rollout: Rollout, stretches: Sequence[Stretch], now: float) -> Decision:
    """The verdict on all evidence so far. `stretches`: merged over processes or not; those of other routes are ignored.

    `now` in seconds, as `started_at` and `step_at`. Depends on nothing but its arguments and never raises.
    """
    mine = [part for part in stretches if not rollout.routes or part.route in rollout.routes]
    findings = judge(rollout, mine)
    here = sum(part.candidate.calls for part in mine if _is_weight(part.weight, rollout.weight))
    figures = _figures(rollout, mine, findings, here)
    harmful = _worst(findings)
    if harmful is not None and rollout.status in OPEN:  # a paused or held candidate takes calls, too
        return Decision("roll_back", harmful.text, figures)
    if rollout.status != "running":
        return Decision("hold", _rest(rollout), figures)
    kind, reason = _onward(rollout, findings, here, now)
    if kind == "hold" and now - rollout.started_at > rollout.limits.max_hours * _PER_HOUR:
        return Decision("give_up", f"no verdict in {rollout.limits.max_hours:g} hours: {reason}", figures)
    return Decision(kind, reason, figures)


def judge(rollout: Rollout, stretches: Sequence[Stretch]) -> list[Finding]:
    """Each metric by itself, over all stretches."""
    limits = rollout.limits
    if rollout.weight >= 1:
        return [_alone("errors", stretches, lambda arm: arm.errors, limits.error_increase, limits.alpha)]
    findings = [
        _compared("errors", _counts(stretches, lambda arm: arm.errors), limits.error_increase, limits, rollout.weight),
        _compared("slow", _counts(stretches, lambda arm: arm.slow), limits.slow_increase, limits, rollout.weight),
    ]
    if limits.disagreement is not None:
        pairs = merge_pairs(part.pairs for part in stretches)
        findings.append(_disagreement(pairs, limits.disagreement, limits))
    return findings


def alphas(limits: Limits) -> dict[str, float]:
    """Metrics that can roll back -> each one's chance of a false rollback; in all at most `limits.alpha`.

    Errors get most: they are what a broken version shows, and the fewest."""
    others = ["slow"] if limits.disagreement is None else ["slow", "disagreement"]
    part = (1 - ERRORS_PART) * limits.alpha / len(others)
    return {"errors": ERRORS_PART * limits.alpha, **dict.fromkeys(others, part)}


def more_calls(counts: Sequence[Counts], margin: float, alpha: float, weight: float) -> float | None:
    """About how many more candidate calls at `weight` show that it is not worse, if both go on with one share.

    None: more than anybody waits for."""
    calls = sum(part.candidate_calls + part.stable_calls for part in counts)
    events = sum(part.candidate_events + part.stable_events for part in counts)
    share, limit = (events + 0.5) / (calls + 1), log_limit(alpha)

    def enough(more: float) -> bool:
        stable = more * (1 - weight) / weight
        ahead = Counts(weight, more, more * share, stable, stable * share)
        return log_not_worse([*counts, ahead], margin) >= limit

    if not 0 < weight < 1 or not enough(_MOST):
        return None
    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, high * 2
    while high - low > max(1.0, high / 100):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _compared(metric: str, counts: list[Counts], margin: float, limits: Limits, weight: float) -> Finding:
    """A metric of which both versions have events."""
    events = [Events(c.candidate_events, c.candidate_events + c.stable_events, c.weight) for c in counts]
    worse = harm(events, alphas(limits)[metric])
    value = log_not_worse(counts, margin)
    passed = value >= log_limit(limits.alpha)
    bounds = increase_bounds(counts, limits.alpha)
    needed = None if passed or worse.found else more_calls(counts, margin, limits.alpha, weight)
    sides = _sides(counts)
    figures: dict[str, Any] = {
        **sides,
        "log_e": worse.log_e,
        "log_e_limit": worse.limit,
        "expected_events": worse.expected,
        "margin": margin,
        "increase_low": bounds.low,
        "increase_high": bounds.high,
        "log_e_margin": value,
        "log_e_margin_limit": log_limit(limits.alpha),
        "calls_needed": needed,
    }
    seen = f"{metric}: candidate {_of(sides['candidate'])}, deployed {_of(sides['deployed'])}"
    if worse.found:
        return Finding(metric, "harm", f"{seen}; {_harm_text(worse)}", figures, worse.log_e - worse.limit)
    if passed:
        return Finding(metric, "passed", f"{seen}; an increase of {percent(margin)} or more is ruled out", figures)
    return Finding(metric, "undecided", f"{seen}; {_needs(needed, margin)}", figures)


def _disagreement(pairs: Pairs, limit: float, limits: Limits) -> Finding:
    """Copied calls whose answers differ: their share is surely above the limit, surely below, or neither."""
    alpha = alphas(limits)["disagreement"]
    low = share_bounds(pairs.disagreements, pairs.pairs, alpha).low
    high = share_bounds(pairs.disagreements, pairs.pairs, limits.alpha).high
    share = pairs.disagreements / max(pairs.pairs, 1)
    figures: dict[str, Any] = {
        "pairs": pairs.pairs,
        "disagreements": pairs.disagreements,
        "failed": pairs.failed,
        "share": share,
        "low": low,
        "high": high,
        "margin": limit,
    }
    seen = f"disagreement: {pairs.disagreements:,} of {pairs.pairs:,} copied calls"
    if low > limit:
        strength = min(log_e_share(pairs.disagreements, pairs.pairs, limit), 1e9) - log_limit(alpha)
        return Finding("disagreement", "harm", f"{seen}, surely more than {percent(limit)}", figures, strength)
    if high < limit:
        return Finding("disagreement", "passed", f"{seen}, surely less than {percent(limit)}", figures)
    if not pairs.pairs:
        return Finding("disagreement", "undecided", "disagreement: no copied call was answered by both yet", figures)
    text = f"{seen}; their share is between {percent(low)} and {percent(high)}, the limit is {percent(limit)}"
    return Finding("disagreement", "undecided", text, figures)


def _alone(
    metric: str, stretches: Sequence[Stretch], events: Callable[[Arm], int], margin: float, alpha: float
) -> Finding:
    """All calls go to the candidate: nobody to compare with, so the deployed version's share counts as 0."""
    count = sum(events(part.candidate) for part in stretches)
    calls = sum(part.candidate.callers for part in stretches)
    bounds = share_bounds(count, max(calls, count), alpha)
    side = {"events": count, "calls": calls, "share": count / calls if calls > 0 else 0.0}
    figures: dict[str, Any] = {"candidate": side, "margin": margin, "low": bounds.low, "high": bounds.high}
    text = f"{metric}: candidate {_of(side)}"
    if bounds.low > margin:
        return Finding(metric, "harm", f"{text}, surely more than {percent(margin)}", figures, 1.0)
    return Finding(metric, "passed", text, figures)


def _onward(rollout: Rollout, findings: Sequence[Finding], here: int, now: float) -> tuple[Kind, str]:
    """Without harm: the next step, or why not yet."""
    limits = rollout.limits
    if here < limits.min_calls:
        return "hold", f"{here:,} of {limits.min_calls:,} candidate calls at {percent(rollout.weight)}"
    if now - rollout.step_at < limits.min_seconds:
        left = limits.min_seconds - (now - rollout.step_at)
        return "hold", f"{percent(rollout.weight)} is kept for {left:.0f} s more"
    if rollout.step + 2 < len(rollout.steps):
        return "advance", f"no sign of harm after {here:,} candidate calls at {percent(rollout.weight)}"
    open_ = [finding.text for finding in findings if finding.verdict != "passed"]
    if open_:
        return "hold", "; ".join(open_)
    return "promote", "; ".join(finding.text for finding in findings)


def _rest(rollout: Rollout) -> str:
    """Why nothing happens to a rollout that does not run."""
    ended = {"promoted": "promoted", "rolled_back": "rolled back", "aborted": "aborted"}
    if rollout.status in ended:
        return f"the rollout was {ended[rollout.status]}"
    return "a person paused it" if rollout.status == "paused" else f"a person decides ({rollout.reason or 'held'})"


def _figures(rollout: Rollout, stretches: Sequence[Stretch], findings: Sequence[Finding], here: int) -> dict[str, Any]:
    return {
        "step": rollout.step,
        "steps": list(rollout.steps),
        "weight": rollout.weight,
        "candidate_calls": sum(part.candidate.calls for part in stretches),
        "deployed_calls": sum(part.stable.calls for part in stretches),
        "candidate_calls_at_step": here,
        "min_calls": rollout.limits.min_calls,
        "metrics": {finding.metric: {"verdict": finding.verdict, **finding.figures} for finding in findings},
    }


def _worst(findings: Sequence[Finding]) -> Finding | None:
    harmful = [finding for finding in findings if finding.verdict == "harm"]
    return max(harmful, key=lambda finding: finding.strength) if harmful else None


def _counts(stretches: Sequence[Stretch], events: Callable[[Arm], int]) -> list[Counts]:
    """What can be compared: calls that were split. A caller's events are never more than its calls."""
    counts = []
    for part in stretches:
        if 0 < part.weight < 1:
            new, old = events(part.candidate), events(part.stable)
            calls = max(part.candidate.callers, new), max(part.stable.callers, old)
            counts.append(Counts(part.weight, calls[0], new, calls[1], old))
    return counts


def _sides(counts: Sequence[Counts]) -> dict[str, dict[str, float]]:
    new = sum(part.candidate_events for part in counts), sum(part.candidate_calls for part in counts)
    old = sum(part.stable_events for part in counts), sum(part.stable_calls for part in counts)
    return {
        side: {"events": events, "calls": calls, "share": events / calls if calls else 0.0}
        for side, (events, calls) in (("candidate", new), ("deployed", old))
    }


def _harm_text(worse: Harm) -> str:
    return f"{worse.events:,.0f} fell on the candidate where {worse.expected:,.1f} would if both were alike"


def _needs(needed: float | None, margin: float) -> str:
    if needed is None:
        return f"an increase below {percent(margin)} cannot be shown at this rate of events"
    return f"needs about {_rounded(needed):,} more candidate calls to show an increase below {percent(margin)}"


def _of(side: dict[str, float]) -> str:
    return f"{side['events']:,.0f} of {side['calls']:,.0f}"


def _rounded(number: float) -> int:
    """Two digits: it is a guess."""
    unit: int = 10 ** max(len(str(int(number))) - 2, 0)
    return round(number / unit) * unit


def _is_weight(one: float, other: float) -> bool:
    return abs(one - other) < 1e-9


def percent(share: float) -> str:
    """0.0123 -> "1.23 %"."""
    return f"{share * 100:.3g} %"
