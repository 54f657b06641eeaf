from __future__ import annotations

import contextlib
import os
import shutil

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pelton.errors import Disagrees, InvalidInput, PackageInvalid, SourceInvalid
from pelton.importers import Options, add
from pelton.importers import onnx_file as reader
from pelton.packages import golden
from pelton.runtimes import contract
from pelton.types import TensorSpec

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def info(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def test_a_file_becomes_a_package_that_answers(linear, registry):
    package = add(str(linear), registry, Options())
    assert package.name == "linear"
    assert package.manifest.signature.inputs == (TensorSpec("x", "FP32", (3,)),)
    assert package.manifest.signature.outputs == (TensorSpec("y", "FP32", (2,)),)
    assert package.manifest.signature.batched
    assert package.manifest.batching.max_rows == 128
    assert registry.models() == ["linear"]
    model = contract.load(package, contract.RuntimeOptions())
    assert golden.check(package, model.run) == 4
    assert model.run([np.array([[1, 0, 2]], np.float32)])[0].tolist() == [[8, 11]]
    assert np.shape(package.manifest.example["x"]) == (3,)


def test_the_same_file_gives_the_same_version(linear, registry):
    assert add(str(linear), registry, Options()).version == add(str(linear), registry, Options()).version


def test_wishes_of_the_user_stand_in_the_package(linear, registry):
    options = Options(name="other", p99_ms=12.5, objective="cost", max_rows=7)
    manifest = add(str(linear), registry, options).manifest
    assert (manifest.name, manifest.slo.p99_ms) == ("other", 12.5)
    assert (manifest.batching.objective, manifest.batching.max_rows) == ("cost", 7)


def test_an_unusable_name_is_refused(linear, registry):
    with pytest.raises(InvalidInput, match="a/b"):
        add(str(linear), registry, Options(name="a/b"))
    assert registry.models() == []


def test_an_output_shape_that_the_file_leaves_out_is_learned(onnx_file, registry):
    path = onnx_file(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [info("x", FLOAT, [None, 3])],
        [info("y", FLOAT, None)],
        {"w": np.ones((3, 5), np.float32)},
    )
    assert add(str(path), registry, Options()).manifest.signature.outputs == (TensorSpec("y", "FP32", (5,)),)


def test_dimensions_that_follow_an_input_stay_open_and_others_are_learned(onnx_file, registry):
    path = onnx_file(
        [
            helper.make_node("Gather", ["table", "ids"], ["all"]),
            helper.make_node("ReduceMean", ["all"], ["mean"], axes=[1], keepdims=0),
        ],
        [info("ids", INT64, ["n", "s"])],
        [info("all", FLOAT, None), info("mean", FLOAT, ["a", "b"])],
        {"table": np.ones((10, 6), np.float32)},
    )
    manifest = add(str(path), registry, Options()).manifest
    assert manifest.signature.inputs == (TensorSpec("ids", "INT64", (-1,)),)
    assert manifest.signature.outputs == (TensorSpec("all", "FP32", (-1, 6)), TensorSpec("mean", "FP32", (6,)))


def test_a_file_for_single_rows_runs_one_row_at_a_time(onnx_file, registry):
    path = onnx_file([helper.make_node("Neg", ["x"], ["y"])], [info("x", FLOAT, [1, 3])], [info("y", FLOAT, [1, 3])])
    manifest = add(str(path), registry, Options()).manifest
    assert manifest.signature.batched
    assert manifest.signature.inputs[0].shape == (3,)
    assert manifest.batching.max_rows == 1


def test_a_first_dimension_that_is_not_a_count_of_rows_is_found_out(onnx_file, registry):
    path = onnx_file(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], [info("x", FLOAT, ["n", 3])], [info("y", FLOAT, [])]
    )
    manifest = add(str(path), registry, Options()).manifest
    assert not manifest.signature.batched
    assert manifest.signature.inputs[0].shape == (-1, 3)
    assert manifest.signature.outputs[0].shape == ()


def test_rows_that_change_each_other_are_not_batched(onnx_file, registry, caplog):
    path = onnx_file(
        [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]), helper.make_node("Sub", ["x", "m"], ["y"])],
        [info("x", FLOAT, ["n", 3])],
        [info("y", FLOAT, ["n", 3])],
    )
    assert add(str(path), registry, Options()).manifest.batching.max_rows == 1
    assert "one row at a time" in caplog.text


def test_a_random_model_gets_no_golden_requests(onnx_file, registry, caplog):
    path = onnx_file(
        [helper.make_node("RandomNormalLike", ["x"], ["y"])], [info("x", FLOAT, ["n", 3])], [info("y", FLOAT, ["n", 3])]
    )
    assert add(str(path), registry, Options()).manifest.golden is None
    assert "two ways" in caplog.text


def test_texts_go_in_and_out(onnx_file, registry):
    path = onnx_file(
        [helper.make_node("Identity", ["x"], ["y"])], [info("x", STRING, ["n"])], [info("y", STRING, ["n"])]
    )
    package = add(str(path), registry, Options())
    assert package.manifest.signature.inputs == (TensorSpec("x", "BYTES", ()),)
    assert package.manifest.example == {"x": "a"}


def test_weights_beside_the_model_come_along(onnx_file, registry, tmp_path):
    path = onnx_file(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [info("x", FLOAT, ["n", 3])],
        [info("y", FLOAT, ["n", 4000])],
        {"w": np.ones((3, 4000), np.float32)},
        save_as_external_data=True,
        location="weights.bin",
    )
    package = add(str(path), registry, Options(name="external"))
    assert (package.folder / "weights.bin").stat().st_size == 48000
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(SourceInvalid, match=r"weights\.bin.*not there"):
        add(str(path), registry, Options())


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin"])
def test_weights_outside_of_the_folder_are_refused(onnx_file, registry, tmp_path, location):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.bin").write_bytes(b"x" * 48000)
    (tmp_path / "in/link.bin").symlink_to(tmp_path / "secret.bin")
    path = onnx_file(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [info("x", FLOAT, ["n", 3])],
        [info("y", FLOAT, ["n", 4000])],
        {"w": np.ones((3, 4000), np.float32)},
        name="in/model.onnx",
        save_as_external_data=True,
        location="weights1.bin1",
    )
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceInvalid, match="outside of its folder"):
        add(str(path), registry, Options())
    assert registry.models() == []


@pytest.mark.parametrize("size", [0, 1, 10, 100, 140])
def test_a_file_cut_short_is_refused(linear, registry, size):
    os.truncate(linear, size)
    with pytest.raises(PackageInvalid, match=r"linear\.onnx|model\.onnx"):
        add(str(linear), registry, Options())
    assert registry.models() == []


def test_rubbish_is_refused(tmp_path, registry):
    (tmp_path / "m.onnx").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(PackageInvalid, match=r"m\.onnx"):
        add(str(tmp_path / "m.onnx"), registry, Options())


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("m") / "m.onnx"
    path.write_bytes(data)
    with contextlib.suppress(SourceInvalid):
        reader.read(path)


def test_an_input_without_a_working_guess_asks_for_an_example(onnx_file, registry, tmp_path):
    path = onnx_file(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [info("x", FLOAT, ["n", "k"])],
        [info("y", FLOAT, ["n", 2])],
        {"w": np.ones((7, 2), np.float32)},
    )
    with pytest.raises(SourceInvalid, match="--example"):
        add(str(path), registry, Options())
    np.save(tmp_path / "rows.npy", np.ones((2, 7), np.float32))
    package = add(str(path), registry, Options(example=tmp_path / "rows.npy"))
    assert [request.inputs["x"].tolist() for request in golden.read(package.folder / "golden.json")] == [
        [[1.0] * 7]
    ] * 2


ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


@pytest.mark.parametrize(
    "document",
    [
        ROWS,
        {"x": ROWS},
        {"instances": ROWS},
        {"instances": [{"x": row} for row in ROWS]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}]},
    ],
)
def test_examples_may_be_written_in_every_form_of_json(linear, registry, tmp_path, document):
    (tmp_path / "rows.json").write_bytes(msgspec.json.encode(document))
    package = add(str(linear), registry, Options(example=tmp_path / "rows.json"))
    requests = golden.read(package.folder / "golden.json")
    assert [request.inputs["x"].tolist() for request in requests] == [[row] for row in ROWS]
    assert package.manifest.example == {"x": ROWS[0]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"{", "truncated"),
        (b"3", "object"),
        (b'{"z": [1, 2, 3]}', "unknown input 'z'"),
        (b"{}", "lacks the input 'x'"),
        (b'{"x": [1, 2]}', r"shape \[2\] instead of \[3\]"),
        (b'{"x": ["a", "b", "c"]}', "'x'"),
        (b'{"x": [[1, 2, 3], [1, 2]]}', "'x'"),
        (b'{"x": []}', "'x'"),
        (b'{"inputs": [{"name": "x"}]}', "shape"),
    ],
)
def test_an_unusable_example_says_what_is_wrong(linear, registry, tmp_path, document, message):
    (tmp_path / "rows.json").write_bytes(document)
    with pytest.raises(SourceInvalid, match=message):
        add(str(linear), registry, Options(example=tmp_path / "rows.json"))


def test_an_example_is_never_unpickled(linear, registry, tmp_path):
    np.save(tmp_path / "rows.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(SourceInvalid, match="pickle"):
        add(str(linear), registry, Options(example=tmp_path / "rows.npy"))


@pytest.mark.parametrize("source", ["nothing.onnx", "", "hf", "."])
def test_an_unknown_source_lists_what_a_source_may_be(registry, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceInvalid, match="pypi:NAME==VERSION"):
        add(source, registry, Options())


@pytest.mark.parametrize("name", ["m.pkl", "m.joblib", "m.pt"])
def test_a_pickle_is_refused_with_the_way_out(registry, tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceInvalid, match=r"pelton\.package"):
        add(str(tmp_path / name), registry, Options())


def test_a_package_folder_is_added_with_its_own_golden_requests(linear, registry, tmp_path):
    first = add(str(linear), registry, Options())
    assert add(str(first.folder), registry, Options()).version == first.version


def test_a_package_whose_golden_requests_fail_is_refused(linear, registry, tmp_path):
    first = add(str(linear), registry, Options())
    folder = tmp_path / "copy"
    shutil.copytree(first.folder, folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    requests = golden.read(folder / "golden.json")
    requests[1].outputs["y"][0, 1] += 1
    golden.write(folder / "golden.json", requests, first.manifest.signature)
    with pytest.raises(Disagrees, match=r"golden request 1: the output 'y' at \[0, 1\]"):
        add(str(folder), registry, Options())
    assert len(registry.versions("linear")) == 1
