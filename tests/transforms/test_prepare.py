"""Several blocks together, several threads, and what is imported when."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import tracemalloc
import wave
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from pelton.errors import InvalidInput, PackageInvalid
from pelton.packages.preprocess import Audio, Column, Image, Resize, Table, Text
from pelton.transforms import Prepare, compile_prepare
from pelton.types import TensorSpec

INPUTS = [
    TensorSpec("ids", "INT64", (-1,)),
    TensorSpec("extra", "FP32", (2,)),
    TensorSpec("pixels", "FP32", (3, 8, 8)),
    TensorSpec("row", "FP32", (2,)),
]
BLOCKS = [
    Image("photo", "pixels", resize=Resize(8, 8)),
    Table((Column("a"), Column("b", required=False, default=3.0)), "row"),
    Text("caption", "ids", tokenizer="bytes", pad_to=4),
]


def picture(level: int) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (20, 10), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def call(*numbers: int) -> dict[str, Any]:
    return {
        "photo": [picture(number) for number in numbers],
        "a": list(numbers),
        "caption": ["x" * (number % 9 + 1) for number in numbers],
        "extra": [[number, -number] for number in numbers],
    }


@pytest.fixture
def prepare(make: Any) -> Prepare:
    return compile_prepare(make(INPUTS, BLOCKS))


def test_blocks_and_open_inputs_fill_the_signature_in_its_order(prepare: Prepare) -> None:
    assert [(field.name, field.kind, field.required) for field in prepare.fields] == [
        ("photo", "image", True),
        ("a", "number", True),
        ("b", "number", False),
        ("caption", "text", True),
        ("extra", "tensor", True),
    ]
    ids, extra, pixels, row = prepare(call(5, 200)).inputs
    assert ids.shape == (2, 8)
    assert extra.tolist() == [[5, -5], [200, -200]]
    assert pixels[:, 0, 0, 0].tolist() == [5, 200]
    assert row.tolist() == [[5, 3], [200, 3]]


def test_one_prepare_serves_many_threads(prepare: Prepare) -> None:
    def right(number: int) -> bool:
        ids, extra, pixels, row = prepare(call(number)).inputs
        level = bool((pixels[0, 0] == number).all())
        return level and row[0, 0] == number and extra[0, 0] == number and int((ids > 0).sum()) == number % 9 + 1

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, list(range(250)) * 2))


def test_calls_leave_no_memory_behind(prepare: Prepare) -> None:
    def some() -> None:
        for number in range(40):
            prepare(call(number))
            with pytest.raises(InvalidInput):
                prepare(call(number) | {"photo": [b"damaged" * 1000]})

    some()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        some()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 40_000
    finally:
        tracemalloc.stop()


def test_the_caller_s_values_are_not_changed(prepare: Prepare) -> None:
    fields = call(7, 8)
    copy = {name: list(values) for name, values in fields.items()}
    prepare(fields)
    assert fields == copy


def test_an_input_with_the_name_of_another_field_is_an_invalid_package(make: Any) -> None:
    inputs = [TensorSpec("a", "FP32", (1,)), TensorSpec("x", "FP32", (1,))]
    with pytest.raises(PackageInvalid, match="'a'"):
        compile_prepare(make(inputs, [Table((Column("a"),), "x")]))


def test_sounds_need_no_picture_library_and_tables_need_neither() -> None:
    code = (
        "import sys; import pelton.transforms;"
        "assert not {'PIL', 'soundfile', 'tokenizers'} & set(sys.modules), sorted(sys.modules);"
        "import pelton.transforms.audio, pelton.transforms.text;"
        "assert not {'PIL', 'soundfile', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_windows_and_padding_of_a_block_reach_the_compiled_package(make: Any) -> None:
    prepare = compile_prepare(make([TensorSpec("x", "FP32", (-1,))], [Audio("s", "x", 8000, window=100)]))
    wav = io.BytesIO()
    with wave.open(wav, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.ones(250, "<i2").tobytes())
    prepared = prepare({"s": [wav.getvalue()]})
    assert prepared.counts == (3,)
    assert prepared.inputs[0].shape == (3, 100)
