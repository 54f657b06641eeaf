"""Reading a class without running it."""

from __future__ import annotations

import textwrap

import pytest

from pelton.errors import SourceInvalid
from pelton.packages.python_source import find_class, inspect_class
from pelton.types import Signature, TensorSpec

GOOD = """
raise RuntimeError("this module must not run")

class Base:
    outputs: dict[str, str] = {"score": "FP32[2]", "label": "BYTES"}
    batch = True

class Model(Base):
    inputs = {"x": "FP32[30]", "image": "UINT8[-1, -1, 3]", "n": "INT64[]"}
    def predict(self, x, image, n): ...
"""


@pytest.fixture
def write(tmp_path):
    def write(source):
        path = tmp_path / "model.py"
        path.write_bytes(textwrap.dedent(source).encode() if isinstance(source, str) else source)
        return path

    return write


def test_a_class_is_read_in_its_order_without_running_the_module(write):
    assert inspect_class(write(GOOD)) == (
        Signature(
            (TensorSpec("x", "FP32", (30,)), TensorSpec("image", "UINT8", (-1, -1, 3)), TensorSpec("n", "INT64")),
            (TensorSpec("score", "FP32", (2,)), TensorSpec("label", "BYTES")),
        ),
        True,
    )


def test_a_class_that_does_not_say_takes_single_rows(write):
    source = GOOD.replace("    batch = True\n", "")
    assert inspect_class(write(source))[1] is False


def class_with(line, predict="def predict(self, x): ..."):
    return f'class Model:\n    inputs = {{"x": "FP32[3]"}}\n    outputs = {{"y": "FP32"}}\n    {line}\n    {predict}\n'


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class Other:\n    pass", "no class 'Model' at its top level; it has: Other"),
        ("", "it has: none"),
        ("class Model:\n    outputs = {}\n    def predict(self): ...", "has no `inputs`"),
        (class_with("inputs = {}"), "inputs must be a dictionary"),
        (class_with("inputs = ['FP32']"), "inputs must be a dictionary"),
        (class_with("N = 3\n    inputs = {'x': f'FP32[{N}]'}"), r"inputs \(line 5\) is computed"),
        (class_with("inputs = {1: 'FP32'}"), "names must be text, not 1"),
        (class_with("inputs = {'x': 3}"), "'x': write its type as text"),
        (class_with("inputs = {'x': 'float32[3]'}"), "unknown datatype 'float32'; did you mean FP32"),
        (class_with("inputs = {'x': 'FP33[3]'}"), "did you mean FP32"),
        (class_with("inputs = {'x': 'tensor[3]'}"), "one of BOOL"),
        (class_with("inputs = {'x': 'FP32[3'}"), "closing bracket"),
        (class_with("inputs = {'x': 'FP32[3]]'}"), "'3]'.*is no dimension"),
        (class_with("inputs = {'x': 'FP32[-2]'}"), "'-2'.*is no dimension"),
        (class_with("inputs = {'x': 'FP32[a, 2]'}"), "'a'.*is no dimension"),
        (class_with("inputs = {'x': 'FP32[3,]'}"), "''.*is no dimension"),
        (class_with("inputs = {'x': 'FP32[" + "1," * 40 + "1]'}"), "more than 32 dimensions"),
        (class_with("batch = 8"), "batch must be True or False, not 8"),
        (class_with("pass", predict="pass"), "no method `predict`"),
        ("class Model\n    pass", "line 1"),
        (b"class Model:\x00", "model.py"),
        (b"\xff\xfe\xfa", "model.py"),
        ("(" * 5000, "model.py"),
        ("x = " + "-" * 200_000 + "1", "model.py"),
    ],
)
def test_what_cannot_be_read_names_the_file_and_the_mend(write, source, message):
    with pytest.raises(SourceInvalid, match=message) as caught:
        inspect_class(write(source))
    assert "model.py" in str(caught.value)


def test_a_file_that_is_missing_or_huge_is_refused(tmp_path, write):
    with pytest.raises(SourceInvalid, match="No such file"):
        inspect_class(tmp_path / "none.py")
    with pytest.raises(SourceInvalid, match="larger than"):
        inspect_class(write("#" * 5_000_000))


def test_the_class_to_serve_is_found_or_asked_for(write):
    one = "class Helper: pass\nclass Churn:\n    def predict(self, x): ...\n"
    assert find_class(write(one)) == "Churn"
    assert find_class(write(one + "class Model(Churn): pass\n")) == "Model"
    with pytest.raises(SourceInvalid, match="several classes with `predict`: Churn, Fraud"):
        find_class(write(one + one.replace("Churn", "Fraud")))
    with pytest.raises(SourceInvalid, match="no class with a method"):
        find_class(write("x = 1"))
