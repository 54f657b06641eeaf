"""Tensors as callers write them."""

from __future__ import annotations

import base64
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pelton.errors import InvalidInput
from pelton.transforms import compile_prepare
from pelton.transforms.elements import from_bf16, to_bf16
from pelton.transforms.tensor import Tensor
from pelton.types import DATATYPES, TensorSpec


def rows(spec: TensorSpec, *values: Any) -> np.ndarray:
    return Tensor(spec).rows(list(values))


def refused(spec: TensorSpec, *values: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        rows(spec, *values)
    message = str(caught.value)
    assert repr(spec.name) in message
    assert len(message) < 400
    return message


F2 = TensorSpec("x", "FP32", (2,))
M23 = TensorSpec("x", "FP32", (2, 3))


def test_nested_lists_become_rows_of_the_declared_shape_and_type() -> None:
    array = rows(M23, [[1, 2, 3], [4, 5, 6.5]], [[0, 0, 0], [0, 0, 1]])
    assert array.dtype == np.float32
    assert array.tolist() == [[[1, 2, 3], [4, 5, 6.5]], [[0, 0, 0], [0, 0, 1]]]


def test_a_row_may_be_one_flat_list_of_all_its_elements() -> None:
    assert rows(M23, [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]).tolist() == [
        [[1, 2, 3], [4, 5, 6]],
        [[6, 5, 4], [3, 2, 1]],
    ]


def test_a_scalar_input_takes_one_value_per_row() -> None:
    assert rows(TensorSpec("x", "INT64", ()), 1, -(2**63), 2**63 - 1).tolist() == [1, -(2**63), 2**63 - 1]


@pytest.mark.parametrize(("name", "low", "high"), [(n, t.dtype, t) for n, t in DATATYPES.items() if t.kind == "int"])
def test_integers_at_the_limits_pass_and_beyond_them_are_refused(name: str, low: Any, high: Any) -> None:
    limits = np.iinfo(DATATYPES[name].dtype)
    spec = TensorSpec("x", name, ())
    assert rows(spec, int(limits.min), int(limits.max)).tolist() == [limits.min, limits.max]
    for value in (int(limits.min) - 1, int(limits.max) + 1, 10**5000, 1e300):
        assert "beyond the range" in refused(spec, 0, value)


@pytest.mark.parametrize("value", ["3", True, None, 3.5, math.nan, math.inf, [3], {}, "", b"xy"])
def test_only_integers_are_integers(value: Any) -> None:
    refused(TensorSpec("x", "INT32", (1,)), [value])


def test_a_float_without_a_fraction_is_an_integer() -> None:
    assert rows(TensorSpec("x", "INT32", (2,)), [3.0, -4]).tolist() == [[3, -4]]


@pytest.mark.parametrize(
    "value", ["3", True, None, [3], {}, math.nan, math.inf, -math.inf, 10**400, 1e39, msgspec.UNSET]
)
def test_only_finite_numbers_in_range_are_fp32(value: Any) -> None:
    refused(F2, [1.0, value])


def test_fp16_and_bf16_overflow_is_refused() -> None:
    assert rows(TensorSpec("x", "FP16", ()), 65504).tolist() == [65504]
    assert "beyond" in refused(TensorSpec("x", "FP16", ()), 65520)
    assert "beyond" in refused(TensorSpec("x", "BF16", ()), 3.4e38)


def test_large_finite_doubles_whose_sum_overflows_are_accepted() -> None:
    assert rows(TensorSpec("x", "FP64", (2,)), [1.7e308, 1.7e308]).tolist() == [[1.7e308, 1.7e308]]
    assert rows(TensorSpec("x", "FP64", (2,)), [10**308, 10**308]).tolist() == [[1e308, 1e308]]


def test_null_is_nan_only_where_nan_is_allowed() -> None:
    spec = TensorSpec("x", "FP32", (3,), nan=True)
    array = rows(spec, [None, math.inf, 1])
    assert np.isnan(array[0, 0])
    assert array[0, 1:].tolist() == [math.inf, 1]
    assert "null" in refused(TensorSpec("x", "FP32", (3,)), [0, None, 0])
    assert "beyond" in refused(spec, [None, 1e39, 1])


def test_booleans_are_not_numbers_and_numbers_are_not_booleans() -> None:
    spec = TensorSpec("flag", "BOOL", (2,))
    assert rows(spec, [True, False]).tolist() == [[True, False]]
    for value in (0, 1, "true", None):
        refused(spec, [True, value])


def test_text_becomes_utf8_and_lone_surrogates_are_refused() -> None:
    spec = TensorSpec("s", "BYTES", (2,))
    assert rows(spec, ["ä", b"\xff"]).tolist() == [["ä".encode(), b"\xff"]]
    assert "surrogate" in refused(spec, ["a", "\ud800"])
    refused(spec, ["a", 1])


def test_the_error_names_the_row_and_the_position() -> None:
    assert "row 1, position [1, 2]: 'x' is not a number" in refused(M23, [[1, 2, 3]] * 2, [[1, 2, 3], [1, 2, "x"]])


@pytest.mark.parametrize(
    "value",
    [[1], [1, 2, 3], 1, [[1], [2]], [[[1, 2]]], {}, {"a": 1}, [1, [2]], [[1, 2], 3]],
)
def test_wrong_lengths_and_depths_are_refused(value: Any) -> None:
    refused(F2, value)


@pytest.mark.parametrize("value", [[[1, 2, 3], [4, 5]], [[1, 2, 3]], [1, 2, 3, 4, 5], [[1, 2, 3], 4], [[], []]])
def test_ragged_and_short_matrices_are_refused(value: Any) -> None:
    refused(M23, value)


def test_rows_of_a_variable_dimension_must_agree_in_one_call_unless_they_can_be_padded() -> None:
    spec = TensorSpec("x", "INT64", (-1,))
    assert rows(spec, [1, 2, 3]).tolist() == [[1, 2, 3]]
    refused(spec, [1, 2, 3], [1])
    padded = TensorSpec("x", "INT64", (-1,), pad=7)
    assert rows(padded, [1, 2, 3], [1]).tolist() == [[1, 2, 3], [1, 7, 7]]


def test_a_ragged_row_is_refused_even_where_rows_are_padded() -> None:
    refused(TensorSpec("x", "FP32", (-1, -1), pad=0), [[1, 2], [3]], [[1]])


def test_twenty_thousand_levels_of_lists_are_refused_without_recursion() -> None:
    deep: Any = 1
    for _ in range(20_000):
        deep = [deep]
    refused(F2, deep)
    refused(F2, [deep, deep])


def test_raw_little_endian_bytes_fill_a_row() -> None:
    raw = np.arange(6, dtype="<f4").reshape(2, 3)
    expected = raw[None].tolist()
    for value in (
        raw.tobytes(),
        base64.b64encode(raw.tobytes()).decode(),
        {"b64": base64.b64encode(raw.tobytes()).decode()},
    ):
        assert rows(M23, value).tolist() == expected
    assert rows(M23, raw.tobytes(), raw.tolist()).tolist() == [raw.tolist()] * 2


def test_raw_bytes_of_the_wrong_length_or_value_are_refused() -> None:
    raw = np.arange(6, dtype="<f4").tobytes()
    assert "24" in refused(M23, raw[:-1])
    refused(M23, raw + b"\0")
    refused(M23, b"")
    refused(M23, "not base64!")
    refused(M23, base64.b64encode(raw).decode()[:-3])
    refused(M23, np.full(6, np.nan, "<f4").tobytes())
    refused(TensorSpec("x", "BOOL", (2,)), b"\1\2")
    refused(TensorSpec("x", "BF16", (1,)), b"\x80\x7f")


def test_raw_bytes_settle_one_variable_dimension_but_not_two() -> None:
    spec = TensorSpec("x", "INT16", (-1, 2))
    assert rows(spec, np.arange(6, dtype="<i2").tobytes()).tolist() == [[[0, 1], [2, 3], [4, 5]]]
    refused(spec, b"123")
    refused(TensorSpec("x", "INT16", (-1, -1)), b"1234")


def test_arrays_are_checked_like_lists() -> None:
    assert rows(F2, np.array([1.5, 2])).dtype == np.float32
    assert Tensor(F2).rows(np.ones((3, 2), np.int64)).tolist() == [[1, 1]] * 3
    refused(F2, np.ones(3))
    refused(F2, np.array([1e300, 1]))
    refused(F2, np.array([np.nan, 1]))
    refused(F2, np.array([True, False]))
    refused(TensorSpec("x", "INT8", (1,)), np.array([128]))
    refused(TensorSpec("x", "INT8", (1,)), np.array([1.5]))
    assert rows(TensorSpec("x", "INT8", (1,)), np.array([-128.0])).tolist() == [[-128]]


def test_bfloat16_rounds_to_nearest_even_and_comes_back() -> None:
    values = np.array([0, 1, -1.5, 1 + 2**-8, 1 + 3 * 2**-8, 3.0e38, np.inf, np.nan], np.float32)
    back = from_bf16(to_bf16(values))
    assert back[:3].tolist() == [0, 1, -1.5]
    assert back[3:5].tolist() == [1, 1 + 2**-6]  # ties go to the even neighbour
    assert back[5] == pytest.approx(3.0e38, rel=2**-8)
    assert back[6] == np.inf
    assert np.isnan(back[7])
    assert rows(TensorSpec("x", "BF16", ()), 1.5).tolist() == [0x3FC0]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["AAAA", "AACAPw=="]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)
SPECS = st.builds(
    TensorSpec,
    name=st.just("x"),
    datatype=st.sampled_from(sorted(DATATYPES)),
    shape=st.lists(st.integers(-1, 3), max_size=3).map(tuple),
    nan=st.booleans(),
    pad=st.sampled_from([None, 0.0]),
)


@given(
    SPECS.filter(lambda spec: not (spec.datatype == "BYTES" and spec.pad is not None)),
    st.lists(JSON, min_size=1, max_size=3),
)
@example(TensorSpec("x", "FP32", (0,)), [""])
@example(TensorSpec("x", "FP32", (0, -1)), ["AAAA"])
@example(TensorSpec("x", "FP32", (0, -1)), [""])
@example(TensorSpec("x", "INT8", ()), [10**5000])
def test_anything_json_is_an_array_of_the_declared_form_or_an_invalid_input(
    spec: TensorSpec, values: list[Any]
) -> None:
    try:
        array = Tensor(spec).rows(values)
    except InvalidInput:
        return
    assert array.dtype == spec.type.dtype
    assert array.shape[0] == len(values)
    assert len(array.shape) == 1 + len(spec.shape)
    assert all(need in (-1, dim) for need, dim in zip(spec.shape, array.shape[1:], strict=True))
    if spec.type.code and spec.type.kind == "float" and not spec.nan:
        assert np.isfinite(array).all()


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1)
)
def test_finite_numbers_arrive_unchanged(values: list[list[float]]) -> None:
    assert rows(TensorSpec("x", "FP32", (3,)), *values).tolist() == values


def test_inputs_without_a_block_are_tensor_fields(make: Any) -> None:
    specs = (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "INT64", ()))
    prepare = compile_prepare(make(specs))
    assert [(f.name, f.kind, f.shape, f.datatype) for f in prepare.fields] == [
        ("a", "tensor", (2,), "FP32"),
        ("b", "tensor", (), "INT64"),
    ]
    assert not prepare.heavy
    prepared = prepare({"b": [7, 8], "a": [[1, 2], [3, 4]]})
    assert [array.tolist() for array in prepared.inputs] == [[[1, 2], [3, 4]], [7, 8]]
    assert prepared.counts is None


@pytest.mark.parametrize(
    "fields",
    [{}, {"a": []}, {"x": []}, {"x": 5}, {"x": None}, {"x": "12"}, {"x": [1], "y": [1]}, {"y": [1]}, {"x": {"0": 1}}],
)
def test_wrong_sets_of_fields_are_refused(make: Any, fields: Any) -> None:
    with pytest.raises(InvalidInput):
        compile_prepare(make())(fields)


def test_fields_of_unlike_length_are_refused(make: Any) -> None:
    prepare = compile_prepare(make((TensorSpec("a", "FP32", ()), TensorSpec("b", "FP32", ()))))
    with pytest.raises(InvalidInput, match="'b': 2"):
        prepare({"a": [1], "b": [1, 2]})
