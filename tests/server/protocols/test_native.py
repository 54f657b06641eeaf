"""`POST /predict/{model}`: one row as people write it, and what is wrong with others."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from pelton.testing import EchoModel
from pelton.types import Signature, TensorSpec

PATH = "/predict/m"


def echo(*specs: TensorSpec) -> EchoModel:
    return EchoModel(Signature(specs, tuple(TensorSpec(f"y_{s.name}", s.datatype, s.shape, s.nan) for s in specs)))


def test_a_tensor_by_name_or_as_data(server: Any) -> None:
    client = server.connect()
    for key in ("x", "data"):
        assert client.ask(PATH, {key: [1, 2.5, -3]}).json == {"y": [1.0, 2.5, -3.0]}


def test_scalars_and_vectors_of_different_types(make_server: Any) -> None:
    server = make_server()
    server.serve(model=echo(TensorSpec("age", "INT64"), TensorSpec("flags", "BOOL", (2,)), TensorSpec("p", "FP64")))
    answer = server.connect().ask(PATH, {"p": 0.1, "age": -(2**63), "flags": [True, False]})
    assert answer.json == {"y_age": -(2**63), "y_flags": [True, False], "y_p": 0.1}


def test_nested_lists_and_base64_are_the_same_tensor(make_server: Any) -> None:
    server = make_server()
    server.serve(model=echo(TensorSpec("x", "FP32", (2, 3))))
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    client = server.connect()
    for value in (array.tolist(), base64.b64encode(array.tobytes()).decode()):
        assert client.ask(PATH, {"x": value}).json == {"y_x": array.tolist()}


@pytest.mark.parametrize("nan", [False, True])
def test_base64_with_escaped_slashes_is_base64(make_server: Any, nan: bool) -> None:
    server = make_server()
    server.serve(model=echo(TensorSpec("x", "UINT8", (1, 3), nan)))
    assert b"\\/" in (body := b'{"x": "\\/\\/\\/\\/"}')
    assert server.connect().ask(PATH, body).json == {"y_x": [[255, 255, 255]]}


def test_bf16_numbers_are_numbers_in_both_directions(make_server: Any) -> None:
    server = make_server()
    server.serve(model=echo(TensorSpec("x", "BF16", (2,))))
    assert server.connect().ask(PATH, {"x": [1.0, -0.5]}).json == {"y_x": [1.0, -0.5]}


def test_text_is_text(make_server: Any) -> None:
    server = make_server()
    server.serve(model=echo(TensorSpec("x", "BYTES")))
    assert server.connect().ask(PATH, {"x": "grüße"}).json == {"y_x": "grüße"}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{}", b"1", b"{", b'{"x"}', b'{"x":[1,2,3]} x', b'{"x":[1,2,3]}{"x":[1,2,3]}', b"\xef\xbb\xbf{}",
        b'{"\xff":1}', b'{"x":"\xff"}', b'{"x":["\xff",1,2]}', b'{"\\ud800":1}', b'{"x":"\\ud800"}', b'{"x":[1,2,3],"z":1}',
        b'{"x":[1,2]}', b'{"x":[1,2,3,4]}', b'{"x":[[1,2,3]]}', b'{"x":[1,2,"3"]}', b'{"x":[1,2,true]}', b'{"x":[1,2,null]}',
        b'{"x":null}', b'{"x":{}}', b'{"x":1}', b'{"x":"AAAA"}', b'{"x":"no base64!"}', b'{"X":[1,2,3]}', b'{"data":1}', b'{"data":[]}',
        b'{"data":[1,2,3],"x":[1,2,3]}', b'{"x":[1,2,NaN]}', b'{"x":[1,2,-Infinity]}', b'{"x":[1,2,1e400]}', b'{"x":[1,2,1e39]}',
        b'{"x":[1,2,' + b"9" * 400 + b"]}", b'{"x":[1,2,' + b"9" * 9000 + b"]}", b'{"x":[1,2,.5]}', b'{"x":[01,2,3]}', b'{"x":[1,2,3],}',
        b'{"x":' + b"[" * 20000 + b"]" * 20000 + b"}", b'{"z":' + b"[" * 20000 + b"]" * 20000 + b"}", b"[" * 20000,
        b'{"data":' + b'{"a":' * 20000 + b"1" + b"}" * 20000 + b"}",
    ],
)  # fmt: skip
def test_a_body_that_is_no_row_is_a_400(server: Any, body: bytes) -> None:
    answer = server.connect().ask(PATH, body)
    assert answer.status == 400
    assert len(answer.error) < 500


def test_of_a_key_given_twice_the_last_counts_in_every_form(make_server: Any) -> None:
    server = make_server()
    server.serve(model=echo(TensorSpec("x", "FP32", (2,))))
    client = server.connect()
    for body in (b'{"x":[1,2],"x":[3,4]}', b'{"x":"no","x":[3,4]}', b'{"x":[9],"x":[3,4]}'):
        answer = client.ask(PATH, body)
        assert answer.status == 400 or answer.json == {"y_x": [3.0, 4.0]}
    assert client.ask(PATH, b'{"x":[1,2],"x":[3,4]}').json == {"y_x": [3.0, 4.0]}


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("UINT8", 256), ("INT8", -129), ("INT64", 2**63), ("UINT64", 2**64), ("UINT64", -1), ("FP16", 70000), ("FP32", 1e39), ("INT32", 0.5), ("BOOL", 1), ("BOOL", "true")],
)  # fmt: skip
def test_a_number_out_of_range_names_its_input(make_server: Any, datatype: str, value: Any) -> None:
    server = make_server()
    server.serve(model=echo(TensorSpec("x", datatype, (1,)), TensorSpec("z", "FP32")))
    answer = server.connect().ask(PATH, {"x": [value], "z": 1})
    assert answer.status == 400
    assert "'x'" in answer.error


@pytest.mark.parametrize("value", ["0", "-5", "abc", "nan", "inf", "1e99", ""])
def test_a_timeout_that_is_none_is_refused(server: Any, value: str) -> None:
    answer = server.connect().ask(PATH, {"x": [1, 2, 3]}, f"Pelton-Timeout-Ms: {value}\r\n")
    assert answer.status == 400
    assert "pelton-timeout-ms" in answer.error


def test_a_malformed_trace_context_is_dropped_and_a_good_one_is_kept(server: Any) -> None:
    good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for given in (good, "00-zz", "x" * 5000):
        assert server.connect().ask(PATH, {"x": [1, 2, 3]}, f"Traceparent: {given}\r\n").status == 200
    assert [record.trace for record in server.folded()] == [good, "", ""]


def test_other_methods_and_paths_are_the_pages_business(server: Any) -> None:
    client = server.connect()
    client.send(b"GET /predict/m HTTP/1.1\r\nHost: a\r\n\r\n", b"HEAD /predict/m HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b'"method": "GET"' in client.transport.out or b'"method":"GET"' in bytes(client.answers[0].body)
    for path in ("/predict/", "/predict/m/1/2", "/predict/m%2Fx", "/predict/%C3%A4", "/predict/m;x"):
        assert "path" in server.connect().ask(path, {}).json


@pytest.mark.parametrize("name", ["n", ".", "..", "-", "%00", "m%0d%0aX: 1"])
def test_an_unknown_model_is_a_404_or_no_inference(server: Any, name: str) -> None:
    answer = server.connect().ask(f"/predict/{name.replace(' ', '%20')}", {"x": [1, 2, 3]})
    assert answer.status == 404 or "path" in answer.json


def test_a_model_that_fails_is_a_500_that_names_its_version(make_server: Any) -> None:
    model = EchoModel(Signature((TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (3,)),)))
    server = make_server()
    server.serve(model=model)
    model.close()
    answer = server.connect().ask(PATH, {"x": [1, 2, 3]})
    assert (answer.status, answer.headers["pelton-version"]) == (500, "a" * 12)
