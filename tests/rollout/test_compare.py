"""Two answers to one call: the same or not, and by how much the score moved."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pelton.rollout.compare import Comparison, compare
from pelton.types import Array, Signature, TensorSpec


def signature(*outputs: tuple[str, tuple[int, ...]]) -> Signature:
    specs = tuple(TensorSpec(f"y{number}", datatype, shape) for number, (datatype, shape) in enumerate(outputs))
    return Signature((TensorSpec("x", "FP32", (2,)),), specs)


def scores(old: Any, new: Any, shape: tuple[int, ...] = (), tolerance: float = 0.01, **more: Any) -> Comparison:
    old, new = (np.array(one, np.float32) for one in (old, new))
    return compare([old], [new], signature(("FP32", shape)), tolerance, **more)


def test_a_score_may_differ_by_the_tolerance_relative_to_the_larger():
    assert not scores([0.5], [0.504]).disagree
    assert scores([0.5], [0.506]).disagree
    assert scores([0.5], [0.506]).shift == pytest.approx(0.006, abs=1e-6)
    assert scores([100.0], [99.5]).shift == pytest.approx(-0.5)
    assert not scores([1e-9], [3e-9]).disagree  # next to nothing, both


def test_one_row_of_many_that_differs_is_a_disagreement_with_its_shift():
    found = scores([1.0, 2.0, 3.0], [1.0, 1.5, 3.01])
    assert found.disagree
    assert found.shift == pytest.approx(-0.5)


def test_another_best_class_is_a_disagreement_another_probability_is_not():
    old = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]
    assert not scores(old, [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], (3,)).disagree
    found = scores(old, [[0.4, 0.5, 0.1], [0.1, 0.8, 0.1]], (3,))
    assert found.disagree
    assert found.shift == pytest.approx(-0.3)  # of the class that was the best


def test_of_two_classes_the_score_is_the_second_ones():
    assert scores([[0.9, 0.1]], [[0.7, 0.3]], (2,)).shift == pytest.approx(0.2)
    assert scores([[0.1, 0.9]], [[0.3, 0.7]], (2,)).shift == pytest.approx(-0.2)


def test_logits_are_classes_where_labels_are_declared_and_numbers_where_not():
    old, new = [[4.0, -1.0, 0.5]], [[5.0, -2.0, 0.0]]
    assert not scores(old, new, (3,), classes={"y0"}).disagree
    assert scores(old, new, (3,)).disagree
    assert scores(old, [[4.0, 4.5, 0.5]], (3,), classes={"y0"}).disagree


@pytest.mark.parametrize(
    ("datatype", "old", "new", "same"),
    [
        ("INT64", [3, 4], [3, 4], True),
        ("INT64", [3, 4], [3, 5], False),
        ("BOOL", [True], [False], False),
        ("BYTES", [b"cat", b"dog"], [b"cat", b"dog"], True),
        ("BYTES", [b"cat", b"dog"], [b"cat", b"cow"], False),
        ("UINT64", [2**64 - 1], [2**64 - 2], False),
    ],
)
def test_what_is_no_float_is_the_same_or_it_is_not(datatype: str, old: Any, new: Any, same: bool):
    spec = signature((datatype, ()))
    dtype = spec.outputs[0].type.dtype
    found = compare([np.array(old, dtype)], [np.array(new, dtype)], spec, 0.5)
    assert found == Comparison(not same, 0.0)


def test_nan_equals_nan_and_an_infinity_itself():
    assert not scores([np.nan, np.inf, -np.inf], [np.nan, np.inf, -np.inf]).disagree
    for other in ([np.nan], [np.inf], [1e30]):
        assert scores([1.0], other).disagree
    assert scores([np.inf], [-np.inf]).disagree
    assert scores([[0.2, 0.8]], [[0.2, np.nan]], (2,), classes={"y0"}).disagree


def test_answers_of_another_shape_disagree_without_a_measure():
    for old, new in (([1.0], [1.0, 2.0]), ([[0.5, 0.5]], [[0.3, 0.3, 0.4]]), ([1.0], [[1.0]])):
        assert scores(old, new) == Comparison(True, 0.0, measured=False)
    spec = signature(("FP32", ()), ("INT64", ()))
    assert compare([np.ones(1)], [np.ones(1), np.ones(1)], spec, 0.1).disagree


def test_half_precision_is_compared_by_its_numbers():
    assert not compare(
        [np.array([1.0], np.float16)], [np.array([1.001], np.float16)], signature(("FP16", ())), 0.01
    ).disagree
    one, two, near = (np.array([bits], np.uint16) for bits in (0x3F80, 0x4000, 0x3F81))  # 1.0, 2.0, 1.0078
    spec = signature(("BF16", ()))
    assert compare([one], [two], spec, 0.01) == Comparison(True, 1.0)
    assert not compare([one], [near], spec, 0.01).disagree


def test_any_output_may_disagree_and_the_first_float_gives_the_score():
    spec = signature(("INT64", ()), ("FP32", (2,)), ("FP32", ()))
    old = [np.array([1]), np.array([[0.4, 0.6]]), np.array([7.0])]
    new = [np.array([1]), np.array([[0.3, 0.7]]), np.array([9.0])]
    found = compare(old, new, spec, 0.01)
    assert found.disagree
    assert found.shift == pytest.approx(0.1)
    assert not compare(old, [*new[:2], old[2]], spec, 0.01).disagree


def test_no_rows_agree():
    assert compare([np.empty((0, 3))], [np.empty((0, 3))], signature(("FP32", (3,))), 0.1) == Comparison(False, 0.0)


floats = arrays.arrays(np.float32, st.sampled_from([(1,), (3,), (1, 2), (2, 3)]), elements=st.floats(width=32))


@settings(max_examples=200, deadline=None)
@given(floats, floats)
def test_whatever_models_answer_has_a_shift_that_json_can_hold(old: Array, new: Array):
    spec = signature(("FP32", old.shape[1:]))
    found = compare([old], [new], spec, 0.01)
    assert math.isfinite(found.shift * found.shift)
    json.dumps(found, allow_nan=False)
    assert compare([old], [old.copy()], spec, 0.0) == Comparison(False, 0.0)
    assert compare([new], [old], spec, 0.01).disagree == found.disagree
