"""Which calls go to the candidate: keys always alike, others by chance, in the share that was asked for."""

from __future__ import annotations

import math
import threading
import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.routing import Sticky

PLACES = [
    (True, 287873857589780261),
    (True, 724668744377715391),
    (True, 142659801463821653),
    (True, 1142849909136122906),
]
KEYS = [b"customer-%d" % number for number in range(20_000)]


def test_a_key_has_its_place_for_good():
    """These numbers must never change: two releases side by side have to split alike."""
    split = Sticky("fraud/r1", 0.5)
    assert [split.pick(key) for key in (b"a", b"customer-7", "Zoë".encode(), b"\x00" * 300)] == PLACES


@pytest.mark.parametrize("weight", [0.0, 0.01, 0.1, 0.5, 0.99, 1.0])
def test_keys_and_calls_without_one_split_by_the_weight(weight: float):
    split = Sticky("fraud/r1", weight)
    spread = 4.5 * math.sqrt(weight * (1 - weight) / len(KEYS))
    assert sum(split.pick(key)[0] for key in KEYS) / len(KEYS) == pytest.approx(weight, abs=spread + 1e-12)
    assert sum(split.pick(None)[0] for _ in KEYS) / len(KEYS) == pytest.approx(weight, abs=spread + 1e-12)


@given(st.binary(min_size=1, max_size=64), st.floats(0, 1), st.floats(0, 1))
def test_a_key_that_has_the_candidate_keeps_it_when_the_weight_rises(key: bytes, one: float, other: float):
    low, high = sorted([one, other])
    if Sticky("fraud/r1", low).pick(key)[0]:
        assert Sticky("fraud/r1", high).pick(key)[0]


def test_another_rollout_finds_other_keys():
    """Else the same tenth of callers would meet every candidate."""
    one, other = Sticky("fraud/r1", 0.1), Sticky("fraud/r2", 0.1)
    both = sum(one.pick(key)[0] and other.pick(key)[0] for key in KEYS)
    assert both / len(KEYS) == pytest.approx(0.01, abs=0.004)


def test_keys_have_numbers_and_none_is_zero():
    split = Sticky("fraud/r1", 0.1)
    numbers = {split.pick(key)[1] for key in KEYS}
    assert len(numbers) == len(KEYS)
    assert all(0 < number < 2**63 for number in numbers)
    assert split.pick(None)[1] == split.pick(b"")[1] == 0


def test_calls_without_a_key_take_the_place_that_is_drawn():
    places = iter([0.0, 0.0999, 0.1, 0.9])
    split = Sticky("fraud/r1", 0.1, places.__next__)
    assert [split.pick(None)[0] for _ in range(4)] == [True, True, False, False]


@pytest.mark.parametrize("weight", [-1.0, 2.0])
def test_a_weight_outside_its_range_means_none_or_all(weight: float):
    split = Sticky("fraud/r1", weight)
    assert {split.pick(key)[0] for key in KEYS[:100]} == {weight > 1}


def test_threads_get_what_one_thread_gets():
    split = Sticky("fraud/r1", 0.3)
    expected = [split.pick(key) for key in KEYS[:3000]]
    found: list[list[tuple[bool, int]]] = []
    threads = [threading.Thread(target=lambda: found.append([split.pick(k) for k in KEYS[:3000]])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_a_pick_takes_less_than_two_microseconds():
    split = Sticky("fraud/r1", 0.1)
    for key in (b"customer-1234567", None):
        best = min(timeit.repeat(lambda key=key: split.pick(key), number=2000, repeat=15)) / 2000
        assert best < 2e-6
