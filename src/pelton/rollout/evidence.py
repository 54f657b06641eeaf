"""Adding up: one comparison into the pairs of a process, and the counts of processes into one.

Merging is associative and commutative: sums, largest values, and the ten worst calls in an order that hangs on their
contents alone. Memory is bounded per process: 20 segments, then "other".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import msgspec

from pelton.rollout.confidence import Bounds, mean_bounds, share_bounds
from pelton.rollout.state import Pairs, Segment, Stretch, Worst

SHIFT_LIMIT: Final = 1e9  # no shift is larger: sums of their squares stay finite, and JSON has no infinity
MAX_SEGMENTS: Final = 20
MAX_WORST: Final = 10
OTHER: Final = "other"
_MAX_NAME: Final = 100  # characters of a segment's value

Example = Callable[[], tuple[dict[str, object], dict[str, object], dict[str, object]]]


class Comparison(NamedTuple):
    """`shift`: the shadow's score minus the deployed version's, of the row where it is largest in amount.

    The score is the first float output: of two classes the second one's, of more the deployed version's best one's,
    else the number itself. 0 without a float output. `measured`: the shift is a number, not only "different"."""

    disagree: bool
    shift: float
    measured: bool = True


class Agreement(msgspec.Struct, frozen=True):
    """What pairs say. Bounds hold at all looks at once; `shift` is the shadow's score minus the deployed version's."""

    pairs: int
    disagreements: int
    share: float
    share_low: float
    share_high: float
    shift: float
    shift_low: float | None  # None: too few pairs
    shift_high: float | None


def observe(pairs: Pairs, found: Comparison, segment: str = "", example: Example | None = None) -> None:
    """Adds one copied call that both versions answered. `segment`: value of the segment field, "" for none.

    `example` gives short summaries of inputs, deployed answer and shadow's answer; it is only called for a call that
    joins the ten worst."""
    pairs.pairs += 1
    pairs.disagreements += found.disagree
    pairs.shift_sum += found.shift
    pairs.shift_squares += found.shift * found.shift
    pairs.shift_largest = max(pairs.shift_largest, abs(found.shift))
    if segment:
        part = _segment(pairs.segments, segment)
        part.pairs += 1
        part.disagreements += found.disagree
    shift = found.shift if found.measured else SHIFT_LIMIT
    if example is not None and (found.disagree or shift) and _is_worst(pairs.worst, shift):
        pairs.worst = _worst([*pairs.worst, Worst(shift, *example())])


def merge_pairs(several: Iterable[Pairs]) -> Pairs:
    """One sum of all; the parts stay as they are."""
    sum_ = Pairs()
    for part in several:
        sum_.copied += part.copied
        sum_.skipped += part.skipped
        sum_.failed += part.failed
        sum_.pairs += part.pairs
        sum_.disagreements += part.disagreements
        sum_.shift_sum += part.shift_sum
        sum_.shift_squares += part.shift_squares
        sum_.shift_largest = max(sum_.shift_largest, part.shift_largest)
        sum_.deployed_seconds += part.deployed_seconds
        sum_.shadow_seconds += part.shadow_seconds
        for value, segment in part.segments.items():
            mine = sum_.segments.setdefault(value, Segment())
            mine.pairs += segment.pairs
            mine.disagreements += segment.disagreements
        sum_.worst = _worst([*sum_.worst, *part.worst])
    return sum_


def merge(stretches: Iterable[Stretch]) -> list[Stretch]:
    """One stretch per route, in the order of routes: the sum over processes. The parts stay as they are."""
    found: dict[int, Stretch] = {}
    for part in stretches:
        mine = found.get(part.route)
        if mine is None:
            mine = found[part.route] = Stretch(part.route, part.weight)
        mine.weight = max(mine.weight, part.weight)
        mine.stable.add(part.stable)
        mine.candidate.add(part.candidate)
        mine.pairs = merge_pairs([mine.pairs, part.pairs])
    return [found[route] for route in sorted(found)]


def agreement(pairs: Pairs, alpha: float = 0.05) -> Agreement:
    """Disagreement rate and score shift with bounds that hold at all looks, each end with probability 1 - alpha."""
    share = share_bounds(pairs.disagreements, pairs.pairs, alpha)
    shift = mean_bounds(pairs.pairs, pairs.shift_sum, pairs.shift_squares, alpha) or Bounds(float("nan"), float("nan"))
    known = shift.low == shift.low
    several = max(pairs.pairs, 1)
    return Agreement(
        pairs.pairs,
        pairs.disagreements,
        pairs.disagreements / several,
        share.low,
        share.high,
        pairs.shift_sum / several,
        shift.low if known else None,
        shift.high if known else None,
    )


def _segment(segments: dict[str, Segment], value: str) -> Segment:
    value = value[:_MAX_NAME]
    if value not in segments and len(segments) - (OTHER in segments) >= MAX_SEGMENTS:
        value = OTHER
    return segments.setdefault(value, Segment())


def _is_worst(worst: list[Worst], shift: float) -> bool:
    return len(worst) < MAX_WORST or abs(shift) > abs(worst[-1].shift)


def _worst(calls: list[Worst]) -> list[Worst]:
    return sorted(calls, key=lambda one: (-abs(one.shift), msgspec.json.encode(one)))[:MAX_WORST]
