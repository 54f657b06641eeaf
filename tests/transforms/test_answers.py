"""Outputs to answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.errors import ModelFailed, PackageInvalid
from pelton.packages import Manifest, Package
from pelton.packages.preprocess import Ctc, Labels, Value
from pelton.transforms import compile_finish
from pelton.transforms.elements import to_bf16
from pelton.types import Signature, TensorSpec


def finish(make: Any, spec: TensorSpec, *blocks: Any, files: dict[str, str] | None = None) -> Any:
    return compile_finish(make(outputs=[spec], postprocess=blocks, files=files))


def f32(*values: Any) -> np.ndarray:
    return np.array(values, np.float32)


SCORES = TensorSpec("y", "FP32", (3,))


def test_outputs_without_a_block_appear_under_their_own_name(make: Any) -> None:
    specs = [TensorSpec("a", "FP32", (2,)), TensorSpec("b", "INT64", ()), TensorSpec("c", "BYTES", (1,))]
    done = compile_finish(make(outputs=specs))
    assert done.fields == ("a", "b", "c")
    text = np.array([["ä".encode()], [b"\xff"]], object)
    answers = done([f32([1, 2], [3, 4.5]), np.array([5, 6]), text], None)
    assert answers == [{"a": [1, 2], "b": 5, "c": ["ä"]}, {"a": [3, 4.5], "b": 6, "c": ["\ufffd"]}]
    json.dumps(answers, allow_nan=False)


@pytest.mark.parametrize("width", [3, 100])
def test_numbers_that_are_not_finite_become_null(make: Any, width: int) -> None:
    array = np.zeros((1, width), np.float32)
    array[0, :2] = [np.nan, np.inf]
    answers = finish(make, TensorSpec("y", "FP32", (width,)))([array], None)
    assert answers[0]["y"][:3] == [None, None, 0]
    json.dumps(answers, allow_nan=False)


def test_bfloat16_is_shown_as_numbers(make: Any) -> None:
    done = finish(make, TensorSpec("y", "BF16", (2,)))
    assert done([to_bf16(f32([1.5, -2]))], None) == [{"y": [1.5, -2]}]


def test_rows_of_one_instance_are_grouped(make: Any) -> None:
    done = finish(make, TensorSpec("y", "INT64", ()))
    assert done([np.array([1, 2, 3])], (2, 1)) == [{"y": [1, 2]}, {"y": [3]}]
    with pytest.raises(ModelFailed):
        done([np.array([1, 2])], (2, 1))


def test_the_best_labels_come_first_with_seven_digits(make: Any) -> None:
    done = finish(make, SCORES, Labels("y", labels=("ant", "bee", "cat"), top=2))
    assert done([f32([0.1, 0.7, 0.2], [0.4, 0.2, 0.4])], None) == [
        {"labels": [{"label": "bee", "score": 0.7}, {"label": "cat", "score": 0.2}]},
        {"labels": [{"label": "ant", "score": 0.4}, {"label": "cat", "score": 0.4}]},
    ]


def test_labels_without_names_are_indices_and_top_may_exceed_their_number(make: Any) -> None:
    answers = finish(make, SCORES, Labels("y", field="class"))([f32([0, 2, 1])], None)
    assert [item["label"] for item in answers[0]["class"]] == ["1", "2", "0"]


def test_softmax_turns_logits_into_probabilities_without_overflow(make: Any) -> None:
    answers = finish(make, SCORES, Labels("y", softmax=True))([f32([1000, 1000 + np.log(2), -1000])], None)
    assert [item["score"] for item in answers[0]["labels"]] == pytest.approx([2 / 3, 1 / 3, 0], abs=1e-4)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_single_score_belongs_to_the_second_label(make: Any, shape: tuple[int, ...]) -> None:
    spec = TensorSpec("y", "FP32", shape)
    done = finish(make, spec, Labels("y", labels=("ham", "spam")))
    assert done([f32(0.25).reshape(1, *shape)], None)[0]["labels"] == [
        {"label": "ham", "score": 0.75},
        {"label": "spam", "score": 0.25},
    ]
    logits = finish(make, spec, Labels("y", labels=("ham", "spam"), softmax=True))
    for logit, score in ((0, 0.5), (-1e30, 0), (1e30, 1)):
        found = {item["label"]: item["score"] for item in logits([f32(logit).reshape(1, *shape)], None)[0]["labels"]}
        assert found["spam"] == score


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    st.booleans(),
    st.integers(1, 9),
)
def test_rows_alone_and_in_large_batches_get_the_same_labels(scores: list[float], softmax: bool, top: int) -> None:
    spec = TensorSpec("y", "FP32", (len(scores),))
    signature = Signature((TensorSpec("x", "FP32"),), (spec,))
    block = Labels("y", softmax=softmax, top=top)
    done = compile_finish(Package(Path("nowhere"), Manifest("m", "onnx", "f", signature, postprocess=(block,))))
    alone = done([f32(scores)], None)[0]["labels"]
    batch = done([np.repeat(f32(scores), 100, axis=0)], None)
    assert len(batch) == 100
    assert all(answer == batch[0] for answer in batch)
    assert [item["score"] for item in alone] == pytest.approx([item["score"] for item in batch[0]["labels"]], abs=1e-6)
    if not softmax:
        assert alone == batch[0]["labels"]


def test_windows_are_joined_as_declared(make: Any) -> None:
    array = f32([1, 0, 0], [0, 0.5, 0.25], [0, 0, 1])
    counts = (2, 1)
    tops = {
        how: [
            (item["labels"][0]["label"], item["labels"][0]["score"])
            for item in finish(make, SCORES, Labels("y", over_rows=how))([array], counts)
        ]
        for how in ("mean", "max")
    }
    assert tops == {"mean": [("0", 0.5), ("2", 1)], "max": [("0", 1), ("2", 1)]}
    apart = finish(make, SCORES, Labels("y", top=1))([array], counts)
    assert [[window[0]["label"] for window in item["labels"]] for item in apart] == [["0", "1"], ["2"]]


def test_labels_are_read_from_a_file(make: Any) -> None:
    done = finish(make, SCORES, Labels("y", labels_file="l.txt", top=1), files={"l.txt": "\ufeffant\r\nbee\r\ncat\r\n"})
    assert done([f32([1, 0, 0])], None) == [{"labels": [{"label": "ant", "score": 1}]}]
    with pytest.raises(PackageInvalid, match="2 labels for 3"):
        finish(make, SCORES, Labels("y", labels_file="two.txt"), files={"two.txt": "a\nb"})
    with pytest.raises(PackageInvalid, match="cannot read"):
        finish(make, SCORES, Labels("y", labels_file="none.txt"))


def test_a_model_that_answers_nonsense_is_told_so(make: Any) -> None:
    done = finish(make, TensorSpec("y", "FP32", (-1,)), Labels("y", labels=("a", "b")))
    with pytest.raises(ModelFailed, match="3 scores"):
        done([f32([1, 2, 3])], None)
    with pytest.raises(ModelFailed, match="finite"):
        done([f32([1, np.nan])], None)


def ctc_scores(*symbols: int, count: int = 4) -> np.ndarray:
    return np.eye(count, dtype=np.float32)[None, list(symbols)]


def test_ctc_merges_repeats_and_drops_blanks(make: Any) -> None:
    done = finish(make, TensorSpec("y", "FP32", (-1, 4)), Ctc("y", "s.txt"), files={"s.txt": "a\n\u2028\n \n"})
    assert done([ctc_scores(1, 1, 0, 1, 3, 3, 2, 0)], None) == [{"text": "aa \u2028"}]
    assert done([ctc_scores(0, 0)], None) == [{"text": ""}]
    both = np.concatenate([ctc_scores(1, 0), ctc_scores(3, 1)])
    assert done([both], (2,)) == [{"text": ["a", " a"]}]


def test_ctc_symbols_must_fit_the_output(make: Any) -> None:
    for shape in ((-1, 5), (-1,), (-1, 3)):
        with pytest.raises(PackageInvalid, match="3 symbols"):
            finish(make, TensorSpec("y", "FP32", shape), Ctc("y", "s.txt"), files={"s.txt": "a\nb\nc"})
    open_ended = finish(make, TensorSpec("y", "FP32", (-1, -1)), Ctc("y", "s.txt"), files={"s.txt": "a\nb\nc"})
    with pytest.raises(ModelFailed):
        open_ended([ctc_scores(1, count=7)], None)


def test_a_value_is_renamed_and_may_be_one_element(make: Any) -> None:
    array = f32([0.25, 0.75, 0])
    assert finish(make, SCORES, Value("y", "p", index=1))([array], None) == [{"p": 0.75}]
    assert finish(make, SCORES, Value("y", "p"), Labels("y", top=1))([array], None) == [
        {"p": [0.25, 0.75, 0], "labels": [{"label": "1", "score": 0.75}]}
    ]
    with pytest.raises(ModelFailed, match="element 9"):
        finish(make, TensorSpec("y", "FP32", (-1,)), Value("y", "p", index=9))([array], None)


@pytest.mark.parametrize(
    ("spec", "block"),
    [
        (SCORES, Value("y", "p", index=3)),
        (SCORES, Value("y", "p", index=-1)),
        (SCORES, Labels("y", top=0)),
        (SCORES, Labels("y", labels=("a",))),
        (SCORES, Labels("z")),
        (TensorSpec("y", "BYTES", (3,)), Labels("y")),
        (TensorSpec("y", "BYTES", (3,)), Value("y", "p", index=0)),
    ],
)
def test_a_block_that_contradicts_the_output_is_an_invalid_package(make: Any, spec: TensorSpec, block: Any) -> None:
    with pytest.raises(PackageInvalid):
        finish(make, spec, block)


def test_two_answers_of_one_name_are_an_invalid_package(make: Any) -> None:
    with pytest.raises(PackageInvalid, match="'a'"):
        compile_finish(make(outputs=[TensorSpec("y", "FP32"), TensorSpec("a", "FP32")], postprocess=[Value("y", "a")]))
