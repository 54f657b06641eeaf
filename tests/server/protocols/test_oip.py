"""Open Inference Protocol v2 over REST: every type both ways, JSON and binary, and everything that can be wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from pelton.packages.preprocess import Column, Table
from pelton.testing import EchoModel
from pelton.types import DATATYPES, Array, Signature, TensorSpec

SCHEMA = json.loads(Path(__file__).with_name("oip_schema.json").read_text())
INFER = "/v2/models/m/infer"
INPUT = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]}


def valid(kind: str, value: Any) -> None:
    """Fails where `value` is not what the specification calls a `kind`."""
    jsonschema.validate(value, {"$ref": f"#/$defs/{kind}", "$defs": SCHEMA["$defs"]})


def echo(datatype: str, shape: tuple[int, ...], nan: bool = False) -> EchoModel:
    return EchoModel(Signature((TensorSpec("x", datatype, shape, nan),), (TensorSpec("y", datatype, shape, nan),)))


def binary(inputs: Sequence[dict[str, Any]], *buffers: bytes, **more: Any) -> tuple[bytes, str]:
    """The body, and the header line with the length of its JSON."""
    head = json.dumps({"inputs": inputs, **more}).encode()
    return b"".join((head, *buffers)), f"Inference-Header-Content-Length: {len(head)}\r\n"


def with_size(size: Any, shape: Sequence[int] = (1, 3), name: str = "x", datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "datatype": datatype, "parameters": {"binary_data_size": size}}


def read(answer: Any) -> tuple[dict[str, Any], list[bytes]]:
    """The JSON of an answer that keeps the specification, and its binary tensors in order."""
    assert answer.status == 200, answer.body
    length = int(answer.headers.get("inference-header-content-length", len(answer.body)))
    told = json.loads(answer.body[:length])
    valid("inference_response", told)
    rest, buffers = answer.body[length:], []
    for output in told["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            buffers.append(rest[:size])
            rest = rest[size:]
    assert rest == b""
    return told, buffers


EXTREMES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127],
    "INT16": [-32768, 32767],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP16": [-65504.0, 0.5],
    "FP32": [-3.4028234663852886e38, 2.0**-149],
    "FP64": [-1.7976931348623157e308, 5e-324],
    "BYTES": ["", "grüße \u0000 ✓"],
}


class TestTypes:
    @pytest.mark.parametrize("datatype", EXTREMES)
    def test_the_extremes_of_every_type_survive_json_flat_and_nested(self, make_server: Any, datatype: str) -> None:
        server = make_server()
        server.serve(model=echo(datatype, (2,)))
        values = EXTREMES[datatype]
        client = server.connect()
        for data in (values, [values]):
            body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": datatype, "data": data}]}
            valid("inference_request", body)
            told, _ = read(client.ask(INFER, body))
            assert told["outputs"] == [{"name": "y", "datatype": datatype, "shape": [1, 2], "data": values}]

    @pytest.mark.parametrize("datatype", [*EXTREMES, "BF16"])
    def test_every_type_survives_the_binary_form(self, make_server: Any, datatype: str) -> None:
        server = make_server()
        server.serve(model=echo(datatype, (2,)))
        if datatype == "BYTES":
            raw = b"".join(struct.pack("<I", len(v)) + v for v in (b"", b"\xff\x00raw"))
        elif datatype == "BF16":
            raw = struct.pack("<HH", 0x3F80, 0x7F7F)
        else:
            raw = np.array(EXTREMES[datatype], DATATYPES[datatype].dtype).tobytes()
        body, header = binary(
            [with_size(len(raw), (1, 2), datatype=datatype)], raw, parameters={"binary_data_output": True}
        )
        answer = server.connect().ask(INFER, body, header)
        told, buffers = read(answer)
        assert answer.headers["content-type"] == "application/octet-stream"
        assert buffers == [raw]
        assert told["outputs"][0] == {
            "name": "y", "datatype": datatype, "shape": [1, 2], "parameters": {"binary_data_size": len(raw)},
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("datatype", "value"),
        [
            ("BOOL", 1), ("BOOL", "true"), ("BOOL", None),
            ("UINT8", 256), ("UINT8", -1), ("UINT8", 1.5), ("UINT8", True), ("UINT8", "1"),
            ("INT64", 2**63), ("UINT64", 2**64), ("INT32", 10**400), ("INT8", -129), ("INT64", 1e3),
            ("FP16", 65536.0), ("FP32", 1e39), ("FP64", 10**400), ("FP32", True), ("FP32", "1"), ("FP32", None),
            ("FP32", {}), ("FP32", [1.0]),
            ("BYTES", 1), ("BYTES", None), ("BYTES", {"b64": "AA=="}),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("count", [2, 5000])
    def test_a_value_that_does_not_fit_is_named_with_its_input(
        self, make_server: Any, datatype: str, value: Any, count: int
    ) -> None:
        server = make_server()
        server.serve(model=echo(datatype, (count,)))
        data = [EXTREMES[datatype][0]] * (count - 1) + [value]
        body = {"inputs": [{"name": "x", "shape": [1, count], "datatype": datatype, "data": data}]}
        answer = server.connect().ask(INFER, body)
        assert answer.status == 400
        assert "'x'" in answer.error
        assert len(answer.error) < 300

    def test_bf16_has_no_json_form_in_either_direction(self, make_server: Any) -> None:
        server = make_server()
        server.serve(model=echo("BF16", (2,)))
        client = server.connect()
        asked = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "BF16", "data": [1, 2]}]}
        assert "binary" in client.ask(INFER, asked).error
        body, header = binary([with_size(4, (1, 2), datatype="BF16")], b"\x80\x3f\x80\x3f")
        answer = client.ask(INFER, body, header)
        assert answer.status == 400
        assert "binary" in answer.error

    def test_bytes_that_are_no_text_can_only_be_had_in_binary(self, make_server: Any) -> None:
        server = make_server()
        server.serve(model=echo("BYTES", (1,)))
        raw = struct.pack("<I", 1) + b"\xff"
        body, header = binary([with_size(5, (1, 1), datatype="BYTES")], raw)
        answer = server.connect().ask(INFER, body, header)
        assert answer.status == 400
        assert "'y'" in answer.error

    @pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_only_an_input_that_allows_it_takes_what_is_not_finite(
        self, make_server: Any, datatype: str, value: float
    ) -> None:
        kind = DATATYPES[datatype]
        raw = (
            np.array([value], np.float32).tobytes()[2:]
            if datatype == "BF16"
            else np.array([value], kind.dtype).tobytes()
        )
        for nan, status in ((False, 400), (True, 200)):
            server = make_server()
            server.serve(model=echo(datatype, (1,), nan))
            body, header = binary(
                [with_size(len(raw), (1, 1), datatype=datatype)], raw, parameters={"binary_data_output": True}
            )
            answer = server.connect().ask(INFER, body, header)
            assert answer.status == status
            assert nan or "'x'" in answer.error

    @pytest.mark.parametrize("count", [1, 5000])
    def test_null_is_nan_where_that_is_allowed_and_nan_is_null(self, make_server: Any, count: int) -> None:
        server = make_server()
        server.serve(model=echo("FP32", (count,), nan=True))
        data = [None] + [1.0] * (count - 1)
        told, _ = read(
            server.connect().ask(
                INFER, {"inputs": [{"name": "x", "shape": [1, count], "datatype": "FP32", "data": data}]}
            )
        )
        assert told["outputs"][0]["data"] == data

    def test_infinity_in_an_output_is_valid_json(self, make_server: Any) -> None:
        class Dividing(EchoModel):
            def run(self, inputs: Sequence[Array]) -> list[Array]:
                with np.errstate(all="ignore"):
                    return [inputs[0] / np.zeros(1, np.float32)]

        server = make_server()
        server.serve(model=Dividing(Signature((TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (3,)),))))
        client = server.connect()
        told, _ = read(client.ask(INFER, {"inputs": [INPUT | {"data": [1.0, 0.0, -1.0]}]}))
        assert told["outputs"][0]["data"] == [None, None, None]
        assert client.ask("/predict/m", {"x": [1.0, 0.0, -1.0]}).json == {"y": [None, None, None]}
        assert client.ask("/v1/models/m:predict", {"instances": [[1.0, 0.0, -1.0]]}).json == {
            "predictions": [[None] * 3]
        }


class TestShapes:
    def test_data_is_row_major_flat_or_nested_in_both_forms(self, make_server: Any) -> None:
        server = make_server()
        server.serve(model=echo("INT32", (2, 3)))
        flat = list(range(12))
        nested = np.arange(12).reshape(2, 2, 3).tolist()
        client = server.connect()
        for data in (flat, nested):
            body = {"inputs": [{"name": "x", "shape": [2, 2, 3], "datatype": "INT32", "data": data}]}
            assert read(client.ask(INFER, body))[0]["outputs"][0]["data"] == flat
        raw = np.arange(12, dtype="<i4").tobytes()
        body, header = binary([with_size(48, (2, 2, 3), datatype="INT32")], raw)
        assert read(client.ask(INFER, body, header))[0]["outputs"][0]["data"] == flat

    @pytest.mark.parametrize(
        "data", [[[1, 2, 3], [4, 5, 6]], [[[1, 2, 3]], [4, 5, 6]], [[1, 2], [3, 4], [5, 6]], [[[1], [2], [3]], [[4], [5], [6]]], 6, "123456", None, {}, [[1, 2, 3], 4, 5, 6], [1, 2, 3, [4, 5, 6]], [], [[]], [[[]]], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7]]
    )  # fmt: skip
    def test_nesting_or_counts_that_do_not_fit_the_shape_are_refused(self, make_server: Any, data: Any) -> None:
        server = make_server()
        server.serve(model=echo("INT32", (2, 3)))
        body = {"inputs": [{"name": "x", "shape": [1, 2, 3], "datatype": "INT32", "data": data}]}
        answer = server.connect().ask(INFER, body)
        assert answer.status == 400
        assert "'x'" in answer.error

    @pytest.mark.parametrize(
        "shape", [[], [3], [1], [1, 2], [1, 4], [1, 1, 3], [0, 3], [-1, 3], [1, -3], [2, 3], [10**400, 3], [1, 10**400], [2**63, 3], [1.0, 3], ["1", 3], None, "1,3", [True, 3], [[1], 3], [1, 3] * 5000]
    )  # fmt: skip
    @pytest.mark.parametrize("form", ["json", "binary"])
    def test_a_shape_that_does_not_fit_is_refused(self, server: Any, shape: Any, form: str) -> None:
        if form == "json":
            answer = server.connect().ask(INFER, {"inputs": [INPUT | {"shape": shape}]})
        else:
            one = {"name": "x", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": 12}}
            answer = server.connect().ask(INFER, *binary([one], b"\0" * 12))
        assert answer.status == 400
        assert "x" in answer.error or "shape" in answer.error
        assert len(answer.error) < 500

    def test_a_dimension_of_any_length_may_be_zero(self, make_server: Any) -> None:
        server = make_server()
        server.serve(model=echo("FP32", (-1,)))
        told, _ = read(server.connect().ask(INFER, {"inputs": [INPUT | {"shape": [2, 0], "data": []}]}))
        assert told["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2, 0], "data": []}]

    def test_rows_of_several_inputs_must_agree(self, make_server: Any) -> None:
        server = make_server()
        a, b = TensorSpec("a", "FP32", (1,)), TensorSpec("b", "FP32", (1,))
        server.serve(model=EchoModel(Signature((a, b), (a, b))))
        inputs = [{"name": n, "shape": [r, 1], "datatype": "FP32", "data": [1.0] * r} for n, r in (("a", 2), ("b", 3))]
        assert "'b'" in server.connect().ask(INFER, {"inputs": inputs}).error


class TestBinary:
    @pytest.mark.parametrize("length", ["-1", "abc", "1e3", "", "+5", "٣", "9" * 13, "9" * 400, "1 2", "0x10"])
    def test_a_length_that_is_no_number_is_refused(self, server: Any, length: str) -> None:
        body, _ = binary([with_size(12)], b"\0" * 12)
        line = f"Inference-Header-Content-Length: {length}\r\n".encode().decode("latin-1")
        answer = server.connect().ask(INFER, body, line)
        assert answer.status == 400
        assert "Inference-Header-Content-Length" in answer.error

    @pytest.mark.parametrize("wrong", [-1, 1, 12, 13, 1000])
    def test_a_length_that_is_off_is_refused(self, server: Any, wrong: int) -> None:
        body, header = binary([with_size(12)], b"\0" * 12)
        length = int(header.split()[1]) + wrong
        assert server.connect().ask(INFER, body, f"Inference-Header-Content-Length: {length}\r\n").status == 400

    @pytest.mark.parametrize("size", [11, 13, 0, -1, 10**30, 12.0, "12", None, True, [12]])
    def test_a_size_that_is_off_is_refused(self, server: Any, size: Any) -> None:
        answer = server.connect().ask(INFER, *binary([with_size(size)], b"\0" * 12))
        assert answer.status == 400
        assert "x" in answer.error

    @pytest.mark.parametrize("data", [b"", b"\0" * 11, b"\0" * 13])
    def test_a_body_that_is_cut_or_too_long_is_refused(self, server: Any, data: bytes) -> None:
        assert server.connect().ask(INFER, *binary([with_size(12)], data)).status == 400

    def test_json_seen_before_reads_the_tensor_that_came_with_it(self, server: Any) -> None:
        client = server.connect()
        for value in (1.0, 2.0, 3.0):
            data = np.array([[value, 0, 0]], "<f4").tobytes()
            body, extra = binary([with_size(12)], data, parameters={"binary_data_output": True})
            _, buffers = read(client.ask(INFER, body, extra))
            assert buffers == [data]

    def test_json_seen_before_does_not_excuse_what_comes_with_it(self, server: Any) -> None:
        client = server.connect()
        good, extra = binary([with_size(12)], np.zeros((1, 3), "<f4").tobytes())
        head = good[:-12]
        assert client.ask(INFER, good, extra).status == 200
        for tail in (np.array([[np.nan, 0, 0]], "<f4").tobytes(), bytes(11), bytes(16), b""):
            assert client.ask(INFER, head + tail, extra).status == 400
        assert client.ask(INFER, good, extra).status == 200

    def test_binary_sizes_without_the_header_are_refused(self, server: Any) -> None:
        answer = server.connect().ask(INFER, {"inputs": [with_size(12)]})
        assert answer.status == 400
        assert "binary_data_size" in answer.error

    def test_data_and_binary_data_together_are_refused(self, server: Any) -> None:
        one = with_size(12) | {"data": [1.0, 2.0, 3.0]}
        assert "both" in server.connect().ask(INFER, *binary([one], b"\0" * 12)).error

    def test_json_and_binary_inputs_and_outputs_mix(self, make_server: Any) -> None:
        server = make_server()
        a, b, c = (TensorSpec(n, "INT16", (2,)) for n in "abc")
        server.serve(model=EchoModel(Signature((a, b, c), (a, b, c))))
        inputs = [
            with_size(4, (1, 2), "c", "INT16"),
            {"name": "a", "shape": [1, 2], "datatype": "INT16", "data": [1, 2]},
            with_size(4, (1, 2), "b", "INT16"),
        ]
        outputs = [{"name": "b", "parameters": {"binary_data": True}}, {"name": "c"}, {"name": "a", "parameters": {"binary_data": True}}]  # fmt: skip
        body, header = binary(inputs, struct.pack("<hh", 5, 6), struct.pack("<hh", 3, 4), outputs=outputs)
        told, buffers = read(server.connect().ask(INFER, body, header))
        assert [o["name"] for o in told["outputs"]] == ["b", "c", "a"]
        assert told["outputs"][1]["data"] == [5, 6]
        assert buffers == [struct.pack("<hh", 3, 4), struct.pack("<hh", 1, 2)]

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"\1",
            b"\1\0\0\0",
            b"\1\0\0\0ab",
            b"\0\0\0\0",
            b"\xff\xff\xff\xffab",
            b"\0\0\0\0" * 3,
            b"\1\0\0\0a\1\0\0",
        ],
    )
    def test_byte_strings_whose_lengths_do_not_add_up_are_refused(self, make_server: Any, raw: bytes) -> None:
        server = make_server()
        server.serve(model=echo("BYTES", (2,)))
        answer = server.connect().ask(INFER, *binary([with_size(len(raw), (1, 2), datatype="BYTES")], raw))
        assert answer.status == 400
        assert "'x'" in answer.error

    def test_a_bool_is_one_byte_0_or_1(self, make_server: Any) -> None:
        server = make_server()
        server.serve(model=echo("BOOL", (2,)))
        answer = server.connect().ask(INFER, *binary([with_size(2, (1, 2), datatype="BOOL")], b"\1\2"))
        assert answer.status == 400
        assert "'x'" in answer.error

    @pytest.mark.parametrize(
        ("datatype", "shape", "raw"),
        [
            ("FP32", (3,), b"\0" * 12),
            ("INT16", (-1,), b"\1\0\2\0"),
            ("BYTES", (1,), b"\xff\0text"),
            ("BYTES", (1,), b""),
        ],
    )
    def test_a_raw_body_is_one_tensor_and_its_answer_is_binary(
        self, make_server: Any, datatype: str, shape: tuple[int, ...], raw: bytes
    ) -> None:
        server = make_server()
        server.serve(model=echo(datatype, shape))
        _, buffers = read(server.connect().ask(INFER, raw, "Inference-Header-Content-Length: 0\r\n"))
        assert buffers == [struct.pack("<I", len(raw)) + raw if datatype == "BYTES" else raw]

    @pytest.mark.parametrize(
        ("datatype", "shape", "raw"),
        [("FP32", (3,), b"\0" * 11), ("FP32", (3,), b""), ("INT16", (-1,), b"\1"), ("BYTES", (2,), b"ab"), ("FP32", (-1, -1), b"\0" * 4), ("FP32", (0, -1), b"\0")],
    )  # fmt: skip
    def test_a_raw_body_of_another_size_is_refused(
        self, make_server: Any, datatype: str, shape: tuple[int, ...], raw: bytes
    ) -> None:
        server = make_server()
        server.serve(model=echo(datatype, shape))
        assert server.connect().ask(INFER, raw, "Inference-Header-Content-Length: 0\r\n").status == 400


BAD_BODIES: list[bytes] = [
    b"", b" ", b"null", b"true", b"1", b'"x"', b"[]", b"{}", b"{", b"}", b'{"inputs"', b'{"inputs":}', b"{'inputs':[]}",
    b'{"inputs":[]}', b'{"inputs":null}', b'{"inputs":{}}', b'{"inputs":[null]}', b'{"inputs":[1]}', b'{"inputs":[{}]}',
    b"\xff\xfe", b'{"inputs":[{"name":"\xff","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}',
    b'{"inputs":[{"name":"\\ud800","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}',
    b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,NaN]}]}',
    b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,Infinity]}]}',
    b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,-Infinity]}]}',
    b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,1e400]}]}',
    b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[[1,2,1e400]]}]}',
    b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,' + b"9" * 400 + b"]}]}",
    b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[[1,2,' + b"9" * 400 + b"]]}]}",
    b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[[1,2,' + b"9" * 9000 + b"]]}]}",
    b'{"inputs":[{"name":"x","shape":[1,' + b"9" * 9000 + b'],"datatype":"FP32","data":[1,2,3]}]}',
    b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":["\xff"]}]}',
    b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":["\\ud800"]}]}',
    b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":' + b"[" * 20000 + b"]" * 20000 + b"}]}",
    b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":' + b'{"a":' * 20000 + b"1" + b"}" * 20000 + b"}]}",
    b'{"inputs":[{"name":"x","shape":' + b"[" * 20000 + b"]" * 20000 + b',"datatype":"FP32","data":[1,2,3]}]}',
    b'{"extra":' + b"[" * 20000 + b"]" * 20000 + b',"inputs":[]}',
    b'{"parameters":' + b'{"a":' * 20000 + b"1" + b"}" * 20000 + b',"inputs":[]}',
    b"[" * 20000, b"{" * 20000, b'{"a":' * 20000,
]  # fmt: skip


class TestWhatIsWrong:
    @pytest.mark.parametrize("number", range(len(BAD_BODIES)))
    def test_a_body_that_is_no_request_is_a_400(self, server: Any, number: int) -> None:
        answer = server.connect().ask(INFER, BAD_BODIES[number])
        assert answer.status == 400
        valid("error_response", answer.json)
        assert len(answer.error) < 500
        assert server.folded()[-1].error == "invalid"

    @pytest.mark.parametrize(
        ("inputs", "named"),
        [
            ([INPUT | {"name": "z"}], "'z'"),
            ([INPUT | {"name": ""}], "''"),
            ([INPUT, INPUT], "twice"),
            ([INPUT, INPUT | {"data": [[1.0, 2.0, 3.0]]}], "twice"),
            ([INPUT, INPUT | {"name": "z"}], "'z'"),
            ([INPUT | {"datatype": "FP64"}], "FP32"),
            ([INPUT | {"datatype": "FOO"}], "FOO"),
            ([INPUT | {"datatype": "fp32"}], "fp32"),
            ([{k: v for k, v in INPUT.items() if k != "data"}], "data"),
            ([{k: v for k, v in INPUT.items() if k != "shape"}], "shape"),
            ([{k: v for k, v in INPUT.items() if k != "datatype"}], "datatype"),
            ([INPUT] * 2000, "inputs"),
        ],
    )
    def test_the_message_names_what_is_wrong(self, server: Any, inputs: list[Any], named: str) -> None:
        answer = server.connect().ask(INFER, {"inputs": inputs})
        assert answer.status == 400
        assert named in answer.error or (len(inputs) == 2000 and "twice" in answer.error)

    def test_a_missing_input_is_named(self, make_server: Any) -> None:
        server = make_server()
        a, b = TensorSpec("a", "FP32", (1,)), TensorSpec("b", "FP32", (1,))
        server.serve(model=EchoModel(Signature((a, b), (a, b))))
        one = {"name": "a", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
        for data in ([1.0], [[1.0]]):
            assert "'b'" in server.connect().ask(INFER, {"inputs": [one | {"data": data}]}).error

    @pytest.mark.parametrize(
        "more",
        [
            {"id": 1}, {"id": ["a"]}, {"parameters": {"a": None}}, {"parameters": {"a": [1]}}, {"outputs": [{"name": "y", "parameters": {"a": {}}}]}, {"parameters": []}, {"parameters": "x"}, {"outputs": {}}, {"outputs": [1]},
            {"outputs": [{}]}, {"outputs": [{"name": "z"}]}, {"outputs": [{"name": "y"}] * 3},
            {"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
            {"parameters": {"binary_data_output": "yes"}}, {"parameters": {"timeout": -1}}, {"parameters": {"timeout": "1"}},
            {"parameters": {"timeout": 1e300}}, {"parameters": {"priority": True}}, {"parameters": {"priority": 10**400}},
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("data", [[1.0, 2.0, 3.0], [[1.0, 2.0, 3.0]]])
    def test_wrong_ids_outputs_and_parameters_are_refused(self, server: Any, more: dict[str, Any], data: Any) -> None:
        answer = server.connect().ask(INFER, {"inputs": [INPUT | {"data": data}], **more})
        assert answer.status == 400, answer.body
        assert answer.error

    def test_sequences_and_classification_are_not_served(self, server: Any) -> None:
        client = server.connect()
        assert client.ask(INFER, {"inputs": [INPUT], "parameters": {"sequence_id": 5}}).status == 501
        classes = [{"name": "y", "parameters": {"classification": 3}}]
        assert client.ask(INFER, {"inputs": [INPUT], "outputs": classes}).status == 501

    def test_unknown_keys_are_tolerated_as_clients_send_them(self, server: Any) -> None:
        body = {
            "model_name": "other",
            "inputs": [INPUT | {"extra": [1]}],
            "parameters": {"mine": "x"},
            "more": {"a": 1},
        }
        read(server.connect().ask(INFER, body))

    def test_null_is_the_same_as_leaving_it_out(self, server: Any) -> None:
        one = INPUT | {"parameters": None}
        body = {"id": None, "parameters": None, "outputs": [{"name": "y", "parameters": None}], "inputs": [one]}
        client = server.connect()
        assert "id" not in read(client.ask(INFER, body))[0]
        assert "id" not in read(client.ask(INFER, body | {"outputs": None}))[0]

    def test_unknown_models_and_versions_are_a_404(self, server: Any) -> None:
        for path in ("/v2/models/n/infer", "/v2/models/m/versions/zz/infer"):
            answer = server.connect().ask(path, {"inputs": [INPUT]})
            assert answer.status == 404
            assert answer.error


class TestAnswers:
    def test_the_id_comes_back_whatever_it_holds(self, server: Any) -> None:
        client = server.connect()
        for given in ("a", 'quote " and \\ and \r\n', "ü✓\u0000", "x" * 10_000):
            told, _ = read(client.ask(INFER, {"inputs": [INPUT], "id": given}))
            assert told["id"] == given
        assert "id" not in read(client.ask(INFER, {"inputs": [INPUT]}))[0]

    def test_the_answer_names_model_and_version(self, server: Any) -> None:
        told, _ = read(server.connect().ask(INFER, {"inputs": [INPUT]}))
        assert told["model_name"] == "m"
        assert told["model_version"].ljust(64, "a") == "a" * 64
        assert told["outputs"] == [{"name": "y", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]}]

    def test_a_version_may_be_named(self, server: Any) -> None:
        read(server.connect().ask(f"/v2/models/m/versions/{'a' * 12}/infer", {"inputs": [INPUT]}))

    def test_a_caller_s_own_timeout_is_kept_in_the_record(self, server: Any) -> None:
        read(server.connect().ask(INFER, {"inputs": [INPUT], "parameters": {"timeout": 5_000_000, "priority": 1}}))
        (record,) = server.folded()
        assert (record.protocol, record.rows, record.error) == ("oip_v2", 1, "")

    @pytest.mark.parametrize("pieces", [1, 40])
    def test_many_rows_come_back_in_order(self, make_server: Callable[..., Any], pieces: int) -> None:
        server = make_server()
        server.serve(model=echo("INT32", (1,)), curve=((1, 1e-4), (8, 2e-4)))
        rows = 8 * pieces
        body = {"inputs": [{"name": "x", "shape": [rows, 1], "datatype": "INT32", "data": list(range(rows))}]}
        assert read(server.connect().ask(INFER, body))[0]["outputs"][0]["data"] == list(range(rows))
        assert len(server.folded()) == 1


class TestFields:
    """A model with preprocessing takes its fields as tensors with one element per row."""

    @pytest.fixture
    def table(self, make_server: Any) -> Any:
        columns = (Column("age"), Column("land", "string", values=("PT", "Ü")), Column("smokes", "boolean"))
        server = make_server()
        server.serve(model=echo("FP32", (3,)), preprocess=(Table(columns=columns, fills="x"),))
        return server

    def ask(self, server: Any, *tensors: tuple[str, str, Any], shape: Sequence[int] = (2,)) -> Any:
        inputs = [{"name": n, "shape": list(shape), "datatype": d, "data": data} for n, d, data in tensors]
        return server.connect().ask(INFER, {"inputs": inputs})

    GOOD = (("age", "FP64", [4.5, 5]), ("land", "BYTES", ["Ü", "PT"]), ("smokes", "BOOL", [True, False]))

    @pytest.mark.parametrize("shape", [(2,), (2, 1)])
    def test_columns_are_read_as_in_the_other_protocols(self, table: Any, shape: Sequence[int]) -> None:
        told, _ = read(self.ask(table, *self.GOOD, shape=shape))
        assert told["outputs"][0]["data"] == [4.5, 1.0, 1.0, 5.0, 0.0, 0.0]

    def test_text_may_be_binary(self, table: Any) -> None:
        raw = b"".join(struct.pack("<I", len(v)) + v for v in ("Ü".encode(), b"PT"))
        inputs = [
            {"name": "age", "shape": [2], "datatype": "INT32", "data": [1, 2]},
            with_size(len(raw), (2, 1), "land", "BYTES"),
            {"name": "smokes", "shape": [2], "datatype": "BOOL", "data": [True, True]},
        ]
        told, _ = read(table.connect().ask(INFER, *binary(inputs, raw)))
        assert told["outputs"][0]["data"] == [1.0, 1.0, 1.0, 2.0, 0.0, 1.0]
        broken = raw.replace(b"PT", b"P\xff")
        assert "'land'" in table.connect().ask(INFER, *binary(inputs, broken)).error

    @pytest.mark.parametrize(
        ("position", "tensor"),
        [
            (0, ("age", "BYTES", ["1", "2"])), (0, ("age", "FP64", [1])), (0, ("age", "BF16", [1, 2])), (0, ("ages", "FP64", [1, 2])),
            (1, ("land", "INT32", [1, 2])), (1, ("land", "BYTES", ["PT", "XX"])), (2, ("smokes", "INT8", [0, 1])), (2, ("age", "FP64", [1, 2])),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_a_column_is_named(self, table: Any, position: int, tensor: Any) -> None:
        tensors = list(self.GOOD)
        tensors[position] = tensor
        answer = self.ask(table, *tensors)
        assert answer.status == 400
        assert repr(tensor[0]) in answer.error

    @pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2), (2, 1, 1), (0,), (-2,), (1, 2)])
    def test_a_column_has_one_value_per_row(self, table: Any, shape: Sequence[int]) -> None:
        assert self.ask(table, *self.GOOD, shape=shape).status == 400

    def test_a_missing_column_is_named(self, table: Any) -> None:
        assert "'land'" in self.ask(table, self.GOOD[0], self.GOOD[2]).error
