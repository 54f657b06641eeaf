"""Text to token ids."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pelton.errors import InvalidInput, PackageInvalid, TooLarge
from pelton.packages.preprocess import Text
from pelton.transforms import Prepare, compile_prepare
from pelton.types import TensorSpec

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "query", ":"]


def word_tokenizer() -> str:
    """A tokenizer.json as BERT's: words, [CLS] before and [SEP] behind; it asks for padding and truncation of its own."""
    special = [{"id": i, "content": WORDS[i], "special": True} for i in range(4)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": {
                "strategy": {"Fixed": 20},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "[PAD]",
            },
            "added_tokens": [token | flags for token in special],
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 1}},
                    {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
                ],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {
                    token: {"id": token, "ids": [WORDS.index(token)], "tokens": [token]} for token in ("[CLS]", "[SEP]")
                },
            },
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "[UNK]"},
        }
    )


def specs(*names: str, datatype: str = "INT64", width: int = -1) -> list[TensorSpec]:
    return [TensorSpec(name, datatype, (width,)) for name in names]


@pytest.fixture
def words(make: Any) -> Any:
    pytest.importorskip("tokenizers", reason="the extra 'text' is not installed")

    def prepare(inputs: list[TensorSpec] | None = None, **block: Any) -> Prepare:
        package = make(
            inputs or specs("ids"), [Text("text", "ids", **block)], files={"tokenizer.json": word_tokenizer()}
        )
        return compile_prepare(package)

    return prepare


def test_words_become_ids_mask_and_types_padded_to_a_multiple(words: Any) -> None:
    prepare = words(specs("types", "mask", "ids"), mask="mask", types="types", pad_to=4, pad_id=0)
    assert prepare.heavy
    assert prepare.fields[0].kind == "text"
    types, mask, ids = prepare({"text": ["The cat sat", "dog"]}).inputs
    assert ids.tolist() == [[2, 4, 5, 6, 3, 0, 0, 0], [2, 1, 3, 0, 0, 0, 0, 0]]
    assert mask.tolist() == [[1] * 5 + [0] * 3, [1] * 3 + [0] * 5]
    assert types.tolist() == [[0, 1, 1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert ids.dtype == mask.dtype == types.dtype == np.int64


def test_the_file_s_own_padding_and_truncation_are_not_used(words: Any) -> None:
    ids = words(pad_to=1)({"text": ["the cat sat the cat"]}).inputs[0]
    assert ids.tolist() == [[2, 4, 5, 6, 4, 5, 3]]


def test_a_longer_text_is_refused_or_cut_as_declared(words: Any) -> None:
    with pytest.raises(TooLarge, match=r"'text', row 1: the text has 6 tokens; the model takes at most 5"):
        words(max_tokens=5)({"text": ["cat", "the cat sat the"]})
    ids = words(max_tokens=5, truncate=True)({"text": ["the cat sat the"]}).inputs[0]
    assert ids.tolist() == [[2, 4, 5, 6, 3]]


def test_one_tokenizer_serves_many_threads(words: Any) -> None:
    prepare = words(pad_to=1)

    def right(count: int) -> bool:
        return prepare({"text": ["cat " * count]}).inputs[0].tolist() == [[2, *[5] * count, 3]]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, list(range(1, 60)) * 4))


def test_a_prefix_stands_before_every_text(words: Any) -> None:
    assert words(pad_to=1, prefix="query: ")({"text": ["cat"]}).inputs[0].tolist() == [[2, 7, 8, 5, 3]]


def test_a_file_that_is_no_tokenizer_is_an_invalid_package(make: Any) -> None:
    pytest.importorskip("tokenizers", reason="the extra 'text' is not installed")
    with pytest.raises(PackageInvalid, match=r"tokenizer\.json"):
        compile_prepare(make(specs("ids"), [Text("text", "ids")], files={"tokenizer.json": "{}"}))


def raw(make: Any, inputs: list[TensorSpec] | None = None, **block: Any) -> Prepare:
    return compile_prepare(make(inputs or specs("ids"), [Text("text", "ids", tokenizer="bytes", **block)]))


def test_bytes_need_no_file(make: Any) -> None:
    prepare = raw(make, specs("ids", "mask", datatype="INT32"), mask="mask", byte_offset=3, pad_id=9, pad_to=2)
    assert not prepare.heavy
    ids, mask = prepare({"text": ["aä", b"b"]}).inputs
    assert ids.tolist() == [[100, 0xC3 + 3, 0xA4 + 3, 9], [101, 9, 9, 9]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert ids.dtype == np.int32


def test_rows_can_have_exactly_the_largest_length(make: Any) -> None:
    prepare = raw(make, specs("ids", width=6), max_tokens=6, pad_to=0)
    assert prepare({"text": ["ab"]}).inputs[0].tolist() == [[97, 98, 0, 0, 0, 0]]


def test_padding_never_goes_beyond_the_largest_length(make: Any) -> None:
    assert raw(make, max_tokens=10)({"text": ["a" * 9]}).inputs[0].shape == (1, 10)


def test_bytes_are_cut_only_where_declared(make: Any) -> None:
    with pytest.raises(TooLarge, match="5 tokens"):
        raw(make, max_tokens=4)({"text": ["abcde"]})
    assert raw(make, max_tokens=4, truncate=True)({"text": ["abcde"]}).inputs[0].tolist() == [[97, 98, 99, 100]]


def test_characters_are_limited_before_tokenizing(make: Any) -> None:
    prepare = raw(make, max_characters=5, truncate=True, max_tokens=4)
    assert prepare({"text": ["abcde"]}).inputs[0].shape == (1, 4)
    for text in ("abcdef", b"abcdef", b"x" * 100):
        with pytest.raises(TooLarge, match="at most 5"):
            prepare({"text": [text]})


@pytest.mark.parametrize("value", ["", None, 5, True, ["a"], {"a": "b"}, b"\xff", "\ud800"])
def test_what_is_no_text_is_refused(make: Any, value: Any) -> None:
    with pytest.raises(InvalidInput, match="'text', row 1"):
        raw(make)({"text": ["a", value]})


@pytest.mark.parametrize(
    ("inputs", "block"),
    [
        (specs("ids", datatype="FP32"), {}),
        (specs("ids", datatype="INT16"), {"tokenizer": "tokenizer.json"}),
        (specs("ids", datatype="UINT8"), {"byte_offset": 1}),
        (specs("ids", datatype="UINT8"), {"pad_id": -1}),
        (specs("ids", width=7), {"pad_to": 0}),
        (specs("ids", width=512), {}),
        ([TensorSpec("ids", "INT64", ())], {}),
        (specs("ids"), {"max_tokens": 0}),
        (specs("ids"), {"pad_to": -1}),
    ],
)
def test_a_block_that_contradicts_its_input_is_an_invalid_package(
    make: Any, inputs: Any, block: dict[str, Any]
) -> None:
    with pytest.raises(PackageInvalid):
        compile_prepare(make(inputs, [Text("text", "ids", **{"tokenizer": "bytes", **block})]))
