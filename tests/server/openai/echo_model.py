"""A language model without weights, as a package: it says its prompt again. One byte is one token."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from echo_tokenizer import tokenizer

from pelton import language, packages
from pelton.language.tools import uses_tools
from pelton.packages import Manifest, Slo
from pelton.packages import preprocess as pre
from pelton.packages.python_source import inspect_class
from pelton.registry import Registry
from pelton.types import Signature, TensorSpec

START, END = 256, 257  # <|im_start|>, <|im_end|>
VOCABULARY = 260
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


THINKING = (  # says what the user said; with `open`, after the mark that begins thoughts
    "{% for message in messages %}{{ message.content }}<|im_end|>{% endfor %}"
    "{% if open or enable_thinking %}<think>\n{% endif %}{# the answer stands after </think>, and tools are not shown #}"
)


def add(home: Path, name: str = "echo", chat: bool = True, template: str = TEMPLATE, **options: Any) -> str:
    """Adds the package to the registry of `home`; `options` are those of pelton.toml. Returns its version."""
    folder = home / "made" / f"{name}-{len(list(home.glob('made/*')))}"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(tokenizer())
    (folder / "weights.none").write_bytes(b"none")
    card = language.Card(
        VOCABULARY,
        options.get("context", 8192),
        name,
        eos=END,
        chat_template=template if chat else "",
        tools_in_template=uses_tools(template),
    )
    language.card.write(card, folder)
    signature = Signature((TensorSpec("prompt", "BYTES"),), (TensorSpec("text", "BYTES"),))
    told = {"engine": "echo", "context": 8192, **options}
    packages.save(Manifest(name, "language", "weights.none", signature, options=told), folder)
    return Registry(home).add(folder)


EMBEDS = """
import numpy as np

class Model:
    inputs = {"ids": "INT64[-1]", "mask": "INT64[-1]"}
    outputs = {"vector": "FP32[4]"}

    def predict(self, ids, mask):
        kept = ids[mask > 0].astype(np.float32)
        ends = (kept[0], kept[-1]) if len(kept) else (0, 0)
        return np.array([len(kept), kept.sum(), *ends], np.float32)
"""

HEARS = """
import json

class Model:
    inputs = {"features": "FP32[80,3000]", "order": "BYTES"}
    outputs = {"heard": "BYTES"}

    def predict(self, features, order):
        order = bytes(order.item() if hasattr(order, "item") else order)
        told = json.loads(order) if order.startswith(b"{") else {"start": 0, "frames": 0}
        begin, seconds = told["start"] / 100, told["frames"] / 100
        words = [" hello", " " + told.get("task", "transcribe"), " " + (told.get("language") or "en")]
        segment = {
            "id": 0, "seek": told["start"], "start": begin, "end": begin + seconds, "text": "".join(words),
            "tokens": [1, 2], "temperature": told.get("temperature", 0.0), "avg_logprob": -0.5,
            "compression_ratio": 1.0, "no_speech_prob": 0.0,
        }
        if told.get("words"):
            segment["words"] = [{"word": w, "start": begin, "end": begin + 0.1, "probability": 0.9} for w in words]
        return json.dumps({"start": told["start"], "frames": told["frames"], "language": told.get("language") or "en",
                           "segments": [segment]}).encode()
"""


def add_class(home: Path, name: str, source: str, **manifest: Any) -> str:
    """Adds a Python class as a package."""
    folder = home / "made" / name
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(source)
    (folder / "tokenizer.json").write_bytes(tokenizer())
    signature, _ = inspect_class(folder / "model.py")
    packages.save(Manifest(name, "python", "model.py", signature, slo=Slo(30_000.0), **manifest), folder)
    return Registry(home).add(folder)


def add_embedding(home: Path, name: str = "vectors") -> str:
    """Number of tokens, their sum, the first and the last: an "embedding" that tells what it got."""
    text = pre.Text("text", ids="ids", mask="mask", tokenizer="tokenizer.json", max_tokens=64)
    return add_class(
        home,
        name,
        EMBEDS,
        preprocess=(text,),
        postprocess=(pre.Embedding("vector", dimensions=(2,), normalized=False),),
    )


def add_speech(home: Path, name: str = "ears") -> str:
    """Hears nothing, and tells what it was asked."""
    parts: tuple[Any, ...] = ("text", "language", "duration", "segments")
    return add_class(
        home, name, HEARS,
        preprocess=(pre.Speech("audio", languages=("en", "de")),),
        postprocess=tuple(pre.Transcript("heard", part, part) for part in parts),
    )  # fmt: skip


if __name__ == "__main__":  # the tests of clients run in an environment without Pelton
    for make in (add, add_embedding, add_speech):
        make(Path(sys.argv[1]))
    add(Path(sys.argv[1]), "thinker", template=THINKING)
