"""Named, typed columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.errors import InvalidInput, PackageInvalid
from pelton.packages import Manifest, Package
from pelton.packages.preprocess import Column, Table
from pelton.transforms import Prepare, compile_prepare
from pelton.types import Signature, TensorSpec


def table(*columns: Column, datatype: str = "FP32", nan: bool = False) -> Prepare:
    width = sum(len(column.values) if column.one_hot else 1 for column in columns)
    return separate(Table(columns, "x"), TensorSpec("x", datatype, (width,), nan=nan))


def separate(block: Table, *specs: TensorSpec) -> Prepare:
    signature = Signature(specs, (TensorSpec("y", "FP32", ()),))
    return compile_prepare(Package(Path("nowhere"), Manifest("m", "onnx", "f", signature, preprocess=(block,))))


def refused(prepare: Prepare, name: str, **fields: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        prepare(fields)
    assert repr(name) in str(caught.value)
    return str(caught.value)


def test_columns_stand_in_the_declared_order_whatever_order_they_are_sent_in() -> None:
    prepare = table(Column("a"), Column("b"), Column("c"))
    assert prepare({"c": [3], "a": [1], "b": [2.5]}).inputs[0].tolist() == [[1, 2.5, 3]]
    several = prepare({"c": [3, 6], "a": [1, 4], "b": [2, 5]}).inputs[0]
    assert several.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert several.dtype == np.float32
    assert not prepare.heavy


MIXED = (
    Column("age", "integer", minimum=0, maximum=150),
    Column("income"),
    Column("member", "boolean"),
    Column("plan", "string", values=("free", "pro")),
)
ROW: dict[str, Any] = {"age": [30], "income": [1.5], "member": [True], "plan": ["pro"]}


def test_typed_columns_become_elements_alone_and_in_company() -> None:
    prepare = table(*MIXED)
    assert prepare(ROW).inputs[0].tolist() == [[30, 1.5, 1, 1]]
    two = {name: values * 2 for name, values in ROW.items()} | {"plan": ["free", "pro"]}
    assert prepare(two).inputs[0].tolist() == [[30, 1.5, 1, 0], [30, 1.5, 1, 1]]
    assert [(f.name, f.kind, f.values) for f in prepare.fields][2:] == [
        ("member", "boolean", ()),
        ("plan", "string", ("free", "pro")),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("age", -1), ("age", 151), ("age", 3.5), ("age", "3"), ("age", True), ("age", None), ("age", 10**400),
        ("income", "1"), ("income", False), ("income", None), ("income", float("nan")), ("income", 1e40), ("income", [1]),
        ("member", 1), ("member", "true"), ("member", None), ("plan", "gold"), ("plan", 1), ("plan", None), ("plan", []),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_the_name_of_its_column(name: str, value: Any) -> None:
    prepare = table(*MIXED)
    refused(prepare, name, **(ROW | {name: [value]}))
    doubled = {key: values * 2 for key, values in ROW.items()}
    message = refused(prepare, name, **(doubled | {name: [ROW[name][0], value]}))
    assert "row 1" in message


def test_a_missing_column_and_an_unknown_one_are_refused_by_name() -> None:
    prepare = table(*MIXED)
    refused(prepare, "plan", **{key: value for key, value in ROW.items() if key != "plan"})
    refused(prepare, "plam", **ROW, plam=["pro"])


def test_a_field_that_is_no_list_is_refused_even_where_it_holds_one_value() -> None:
    prepare = table(*MIXED)
    for value in ({"pro": 1}, {"pro"}, "pro"):
        refused(prepare, "plan", **(ROW | {"plan": value}))
    plain = table(Column("a"))
    for value in (b"\1", "1", {1: 1}, 1, None):
        refused(plain, "a", a=value)


def test_null_is_nan_where_the_input_allows_it() -> None:
    prepare = table(*MIXED, nan=True)
    row = prepare({name: [None] for name in ROW}).inputs[0]
    assert np.isnan(row).all()


def test_a_column_that_one_row_leaves_out_is_refused_unless_it_is_optional() -> None:
    required = table(Column("a"), Column("b"), nan=True)
    assert "left out" in refused(required, "b", a=[1, 2], b=[1, msgspec.UNSET])
    assert "left out" in refused(required, "b", a=[1], b=[msgspec.UNSET])
    for typed in (Column("b", "integer"), Column("b", "string", values=("x",), unknown=0)):
        assert "left out" in refused(table(Column("a"), typed, nan=True), "b", a=[1], b=[msgspec.UNSET])
    optional = table(Column("a"), Column("b", required=False), nan=True)
    assert np.isnan(optional({"a": [1, 2], "b": [1, msgspec.UNSET]}).inputs[0][1, 1])
    assert np.isnan(optional({"a": [1]}).inputs[0][0, 1])
    assert not optional.fields[1].required
    strict = table(Column("a"), Column("b", required=False))
    refused(strict, "b", a=[1])


def test_a_default_stands_in_for_null_and_for_a_column_left_out() -> None:
    prepare = table(Column("a"), Column("b", default=7.5), Column("c", "string", values=("x", "y"), default="y"))
    assert prepare({"a": [1]}).inputs[0].tolist() == [[1, 7.5, 1]]
    assert prepare({"a": [1, 2], "b": [None, 3], "c": ["x", msgspec.UNSET]}).inputs[0].tolist() == [
        [1, 7.5, 0],
        [2, 3, 1],
    ]


def test_an_unknown_category_takes_its_declared_number() -> None:
    prepare = table(Column("a", "string", values=("x", "y"), unknown=-1))
    assert prepare({"a": ["z", "y", None]}).inputs[0].tolist() == [[-1], [1], [-1]]
    refused(prepare, "a", a=[1])


def test_one_hot_spreads_a_category_over_its_values() -> None:
    column = Column("a", "string", values=("x", "y", "z"), one_hot=True)
    prepare = table(column, Column("b"))
    assert prepare({"a": ["y", "x"], "b": [5, 6]}).inputs[0].tolist() == [[0, 1, 0, 5], [1, 0, 0, 6]]
    refused(prepare, "a", a=["w"], b=[1])
    refused(prepare, "b", a=["x"], b=["no"])
    loose = table(msgspec.structs.replace(column, unknown=0.0))
    assert loose({"a": ["w"]}).inputs[0].tolist() == [[0, 0, 0]]


def test_columns_can_be_inputs_of_their_own() -> None:
    block = Table((Column("n"), Column("city", "string"), Column("ok", "boolean"), Column("k", "integer")))
    prepare = separate(
        block,
        TensorSpec("city", "BYTES", (1,)),
        TensorSpec("k", "INT64", ()),
        TensorSpec("n", "FP32", (1,)),
        TensorSpec("ok", "BOOL", ()),
    )
    city, k, n, ok = prepare({"n": [1, 2], "city": ["Ulm", "Köln"], "ok": [True, False], "k": [3, 4.0]}).inputs
    assert city.tolist() == [[b"Ulm"], ["Köln".encode()]]
    assert (k.dtype, k.tolist()) == (np.int64, [3, 4])
    assert (n.dtype, n.tolist()) == (np.float32, [[1], [2]])
    assert (ok.dtype, ok.tolist()) == (np.bool_, [True, False])
    refused(prepare, "ok", n=[1], city=["a"], ok=[1], k=[1])
    refused(prepare, "city", n=[1], city=["\ud800"], ok=[True], k=[1])


def test_a_category_for_a_text_input_is_checked_and_passed_as_text() -> None:
    prepare = separate(Table((Column("c", "string", values=("a", "b")),)), TensorSpec("c", "BYTES", ()))
    assert prepare({"c": ["b"]}).inputs[0].tolist() == [b"b"]
    refused(prepare, "c", c=["z"])


@pytest.mark.parametrize(
    "column",
    [
        Column("a", "string"),
        Column("a", "number", values=("x",)),
        Column("a", "string", values=("x", "x")),
        Column("a", one_hot=True),
        Column("a", "boolean", minimum=0),
        Column("a", "integer", default="x"),
        Column("a", "integer", default=1.5),
        Column("a", "string", values=("x",), default="y"),
        Column("a", minimum=0, default=-1.0),
        Column("a", default=True),
    ],
)
def test_a_column_that_contradicts_itself_is_an_invalid_package(column: Column) -> None:
    with pytest.raises(PackageInvalid, match="'a'"):
        separate(Table((column,), "x"), TensorSpec("x", "FP32", (1,)))


def test_a_table_that_does_not_fit_its_input_is_an_invalid_package() -> None:
    with pytest.raises(PackageInvalid):
        separate(Table((Column("a"), Column("b")), "x"), TensorSpec("x", "FP32", (3,)))
    with pytest.raises(PackageInvalid):
        separate(Table((), "x"), TensorSpec("x", "FP32", (-1,)))
    with pytest.raises(PackageInvalid):
        separate(Table((Column("a"),)), TensorSpec("a", "BOOL", ()))


ANY = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.integers(), max_size=2)
)
ANY |= st.sampled_from(["free", "pro", 0, 1, 30, 1.0]) | st.dictionaries(st.text(max_size=2), st.integers(), max_size=1)
PREPARES = [
    table(*MIXED),
    table(*MIXED, nan=True),
    table(*(msgspec.structs.replace(column, required=False) for column in MIXED), nan=True),
    table(*MIXED, datatype="FP16"),
]


@given(
    st.sampled_from(PREPARES),
    st.dictionaries(st.sampled_from([*ROW, "other"]), st.lists(ANY, max_size=3) | ANY, max_size=5),
)
def test_anything_json_is_a_row_vector_or_an_invalid_input(prepare: Prepare, fields: dict[str, Any]) -> None:
    try:
        prepared = prepare(fields)
    except InvalidInput:
        return
    assert prepared.inputs[0].shape == (len(next(iter(fields.values()))), 4)


@given(
    st.lists(
        st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-99, 99)] * 3), min_size=1
    )
)
def test_rows_arrive_as_sent_one_by_one_and_together(rows: list[tuple[float, ...]]) -> None:
    prepare = table(Column("a"), Column("b"), Column("c"))
    together = prepare({name: [row[i] for row in rows] for i, name in enumerate("abc")}).inputs[0]
    assert together.tolist() == [list(row) for row in rows]
    alone = [prepare({name: [row[i]] for i, name in enumerate("abc")}).inputs[0] for row in rows]
    assert np.array_equal(np.concatenate(alone), together)
