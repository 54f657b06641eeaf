"""Several blocks together, several threads, and what is imported when."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import tracemalloc
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from pelton.errors import InvalidInput, PackageInvalid
from pelton.packages import load
from pelton.packages.preprocess import Audio, Column, Image, Resize, Table, Text
from pelton.transforms import Prepare, compile_finish, compile_prepare
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


MANIFEST = """
name = "m"
runtime = "onnx"
file = "m.onnx"

[signature]
inputs = [{ name = "x", datatype = "FP32", shape = [4], nan = true }, { name = "p", datatype = "FP32", shape = [3, 4, 4] }]
outputs = [{ name = "y", datatype = "FP32", shape = [2] }]

[[preprocess]]
kind = "table"
fills = "x"
columns = [
  { name = "n", type = "integer", default = 3, minimum = 0, description = "how many" },
  { name = "f", default = 0.5 },
  { name = "b", type = "boolean", default = true },
  { name = "s", type = "string", values = ["u", "v"], default = "v" },
]

[[preprocess]]
kind = "image"
field = "photo"
fills = "p"
resize = { height = 4, width = 4, fit = "pad" }
mean = [1, 2, 3]

[[postprocess]]
kind = "labels"
output = "y"
labels = ["no", "yes"]
top = 1
"""


def test_a_manifest_s_declarations_are_carried_out(tmp_path: Path) -> None:
    (tmp_path / "pelton.toml").write_text(MANIFEST)
    (tmp_path / "m.onnx").touch()
    package = load(tmp_path)
    prepare = compile_prepare(package)
    assert not any(field.required for field in prepare.fields[:4])
    assert prepare.fields[0].description == "how many"
    row, pixels = prepare({"photo": [picture(9)]}).inputs
    assert row.tolist() == [[3, 0.5, 1, 1]]
    assert pixels[0, :, 0, 0].tolist() == [8, -2, -3]
    answers = compile_finish(package)([np.array([[0.2, 0.8]], np.float32)], prepare({"photo": [picture(9)]}).counts)
    assert answers == [{"labels": [{"label": "yes", "score": 0.8}]}]


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


def test_without_soundfile_wav_is_read_and_the_rest_is_said_to_be_unsupported() -> None:
    code = (
        "import sys; sys.modules['soundfile'] = None;"
        "import io, wave; from pelton.errors import Unsupported; from pelton.transforms.audio import read;"
        "f = io.BytesIO(); w = wave.open(f, 'wb'); w.setnchannels(1); w.setsampwidth(2); w.setframerate(8000);"
        "w.writeframes(b'\\1\\0' * 9); w.close();"
        "assert len(read(memoryview(f.getvalue()), 'x', 1)[0]) == 9\n"
        "try: read(memoryview(b'fLaC' * 20), 'x', 1)\n"
        "except Unsupported as error: assert 'WAV' in str(error)\n"
        "else: raise SystemExit('FLAC was read')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_tokenizers_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['tokenizers'] = None; from pathlib import Path;"
        "from pelton.errors import ExtraMissing; from pelton.transforms.text import Texts;"
        "from pelton.packages import Manifest, Package; from pelton.packages.preprocess import Text;"
        "from pelton.types import Signature, TensorSpec; ids = TensorSpec('ids', 'INT64', (-1,));"
        "package = Package(Path('.'), Manifest('m', 'onnx', 'f', Signature((ids,), (ids,))))\n"
        "try: Texts(Text('text', 'ids'), [ids], package)\n"
        "except ExtraMissing as error: assert error.extra == 'text'\n"
        "else: raise SystemExit('no error')"
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
