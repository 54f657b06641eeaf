"""A language model without weights, as a package: it says its prompt again. One byte is one token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pelton import language, packages
from pelton.packages import Manifest
from pelton.registry import Registry
from pelton.types import Signature, TensorSpec

START, END = 256, 257  # <|im_start|>, <|im_end|>
VOCABULARY = 260
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def alphabet() -> list[str]:
    """The printable stand-ins of the bytes 0 to 255 (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(hidden)) for byte in range(256)]


def tokenizer() -> bytes:
    """A byte-level tokenizer without merges: token n is byte n."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
    made = {
        "version": "1.0",
        "added_tokens": [
            {"id": 256 + place, "content": name, **special, "special": place < 2} for place, name in enumerate(names)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "vocab": {character: byte for byte, character in enumerate(alphabet())}, "merges": [],
        },
    }  # fmt: skip
    return json.dumps(made).encode()


def add(home: Path, name: str = "echo", chat: bool = True, **options: Any) -> str:
    """Adds the package to the registry of `home`; `options` are those of pelton.toml. Returns its version."""
    folder = home / "made" / name
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(tokenizer())
    (folder / "weights.none").write_bytes(b"none")
    card = language.Card(
        VOCABULARY, options.get("context", 8192), name, eos=END, chat_template=TEMPLATE if chat else ""
    )
    language.card.write(card, folder)
    signature = Signature((TensorSpec("prompt", "BYTES"),), (TensorSpec("text", "BYTES"),))
    told = {"engine": "echo", "context": 8192, **options}
    packages.save(Manifest(name, "language", "weights.none", signature, options=told), folder)
    return Registry(home).add(folder)
