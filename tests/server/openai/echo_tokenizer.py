"""A byte-level tokenizer without merges: token n is byte n. Needs nothing but Python."""

from __future__ import annotations

import json


def alphabet() -> list[str]:
    """The printable stand-ins of the bytes 0 to 255 (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(hidden)) for byte in range(256)]


def tokenizer() -> bytes:
    """`tokenizer.json`. Control tokens from 256 on; those of tool calls are tokens of their own, and text."""
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
