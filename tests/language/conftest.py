"""Two small tokenizers of the kinds that language models have, and packages around them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers")

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from pelton.language import Card, Tokenizer
from pelton.language import card as cards
from pelton.packages import Package, load

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps.",
    "system user assistant You are a helpful assistant named Tiny.\n",
    'def main():\n    return {"name": "value", "arguments": {"city": "Paris"}}\n',
    "Größe, naïve café, 12345 67.89, привет мир, 你好世界, emoji 🙂🚀",
]
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def byte_level_json() -> bytes:
    """Byte-level BPE as GPT-2's: three control tokens, and <tool_call> as a plain added token."""
    tokenizer = Library(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return tokenizer.to_str().encode()


@pytest.fixture(scope="session")
def sentencepiece_json() -> bytes:
    """SentencePiece's kind: a space before each text, bytes for characters that it does not know."""
    pieces = [
        "▁",
        *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?<>|/_",
        "he",
        "▁the",
        "▁t",
        "ll",
        "hell",
        "hello",
        "▁hello",
    ]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocab = {name: i for i, name in enumerate(dict.fromkeys(names))}
    merges = [["h", "e"], ["l", "l"], ["▁", "t"], ["he", "ll"], ["▁t", "he"], ["hell", "o"], ["▁", "hello"]]
    special = [
        {
            "id": i,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, name in enumerate(("<unk>", "<s>", "</s>"))
    ]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    unspace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    whole: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [unspace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
    return json.dumps(whole).encode()


@pytest.fixture(scope="session")
def tokenizer(byte_level_json: bytes) -> Tokenizer:
    return Tokenizer(byte_level_json)


@pytest.fixture(scope="session")
def spaced(sentencepiece_json: bytes) -> Tokenizer:
    return Tokenizer(sentencepiece_json)


@pytest.fixture(scope="session")
def make_card(tokenizer: Tokenizer) -> Callable[..., Card]:
    def make(template: str = CHATML, **fields: Any) -> Card:
        known = {"vocab_size": tokenizer.vocab_size, "context": 64, "name": "tiny", "eos": 2, "stop_tokens": (0, 2)}
        return Card(chat_template=template, **{**known, **fields})

    return make


@pytest.fixture
def make_package(tmp_path: Path, byte_level_json: bytes, make_card: Callable[..., Card]) -> Callable[..., Package]:
    """A package folder with text but no weights."""

    def make(template: str = CHATML, **fields: Any) -> Package:
        (tmp_path / "tokenizer.json").write_bytes(byte_level_json)
        (tmp_path / "weights.bin").write_bytes(b"0")
        cards.write(make_card(template, **fields), tmp_path)
        (tmp_path / "pelton.toml").write_text(
            'name = "tiny"\nruntime = "language"\nfile = "weights.bin"\n'
            '[signature]\ninputs = [{name = "prompt", datatype = "BYTES"}]\noutputs = [{name = "text", datatype = "BYTES"}]\n'
        )
        return load(tmp_path)

    return make
