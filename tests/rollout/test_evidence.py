"""Counts add up: over calls, processes and in any order."""

from __future__ import annotations

import copy
import json
import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelton.rollout import Arm, Pairs, Segment, Stretch, Worst
from pelton.rollout.evidence import MAX_SEGMENTS, MAX_WORST, OTHER, SHIFT_LIMIT, Comparison, agreement, merge, observe
from pelton.rollout.evidence import merge_pairs as together


def example(name: str = "x"):
    return lambda: ({"name": name}, {"score": 1.0}, {"score": 2.0})


def test_a_comparison_is_counted_with_its_segment_and_its_shift():
    pairs = Pairs()
    observe(pairs, Comparison(True, -0.5), "PT", example())
    observe(pairs, Comparison(False, 0.1), "PT")
    observe(pairs, Comparison(False, 0.0))
    assert (pairs.pairs, pairs.disagreements) == (3, 1)
    assert (pairs.shift_sum, pairs.shift_squares) == (pytest.approx(-0.4), pytest.approx(0.26))
    assert pairs.shift_largest == 0.5
    assert pairs.segments == {"PT": Segment(2, 1)}
    assert pairs.worst == [Worst(-0.5, {"name": "x"}, {"score": 1.0}, {"score": 2.0})]


def test_two_counts_share_nothing():
    first, second = Pairs(), Pairs()
    observe(first, Comparison(True, 1.0), "PT", example())
    assert second == Pairs()


def test_segments_are_bounded_and_the_rest_are_others():
    pairs = Pairs()
    for number in range(50):
        observe(pairs, Comparison(number % 2 == 0, 0.0), f"value-{number}")
        observe(pairs, Comparison(False, 0.0), "value-0")
    observe(pairs, Comparison(False, 0.0), "long" * 1000 if len(pairs.segments) < MAX_SEGMENTS else "value-1")
    assert len(pairs.segments) == MAX_SEGMENTS + 1
    assert pairs.segments[OTHER] == Segment(30, 15)
    assert pairs.segments["value-0"] == Segment(51, 1)
    assert sum(segment.pairs for segment in pairs.segments.values()) == pairs.pairs
    assert max(map(len, pairs.segments)) <= 100


def test_the_ten_worst_are_kept_and_others_are_not_even_written_down():
    pairs, written = Pairs(), []

    def noting(number: int):
        return lambda: (written.append(number) or {"n": number}, {}, {})

    for number in range(100):
        observe(pairs, Comparison(True, -number / 100), "", noting(number))
    for number in range(50):
        observe(pairs, Comparison(True, number / 100), "", noting(-1))
    assert [one.shift for one in pairs.worst] == [-number / 100 for number in range(99, 89, -1)]
    assert len(pairs.worst) == MAX_WORST
    assert -1 not in written


def test_answers_that_cannot_be_measured_come_first_and_do_not_move_the_mean():
    pairs = Pairs()
    observe(pairs, Comparison(True, 5.0), "", example("far"))
    observe(pairs, Comparison(True, 0.0, measured=False), "", example("other shape"))
    assert [one.inputs["name"] for one in pairs.worst] == ["other shape", "far"]
    assert pairs.worst[0].shift == SHIFT_LIMIT
    assert pairs.shift_sum == 5.0
    json.dumps(msgspec.to_builtins(pairs), allow_nan=False)


def test_answers_that_agree_are_no_examples():
    pairs = Pairs()
    observe(pairs, Comparison(False, 0.0), "", example())
    assert pairs.worst == []


def test_processes_are_added_up_per_route_and_stay_as_they_are():
    parts = [
        Stretch(9, 0.5, Arm(5, 1), Arm(4)),
        Stretch(7, 0.1, Arm(10, 1, 2, 3.0, 4.0, 2), Arm(1)),
        Stretch(7, 0.1, Arm(20, 1, 1, 1.0, 1.0, 1), Arm(2, 1)),
    ]
    before = copy.deepcopy(parts)
    found = merge(parts)
    assert parts == before
    assert [(one.route, one.weight) for one in found] == [(7, 0.1), (9, 0.5)]
    assert found[0].stable == Arm(30, 2, 3, 4.0, 5.0, 3)
    assert found[0].stable.callers == 27
    assert found[0].candidate == Arm(3, 1)


numbers = st.integers(0, 1000)
halves = st.integers(-1000, 1000).map(lambda number: number / 2)  # sums of them are exact
worst = st.lists(st.builds(Worst, halves, st.just({}), st.just({}), st.fixed_dictionaries({"n": numbers})), max_size=12)
pairs = st.builds(
    Pairs,
    copied=numbers,
    skipped=numbers,
    failed=numbers,
    pairs=numbers,
    disagreements=numbers,
    shift_sum=halves,
    shift_squares=halves.map(abs),
    shift_largest=halves.map(abs),
    segments=st.dictionaries(st.sampled_from("abcdef"), st.builds(Segment, numbers, numbers)),
    worst=worst,
)
parts = st.lists(
    st.builds(Stretch, st.integers(1, 3), st.just(0.1), st.builds(Arm, numbers, numbers), st.just(Arm()), pairs),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(pairs, pairs, pairs)
def test_pairs_may_be_added_in_any_order_and_grouping(one: Pairs, two: Pairs, three: Pairs):
    whole = together([one, two, three])
    assert together([together([one, two]), three]) == whole
    assert together([one, together([two, three])]) == whole
    assert together([three, one, two]) == whole
    assert together([whole, Pairs()]) == whole


@settings(max_examples=60, deadline=None)
@given(parts, st.integers(0, 6), st.randoms())
def test_stretches_may_be_merged_in_any_order_and_grouping(given_: list[Stretch], cut: int, chance: random.Random):
    whole = merge(given_)
    mixed = list(given_)
    chance.shuffle(mixed)
    assert merge(mixed) == whole
    assert merge([*merge(given_[:cut]), *merge(given_[cut:])]) == whole


def test_the_report_of_pairs_has_bounds_and_is_json():
    nothing = agreement(Pairs())
    assert (nothing.share_low, nothing.share_high, nothing.shift_low) == (0.0, 1.0, None)
    found = Pairs()
    for number in range(400):
        observe(found, Comparison(number % 10 == 0, 0.2 if number % 2 else 0.0))
    report = agreement(found)
    assert report.share == 0.1
    assert report.share_low < 0.1 < report.share_high < 0.17
    assert report.shift_low is not None
    assert report.shift_high is not None
    assert report.shift_low < 0.1 < report.shift_high
    assert math.isclose(report.shift, 0.1)
    for one in (nothing, report):
        json.dumps(msgspec.to_builtins(one), allow_nan=False)
