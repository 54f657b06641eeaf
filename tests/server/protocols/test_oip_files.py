"""Pictures and sounds over the Open Inference Protocol: base64 text in JSON, the bytes of the file in binary tensors."""

from __future__ import annotations

import base64
import io
import json
import struct
import wave
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from pelton.packages.preprocess import Audio, Column, Image, Table
from pelton.testing import EchoModel
from pelton.types import Signature, TensorSpec

INFER = "/v2/models/m/infer"


def png(*grey: int) -> bytes:
    """A picture of one line."""
    file = io.BytesIO()
    Picture.fromarray(np.array([grey], np.uint8)).save(file, "PNG")
    return file.getvalue()


def wav(*samples: float) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(struct.pack(f"<{len(samples)}h", *(round(32768 * sample) for sample in samples)))
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def field(name: str, data: Any, shape: Sequence[int], datatype: str = "BYTES") -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": data}


def echo(*shapes: tuple[int, ...]) -> EchoModel:
    inputs = tuple(TensorSpec(f"x{i}", "FP32", shape) for i, shape in enumerate(shapes))
    outputs = tuple(TensorSpec(f"y{i}", "FP32", shape) for i, shape in enumerate(shapes))
    return EchoModel(Signature(inputs, outputs))


@pytest.fixture
def pictures(make_server: Any) -> Any:
    """A model that answers the grey values of a picture of two pixels."""
    server = make_server()
    server.serve(model=echo((1, 1, 2)), preprocess=(Image("picture", "x0", mode="L"),))
    return server.connect()


@pytest.fixture
def sounds(make_server: Any) -> Any:
    """A model that answers the samples of a sound, in windows of two."""
    server = make_server()
    server.serve(model=echo((2,)), preprocess=(Audio("sound", "x0", sample_rate=8000, window=2),))
    return server.connect()


def output(answer: Any) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    [first] = answer.json["outputs"]
    return first


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ([text(png(7, 9))], [1]),
        ([text(png(7, 9))], [1, 1]),
        ([[text(png(7, 9))]], [1, 1]),
        (["data:image/png;base64," + text(png(7, 9))], [1]),
        ([base64.encodebytes(png(7, 9)).decode()], [1]),
    ],
    ids=["flat", "flat of a column", "nested", "data url", "with line breaks"],
)
def test_a_picture_goes_as_base64_in_json(pictures: Any, data: Any, shape: list[int]) -> None:
    told = output(pictures.ask(INFER, {"inputs": [field("picture", data, shape)]}))
    assert told == {"name": "y0", "datatype": "FP32", "shape": [1, 1, 1, 2], "data": [7.0, 9.0]}


def test_several_pictures_are_several_rows_in_order(pictures: Any) -> None:
    data = [text(png(one, one + 1)) for one in (10, 20, 30)]
    told = output(pictures.ask(INFER, {"id": "a", "inputs": [field("picture", data, [3])]}))
    assert (told["shape"], told["data"]) == ([3, 1, 1, 2], [10.0, 11.0, 20.0, 21.0, 30.0, 31.0])


def test_json_and_binary_give_the_same_answer(pictures: Any) -> None:
    file = png(3, 4)
    by_json = output(pictures.ask(INFER, {"inputs": [field("picture", [text(file)], [1])]}))
    size = {"binary_data_size": len(file) + 4}
    head = json.dumps({"inputs": [{"name": "picture", "shape": [1], "datatype": "BYTES", "parameters": size}]}).encode()
    body = head + struct.pack("<I", len(file)) + file
    assert output(pictures.ask(INFER, body, f"Inference-Header-Content-Length: {len(head)}\r\n")) == by_json


def test_a_base64_text_in_a_binary_tensor_is_taken_for_the_file_that_it_is_not(pictures: Any) -> None:
    """Binary is for bytes as they are: a guess would one day take a file for a text."""
    coded = text(png(3, 4)).encode()
    size = {"binary_data_size": len(coded) + 4}
    head = json.dumps({"inputs": [{"name": "picture", "shape": [1], "datatype": "BYTES", "parameters": size}]}).encode()
    body = head + struct.pack("<I", len(coded)) + coded
    answer = pictures.ask(INFER, body, f"Inference-Header-Content-Length: {len(head)}\r\n")
    assert answer.status == 400
    assert "picture" in answer.error


def test_a_sound_goes_as_base64_in_json_and_is_cut_into_windows(sounds: Any) -> None:
    told = output(sounds.ask(INFER, {"inputs": [field("sound", [text(wav(0.5, -0.25, 0.125))], [1])]}))
    assert told["data"] == [0.5, -0.25, 0.125, 0.0]
    assert told["shape"] == [2, 2]


def test_a_picture_and_columns_go_side_by_side(make_server: Any) -> None:
    server = make_server()
    blocks = (Image("picture", "x0", mode="L"), Table((Column("age"), Column("country", "string", ("AT",))), "x1"))
    server.serve(model=echo((1, 1, 2), (2,)), preprocess=blocks)
    body = {
        "inputs": [
            field("age", [41.5, 7.0], [2], "FP64"),
            field("picture", [text(png(1, 2)), text(png(3, 4))], [2]),
            field("country", ["AT", "AT"], [2]),
        ]
    }
    told = server.connect().ask(INFER, body).json["outputs"]
    assert [one["data"] for one in told] == [[1.0, 2.0, 3.0, 4.0], [41.5, 0.0, 7.0, 0.0]]


@pytest.mark.parametrize(
    ("one", "status", "says"),
    [
        (field("picture", ["no base64!"], [1]), 400, "neither base64 nor a data: URL"),
        (field("picture", [""], [1]), 400, "empty"),
        (field("picture", [text(b"no picture at all")], [1]), 400, "picture"),
        (field("picture", [text(png(7, 9)[:40])], [1]), 400, "picture"),
        (field("picture", ["data:image/png,abc"], [1]), 400, "only base64 data: URLs"),
        (field("picture", [{"b64": text(png(7, 9))}], [1]), 400, "BYTES takes strings"),
        (field("picture", [None], [1]), 400, "BYTES takes strings"),
        (field("picture", [text(png(7, 9))], [2]), 400, "needs 2 values, data has 1"),
        (field("picture", [text(png(7, 9))], [1, 2]), 400, "[n] or [n, 1]"),
        (field("picture", [], [0]), 400, "no rows"),
        (field("picture", [7], [1], "UINT8"), 400, "not a file"),
        (field("picture", [7, 9], [1, 1, 1, 2], "UINT8"), 400, "[n] or [n, 1]"),
        (field("picture", [text(png(7, 9))], [1], "STRING"), 400, "unknown datatype 'STRING'"),
        (field("photo", [text(png(7, 9))], [1]), 400, "this model takes 'picture'"),
    ],
)
def test_what_is_no_picture_is_told_by_the_name_of_the_field(
    pictures: Any, one: dict[str, Any], status: int, says: str
) -> None:
    answer = pictures.ask(INFER, {"inputs": [one]})
    assert answer.status == status, answer.body
    assert says in answer.error
    assert one["name"] in answer.error


def test_a_bad_picture_names_its_row(pictures: Any) -> None:
    data = [text(png(7, 9)), text(b"no picture")]
    answer = pictures.ask(INFER, {"inputs": [field("picture", data, [2])]})
    assert answer.status == 400
    assert "row 1" in answer.error


def test_a_body_over_the_limit_of_json_is_a_413_that_names_the_other_way(make_server: Any) -> None:
    server = make_server(json=2000)
    server.serve(model=echo((1, 1, 2)), preprocess=(Image("picture", "x0", mode="L"),))
    answer = server.connect().ask(INFER, {"inputs": [field("picture", ["A" * 4000], [1])]})
    assert answer.status == 413
    assert "binary" in answer.error


def test_a_tensor_of_the_model_itself_is_taken_too(pictures: Any) -> None:
    """Who prepares pictures on his own sends the model's input."""
    told = output(pictures.ask(INFER, {"inputs": [field("x0", [1.5, 2.5], [1, 1, 1, 2], "FP32")]}))
    assert told["data"] == [1.5, 2.5]
