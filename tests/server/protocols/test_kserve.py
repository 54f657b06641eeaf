"""KServe v1 `:predict`: instances and columns, and what is wrong with others."""

from __future__ import annotations

from typing import Any

import pytest

from pelton.packages.preprocess import Column, Table
from pelton.testing import EchoModel
from pelton.types import Signature, TensorSpec

PATH = "/v1/models/m:predict"


def test_instances_are_answered_one_by_one_in_order(server: Any) -> None:
    client = server.connect()
    assert client.ask(PATH, {"instances": [[1, 2, 3], [4, 5, 6]]}).json == {"predictions": [[1, 2, 3], [4, 5, 6]]}
    for body in ({"inputs": [[1, 2, 3]]}, {"inputs": {"x": [[1, 2, 3]]}}, {"instances": [{"x": [1, 2, 3]}]}):
        assert client.ask(PATH, body).json == {"predictions": [[1, 2, 3]]}


def test_signature_name_and_parameters_are_tolerated(server: Any) -> None:
    body = {"signature_name": "serving_default", "parameters": {}, "instances": [[1, 2, 3]]}
    assert server.connect().ask(PATH, body).status == 200


def two_inputs() -> EchoModel:
    a, b = TensorSpec("a", "FP32", (1,)), TensorSpec("b", "INT64", ())
    return EchoModel(Signature((a, b), (a, b)))


def test_several_inputs_as_records_and_as_columns(make_server: Any) -> None:
    server = make_server()
    server.serve(model=two_inputs())
    rows = [{"a": [0.5], "b": 2**62}, {"b": -1, "a": [1.5]}]
    client = server.connect()
    expected = {"predictions": [{"a": [0.5], "b": 2**62}, {"a": [1.5], "b": -1}]}
    assert client.ask(PATH, {"instances": rows}).json == expected
    assert client.ask(PATH, {"inputs": {"a": [[0.5], [1.5]], "b": [2**62, -1]}}).json == expected


@pytest.mark.parametrize(
    ("rows", "named"),
    [([{"a": [1.0], "b": 1}, {"a": [1.0]}], "b"), ([{"a": [1.0]}], "'b'"), ([{"a": [1.0], "b": 1}, 5], "instance 1"), ([{"a": [1.0], "b": 1, "c": 1}], "'c'"), ([5], "'a', 'b'")],
)  # fmt: skip
def test_records_that_do_not_fit_are_named(make_server: Any, rows: list[Any], named: str) -> None:
    server = make_server()
    server.serve(model=two_inputs())
    answer = server.connect().ask(PATH, {"instances": rows})
    assert answer.status == 400
    assert named in answer.error


def test_a_column_that_may_be_missing_may_be_left_out_by_some_records(make_server: Any) -> None:
    server = make_server()
    spec = TensorSpec("x", "FP32", (2,), nan=True)
    table = Table(columns=(Column("age", required=False), Column("size", required=False)), fills="x")
    server.serve(model=EchoModel(Signature((spec,), (TensorSpec("y", "FP32", (2,)),))), preprocess=(table,))
    rows = [{"age": 1, "size": 2}, {"age": 3}, {"size": 4}]
    answer = server.connect().ask(PATH, {"instances": rows})
    assert answer.json == {"predictions": [[1, 2], [3, None], [None, 4]]}


def test_bytes_may_be_wrapped_as_tensorflow_serving_does(make_server: Any) -> None:
    server = make_server()
    server.serve(model=EchoModel(Signature((TensorSpec("x", "UINT8", (3,)),), (TensorSpec("y", "UINT8", (3,)),))))
    client = server.connect()
    for body in (
        {"instances": [{"b64": "AQID"}]},
        {"instances": [{"x": {"b64": "AQID"}}]},
        {"inputs": {"x": [{"b64": "AQID"}]}},
    ):
        assert client.ask(PATH, body).json == {"predictions": [[1, 2, 3]]}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{}", b"[[1,2,3]]", b'{"instances":[]}', b'{"instances":{}}', b'{"instances":null}', b'{"instances":1}', b'{"instances":"x"}',
        b'{"inputs":{}}', b'{"inputs":{"x":[]}}', b'{"inputs":{"x":1}}', b'{"inputs":null}', b'{"inputs":1}', b'{"inputs":{"z":[[1,2,3]]}}',
        b'{"instances":[[1,2,3]],"inputs":[[1,2,3]]}', b'{"instances":[[1,2,3]],"z":1}', b'{"\xff":1,"instances":[[1,2,3]]}',
        b'{"instances":[[1,2]]}', b'{"instances":[[1,2,3],[1,2]]}', b'{"instances":[[1,2,3],null]}', b'{"instances":[[1,2,3],"x"]}',
        b'{"instances":[[1,2,"3"]]}', b'{"instances":[[1,2,true]]}', b'{"instances":[[1,2,NaN]]}', b'{"instances":[[1,2,1e400]]}', b'{"instances":[[1,2,1e39]]}',
        b'{"instances":[[1,2,' + b"9" * 400 + b"]]}", b'{"instances":[[1,2,' + b"9" * 9000 + b"]]}", b'{"instances":[{}]}', b'{"instances":[{"b64":1}]}',
        b'{"instances":[{"b64":"AAAA"}]}', b'{"instances":[{"x":[1,2,3]},{"z":1}]}', b'{"instances":[{"x":[1,2,3]},[1,2,3]]}', b'{"instances":["\\ud800"]}', b'{"instances":["\xff"]}',
        b'{"instances":' + b"[" * 20000 + b"]" * 20000 + b"}", b'{"z":' + b"[" * 20000 + b"]" * 20000 + b',"instances":[[1,2,3]]}', b'{"instances":' * 20000,
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_a_400(server: Any, body: bytes) -> None:
    answer = server.connect().ask(PATH, body)
    assert answer.status == 400
    assert len(answer.error) < 500


def test_more_instances_than_one_call_may_have_are_refused(server: Any) -> None:
    answer = server.connect().ask(PATH, b'{"instances":[' + b"[1,2,3]," * 65536 + b"[1,2,3]]}")
    assert answer.status == 413


def test_a_batch_larger_than_the_model_takes_is_cut_and_joined_again(make_server: Any) -> None:
    server = make_server()
    server.serve(curve=((1, 1e-4), (4, 2e-4)))
    rows = [[float(i), 0.0, 0.0] for i in range(1000)]
    assert server.connect().ask(PATH, {"instances": rows}).json == {"predictions": rows}
    assert [record.rows for record in server.folded()] == [1000]
