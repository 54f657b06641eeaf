"""What a user's class may return, take and do wrong, in both isolations where they could differ."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from pelton.errors import ModelFailed, PackageInvalid, Untrusted
from pelton.runtimes import contract
from pelton.runtimes.contract import RuntimeOptions


def model_source(
    predict: str, outputs: str = '{"y": "FP32[2]"}', inputs: str = '{"x": "FP32[2]"}', batch: bool = True
) -> str:
    body = "\n".join("        " + line for line in predict.splitlines())
    return f"""
import numpy as np

class Model:
    inputs = {inputs}
    outputs = {outputs}
    batch = {batch}

    def predict(self, x):
{body}
"""


ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture(params=["process", "thread"])
def isolation(request):
    return request.param


def test_a_class_without_trust_is_refused_before_it_runs(package, tmp_path):
    made = package(model_source("return x") + f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(Untrusted, match="--trust m"):
        contract.load(made, RuntimeOptions())
    assert not (tmp_path / "ran").exists()


def test_a_batch_arrives_as_arrays_with_rows(serve, isolation):
    model = serve(model_source("assert x.shape == (3, 2)\nreturn x * 2"), isolation=isolation)
    (y,) = model.run([ROWS])
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, ROWS * 2)


def test_a_class_for_single_rows_sees_one_row_at_a_time(serve, isolation):
    model = serve(model_source("assert x.shape == (2,)\nreturn x[::-1]", batch=False), isolation=isolation)
    np.testing.assert_array_equal(model.run([ROWS])[0], ROWS[:, ::-1])


def test_batch_in_the_options_overrides_the_class(serve):
    model = serve(model_source("return [len(x.shape)] * 2", batch=True), isolation="thread", batch=False)
    np.testing.assert_array_equal(model.run([ROWS])[0], np.ones((3, 2)))


@pytest.mark.parametrize(
    "returned",
    [
        "return x, x.sum(axis=1)",
        "return [x, x.sum(axis=1)]",
        'return {"total": x.sum(axis=1), "y": x}',
    ],
)
def test_several_outputs_come_as_tuple_list_or_dictionary(serve, returned):
    model = serve(model_source(returned, '{"y": "FP32[2]", "total": "FP64"}'), isolation="thread")
    y, total = model.run([ROWS])
    np.testing.assert_array_equal(y, ROWS)
    np.testing.assert_array_equal(total, ROWS.sum(axis=1))
    assert total.dtype == np.float64


@pytest.mark.parametrize(
    "returned",
    [
        "return x",
        "return (x,)",
        "return [x]",
        "return list(x)",
        "return x.tolist()",
        'return {"y": x}',
        "return x.T.copy().T",
    ],
)
def test_one_output_may_come_bare_wrapped_or_as_nested_lists(serve, returned):
    (y,) = serve(model_source(returned), isolation="thread").run([ROWS])
    np.testing.assert_array_equal(y, ROWS)
    assert y.flags.c_contiguous


@pytest.mark.parametrize(
    ("returned", "outputs", "message"),
    [
        ("return x[:2]", '{"y": "FP32[2]"}', r"'y'.*\[2, 2\], expected \[3, 2\]"),
        ("return x[:, :1]", '{"y": "FP32[2]"}', r"'y'.*\[3, 1\], expected \[3, 2\]"),
        ("return x.ravel()", '{"y": "FP32[-1]"}', r"'y'.*\[6\], expected \[3, any\]"),
        ("return None", '{"y": "FP32[2]"}', "'y'.*no FP32"),
        ("return [['a', 'b']] * 3", '{"y": "FP32[2]"}', "'y'.*text or objects"),
        ("return [[1], [1, 2], [1]]", '{"y": "FP32[2]"}', "'y'"),
        ("return x", '{"y": "INT64[2]"}', "'y'.*float32, which is no INT64"),
        ("return x.astype('int64') + 300", '{"y": "UINT8[2]"}', "'y'.*305, outside of UINT8"),
        ("return x.astype('int64') - 1", '{"y": "UINT8[2]"}', "'y'.*-1, outside of UINT8"),
        ("return x.astype('float64') * 1e300", '{"y": "FP32[2]"}', "'y'.*too large for FP32"),
        ("return x > 1", '{"y": "BYTES[2]"}', "'y'.*text or bytes, not bool"),
        ("return x", '{"y": "BOOL[2]"}', "'y'.*no BOOL"),
        ("return x, x", '{"y": "FP32[2]"}', "2 arrays for the one output 'y'"),
        ("return x", '{"y": "FP32[2]", "z": "FP32[2]"}', "one ndarray for the 2 outputs"),
        ("return x, x, x", '{"y": "FP32[2]", "z": "FP32[2]"}', "3 values for the 2 outputs"),
        ("return {'y': x}", '{"y": "FP32[2]", "z": "FP32[2]"}', r"lacks \['z'\]"),
        ("return {'y': x, 'w': x}", '{"y": "FP32[2]"}', r"unknown \['w'\]"),
        ("return [['\\ud800', 'b']] * 3", '{"y": "BYTES[2]"}', "'y'.*surrogate"),
        ("yield x", '{"y": "FP32[2]"}', "generator"),
    ],
)
def test_an_answer_against_the_signature_fails_and_names_the_output(serve, returned, outputs, message):
    with pytest.raises((ModelFailed, PackageInvalid), match=message):
        serve(model_source(returned, outputs), isolation="thread").run([ROWS])


def test_a_wrong_answer_of_a_process_reads_the_same(serve):
    with pytest.raises(ModelFailed, match=r"model 'm': output 'y'.*\[2, 2\], expected \[3, 2\]"):
        serve(model_source("return x[:2]")).run([ROWS])


@pytest.mark.parametrize(
    ("returned", "outputs", "dtype"),
    [
        ("return x.astype('float64')", '{"y": "FP32[2]"}', np.float32),
        ("return x.astype('int64')", '{"y": "FP32[2]"}', np.float32),
        ("return x.astype('int64')", '{"y": "UINT8[2]"}', np.uint8),
        ("return x > -1", '{"y": "INT32[2]"}', np.int32),
        ("return x.astype('>f4')", '{"y": "FP32[2]"}', np.float32),
        ("return x.astype('float64') * np.inf", '{"y": "FP32[2]"}', np.float32),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_casts_that_keep_the_meaning_are_made(serve, returned, outputs, dtype):
    (y,) = serve(model_source(returned, outputs), isolation="thread").run([ROWS])
    assert y.dtype == np.dtype(dtype)
    assert y.dtype.isnative


def test_zero_rows_are_answered_without_asking_the_class(serve, isolation):
    model = serve(model_source("raise RuntimeError", '{"y": "FP32[-1, 3]", "t": "BYTES"}'), isolation=isolation)
    y, t = model.run([np.empty((0, 2), np.float32)])
    assert (y.shape, y.dtype, t.shape, t.dtype) == ((0, 0, 3), np.float32, (0,), object)


def test_bytes_arrive_as_bytes_and_text_or_bytes_may_go_back(serve, isolation):
    source = model_source(
        "assert all(type(e) is bytes for e in x)\nreturn [x[0].decode() + 'é', b'\\x00' + x[1] + b'\\x00']",
        '{"y": "BYTES"}',
        '{"x": "BYTES"}',
    )
    (y,) = serve(source, isolation=isolation).run([np.array([b"a", b""], object)])
    assert y.tolist() == ["aé".encode(), b"\x00\x00"]


def test_a_scalar_text_of_a_single_row_is_plain_bytes(serve):
    source = model_source("return x.decode().upper()", '{"y": "BYTES"}', '{"x": "BYTES"}', batch=False)
    (y,) = serve(source).run([np.array([b"ab", b"cd"], object)])
    assert y.tolist() == [b"AB", b"CD"]


@pytest.mark.parametrize(
    "datatype", ["BOOL", "UINT8", "INT8", "UINT16", "INT16", "INT32", "UINT64", "INT64", "FP16", "FP64", "BF16"]
)
def test_every_fixed_datatype_crosses_the_process(serve, datatype):
    from pelton.types import DATATYPES

    source = model_source("return x", f'{{"y": "{datatype}[2, 1]"}}', f'{{"x": "{datatype}[2, 1]"}}')
    sent = np.array([0, 1, 1, 0, 0, 1]).astype(DATATYPES[datatype].dtype).reshape(3, 2, 1)
    (got,) = serve(source).run([sent])
    assert got.dtype == sent.dtype
    np.testing.assert_array_equal(got, sent)


def test_rows_of_unequal_shape_name_the_output_and_the_mend(serve):
    model = serve(model_source("return x[: 1 + int(x[0])]", '{"y": "FP32[-1]"}', batch=False), isolation="thread")
    np.testing.assert_array_equal(model.run([ROWS[:1]])[0], ROWS[:1, :1])
    with pytest.raises(ModelFailed, match=r"'y'.*pad"):
        model.run([np.array([[0, 0], [1, 1]], np.float32)])


def test_inputs_go_by_name_whatever_their_order(serve):
    source = """
        class Model:
            inputs = {"a": "FP32", "b": "FP32"}
            outputs = {"y": "FP32"}
            batch = True
            def predict(self, b, a):
                return a - b
    """
    (y,) = serve(source, isolation="thread").run([np.float32([5]), np.float32([3])])
    assert y.tolist() == [2]


def test_names_that_predict_does_not_know_go_by_position(serve):
    source = model_source("return x", inputs='{"input.1": "FP32[2]"}')
    np.testing.assert_array_equal(serve(source, isolation="thread").run([ROWS])[0], ROWS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("def predict(self, b, c): ...", "takes 'b' at the place of the input 'a'"),
        ("def predict(self, a): ...", "cannot take the inputs"),
        ("async def predict(self, a, b): ...", "async"),
        ("def predict(self, a, b): yield a", "generator"),
    ],
)
def test_a_predict_that_can_never_work_is_refused_at_load(serve, line, message):
    source = f"""
        class Model:
            inputs = {{"a": "FP32", "b": "FP32"}}
            outputs = {{"y": "FP32"}}
            {line}
    """
    with pytest.raises(PackageInvalid, match=message):
        serve(source, isolation="thread")


def test_setup_gets_the_folder_and_siblings_can_be_imported(serve, package, isolation):
    made = package(
        """
        from pathlib import Path
        import sibling_of_the_test

        class Model:
            inputs = {"x": "FP32[2]"}
            outputs = {"y": "BYTES"}
            batch = True
            def setup(self, folder):
                assert isinstance(folder, Path)
                self.text = (folder / "data.txt").read_text() + sibling_of_the_test.WORD
            def predict(self, x):
                return [self.text] * len(x)
        """,
        isolation=isolation,
    )
    (made.folder / "data.txt").write_text("read ")
    (made.folder / "sibling_of_the_test.py").write_text("WORD = 'imported'")
    model = contract.load(made, RuntimeOptions(trust=True))
    try:
        assert model.run([ROWS])[0].tolist() == [b"read imported"] * 3
        assert sorted(path.name for path in made.folder.iterdir()) == [
            "data.txt", "model.py", "pelton.toml", "sibling_of_the_test.py",
        ]  # fmt: skip
    finally:
        model.close()


def test_what_the_class_says_must_agree_with_the_manifest(package, isolation):
    made = package(model_source("return x"), isolation=isolation)
    made.file.write_text(model_source("return x", '{"y": "FP32[3]"}'))
    with pytest.raises(PackageInvalid, match=r"Model\.outputs.*FP32\[3\].*pelton\.toml has 'y' FP32\[2\]"):
        contract.load(made, RuntimeOptions(trust=True))


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ("raise ValueError('no such weights')", "ValueError: no such weights"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import a_module_that_is_not_there", "ModuleNotFoundError.*a_module_that_is_not_there"),
    ],
)
def test_a_setup_that_raises_is_an_invalid_package(serve, isolation, caplog, setup, message):
    source = model_source("return x") + f"\n    def setup(self, folder):\n        {setup}\n"
    with pytest.raises(PackageInvalid, match=f"model 'm': {message}") as caught:
        serve(source, isolation=isolation)
    assert "Traceback" not in str(caught.value)
    assert "in setup" in caplog.text


def test_an_exception_reaches_the_caller_without_its_traceback(serve, isolation, caplog):
    model = serve(model_source("secret = 1\nraise KeyError('colour')"), isolation=isolation)
    with pytest.raises(ModelFailed) as caught:
        model.run([ROWS])
    assert str(caught.value) == "model 'm': KeyError: 'colour'"
    assert "secret" not in str(caught.value)
    assert "in predict" in caplog.text
    assert caught.value.__suppress_context__


def test_a_storm_of_exceptions_does_not_flood_the_log(serve, caplog):
    model = serve(model_source("raise ValueError(float(x[0, 0]))"), isolation="thread")
    for _ in range(200):
        with pytest.raises(ModelFailed):
            model.run([ROWS])
    assert len(caplog.records) < 100


def test_an_exception_with_a_broken_str_and_lone_surrogates_is_reported(serve):
    source = (
        "class Odd(Exception):\n    def __str__(self):\n        raise RuntimeError\n"
        "if x[0, 0] == 0:\n    raise Odd\nraise ValueError('\\ud800' + 'x' * 10000)"
    )
    model = serve(model_source(source))
    with pytest.raises(ModelFailed, match="Odd"):
        model.run([ROWS])
    with pytest.raises(ModelFailed, match=r"ValueError: \?xxx") as caught:
        model.run([ROWS + 1])
    assert len(str(caught.value)) < 3000


def test_exit_in_a_thread_fails_the_call_only(serve):
    model = serve(model_source("import sys\nsys.exit(3)"), isolation="thread")
    with pytest.raises(ModelFailed, match=r"exit\(3\)"):
        model.run([ROWS])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolation": "none"}, "isolation"),
        ({"processes": 0}, "processes must be 1 to 256, not 0"),
        ({"processes": 2, "isolation": "thread"}, "processes = 2"),
        ({"concurrent": True}, "concurrent"),
        ({"batsch": True}, "batsch"),
        ({"setup_seconds": 0.0}, "setup_seconds"),
    ],
)
def test_options_that_make_no_sense_are_refused(serve, options, message):
    with pytest.raises(PackageInvalid, match=f"model 'm': options.*{message}"):
        serve(model_source("return x"), **options)


def test_a_class_that_is_not_there_is_named(package, isolation):
    made = package(model_source("return x"), isolation=isolation)
    made.file.write_text("class Other: pass")
    with pytest.raises(PackageInvalid, match="no class 'Model'"):
        contract.load(made, RuntimeOptions(trust=True))


def test_what_a_user_prints_in_setup_is_logged_with_the_models_name(serve, caplog):
    caplog.set_level(logging.INFO)
    model = serve(model_source("return x") + "\n    def setup(self, folder):\n        print('loading weights')\n")
    model.close()
    assert "[m] loading weights" in caplog.text
