from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pelton.errors import Disagrees, PackageInvalid
from pelton.packages import golden
from pelton.types import DATATYPES, Signature, TensorSpec

KINDS = [name for name in DATATYPES if name != "BYTES"]


def one(datatype: str, array: np.ndarray, path: Path) -> np.ndarray:
    signature = Signature((TensorSpec("x", datatype, array.shape[1:]),), (TensorSpec("y", "FP32"),))
    golden.write(path, [golden.Request({"x": array}, {"y": np.zeros(len(array), np.float32)})], signature)
    (request,) = golden.read(path)
    return request.inputs["x"]


@given(st.data(), st.sampled_from(KINDS))
def test_every_element_of_every_type_comes_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, datatype: str
) -> None:
    dtype = DATATYPES[datatype].dtype
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)))
    back = one(datatype, array, tmp_path_factory.mktemp("g") / "golden.json")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("datatype", KINDS)
def test_large_tensors_come_back_exactly(tmp_path: Path, datatype: str) -> None:
    dtype = DATATYPES[datatype].dtype
    array = np.random.default_rng(0).integers(0, 2, (3, 1000)).astype(dtype)
    np.testing.assert_array_equal(one(datatype, array, tmp_path / "golden.json"), array)
    assert (tmp_path / "golden.json").stat().st_size < 3000 * dtype.itemsize * 1.4 + 300


def test_bytes_come_back_whatever_they_hold(tmp_path: Path) -> None:
    array = np.array([[b"", b"\x00\xff"], ["grüß".encode(), b'"\n']], object)
    assert one("BYTES", array, tmp_path / "golden.json").tolist() == array.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "truncated"),
        ("{}", "array"),
        ('[{"inputs": {}}]', "outputs"),
        ('[{"inputs": {"x": {"datatype": "FP99", "shape": [1], "data": [1]}}, "outputs": {}}]', "FP99"),
        ('[{"inputs": {"x": {"datatype": "FP32", "shape": [2], "data": [1]}}, "outputs": {}}]', "request 0, 'x'"),
        ('[{"inputs": {"x": {"datatype": "FP32", "shape": [-1], "data": [1]}}, "outputs": {}}]', "'x'"),
        ('[{"inputs": {"x": {"datatype": "FP32", "shape": [1], "data": ["a"]}}, "outputs": {}}]', "'x'"),
        ('[{"inputs": {"x": {"datatype": "UINT8", "shape": [1], "data": [300]}}, "outputs": {}}]', "'x'"),
        ('[{"inputs": {"x": {"datatype": "FP32", "shape": [1], "data": "AAA"}}, "outputs": {}}]', "'x'"),
        ('[{"inputs": {"x": {"datatype": "BYTES", "shape": [1], "data": ["é"]}}, "outputs": {}}]', "'x'"),
        ("[" * 20000, "golden.json"),
    ],
)
def test_a_damaged_file_is_refused_and_says_where(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "golden.json").write_text(text)
    with pytest.raises(PackageInvalid, match=message):
        golden.read(tmp_path / "golden.json")


def test_too_many_requests_are_refused_both_ways(tmp_path: Path) -> None:
    signature = Signature((TensorSpec("x", "FP32"),), (TensorSpec("y", "FP32"),))
    zero = np.zeros(1, np.float32)
    with pytest.raises(PackageInvalid, match="at most 256"):
        golden.write(tmp_path / "g", [golden.Request({"x": zero}, {"y": zero})] * 257, signature)
    (tmp_path / "g").write_text("[" + ",".join(['{"inputs":{},"outputs":{}}'] * 257) + "]")
    with pytest.raises(PackageInvalid, match="at most 256"):
        golden.read(tmp_path / "g")


def agree(expected: object, got: object, dtype: object = np.float32) -> None:
    golden.compare({"p": np.array(expected, dtype)}, {"p": np.array(got, dtype)}, rtol=1e-3, atol=1e-5)


def test_answers_within_the_tolerance_agree() -> None:
    agree([1.0, 1000.0, 0.0], [1.0009, 1000.9, 0.000009])
    agree([np.nan, np.inf, -np.inf], [np.nan, np.inf, -np.inf])
    agree([1, 2], [1, 2], np.int64)
    agree([b"a"], [b"a"], object)


def test_a_difference_names_output_position_and_both_values() -> None:
    with pytest.raises(Disagrees, match=r"'p' at \[1, 0\] is 2\.5 instead of 2\.0 \(2 of 4 elements"):
        agree([[1.0, 1.0], [2.0, 1.0]], [[1.0, 1.1], [2.5, 1.0]])


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ([1.0], [np.nan]),
        ([np.nan], [1.0]),
        ([1.0], [np.inf]),
        ([np.inf], [-np.inf]),
        ([np.inf], [1.0]),
        ([0.0], [2e-5]),
    ],
)
def test_nan_infinity_and_small_differences_disagree(expected: list[float], got: list[float]) -> None:
    with pytest.raises(Disagrees):
        agree(expected, got)


def test_integers_and_texts_must_be_equal() -> None:
    with pytest.raises(Disagrees):
        agree([10000], [10001], np.int64)
    with pytest.raises(Disagrees, match="b'x' instead of b'y'"):
        agree([b"y"], [b"x"], object)


def test_another_shape_and_a_missing_output_disagree() -> None:
    with pytest.raises(Disagrees, match=r"\[1\] instead of \[2\]"):
        agree([1.0, 1.0], [1.0])
    with pytest.raises(Disagrees, match="'p' is missing"):
        golden.compare({"p": np.zeros(1)}, {})
