"""The vocabulary of a GGUF file -> `tokenizer.json`, as the library tokenizers reads it.

Two kinds of vocabularies are in use by language models: byte-level BPE ("gpt2" in the file, with a name for how text is
cut before the merges) and SentencePiece ("llama": pieces with scores, of which the merges are made again).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from pelton.errors import SourceInvalid, Unsupported
from pelton.language.gguf import Gguf

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# They end an answer in every model that has them, whatever type the file gives them.
ENDS: Final = frozenset(
    {
        "<|im_end|>",
        "<|endoftext|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<turn|>",
        "<|end_of_turn|>",
        "<EOT>",
        "<|eot|>",
    }
)
_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3: Final = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _REST  # as in Llama 3
)
_UPPER: Final = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER: Final = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_O200K: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _REST
)
# "" is GPT-2's own pattern, which the library has; "digits" the same with every digit apart
_PATTERNS: Final[dict[str, str]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"), ""),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "digits"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe", "falcon3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "hunyuan"), _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
    "gpt-4o": _O200K,
    "tekken": _O200K.replace(_CONTRACTIONS + "?", "").replace(r"\p{N}{1,3}", r"\p{N}"),
}
_IGNORE_MERGES: Final = frozenset({_LLAMA3, _PATTERNS["tekken"]})
_COMPOSED: Final = frozenset({"qwen2", "deepseek-r1-qwen"})  # their own tokenizers compose characters (NFC) first

Json = dict[str, Any]


def tokenizer_of(file: Gguf) -> bytes:
    """The contents of `tokenizer.json`. Raises Unsupported for a kind of vocabulary that is not known, SourceInvalid."""
    kind = file.get("tokenizer.ggml.model", str, "")
    tokens = file.get("tokenizer.ggml.tokens", list, [])
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise SourceInvalid(f"{file.path}: it holds no vocabulary (tokenizer.ggml.tokens)")
    types = types_of(file)
    if kind == "gpt2":
        made = _byte_level(file, tokens)
    elif kind in ("llama", "gemma4"):
        made = _sentencepiece(file, tokens, types)
    elif kind == "bert":
        raise Unsupported(f"{file.path}: this is an encoder, which writes no text; export it to ONNX and add that")
    else:
        raise Unsupported(f"{file.path}: a vocabulary of the kind {kind!r} is not known; known are 'gpt2' and 'llama'")
    made |= {"version": "1.0", "truncation": None, "padding": None, "added_tokens": _added(tokens, types)}
    return msgspec.json.encode(made)


def types_of(file: Gguf) -> list[int]:
    """The type of each token; what ends an answer is a control token."""
    tokens: list[str] = file.get("tokenizer.ggml.tokens", list, [])
    types = list(file.get("tokenizer.ggml.token_type", list, [])) or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise SourceInvalid(f"{file.path}: {len(tokens)} tokens but {len(types)} types of tokens")
    for token in ends_of(file, tokens):
        types[token] = CONTROL
    return types


def ends_of(file: Gguf, tokens: Sequence[str]) -> list[int]:
    """Tokens that end an answer: those that the file names, and those of the usual names."""
    names = ("eos", "eot", "eom")
    told = {file.get(f"tokenizer.ggml.{name}_token_id", int, -1) for name in names}
    usual = {i for i, token in enumerate(tokens) if token in ENDS}
    return sorted(token for token in told | usual if 0 <= token < len(tokens))


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[Json]:
    """Tokens that are found in a text before anything else. Runs of SentencePiece's own space come from the merges."""
    return [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[i] != USER,
        }
        for i, token in enumerate(tokens)
        if token and (types[i] in (CONTROL, UNKNOWN) or (types[i] == USER and "▁" not in token))
    ]


def _byte_level(file: Gguf, tokens: Sequence[str]) -> Json:
    name = file.get("tokenizer.ggml.pre", str, "gpt-2")
    pattern = _PATTERNS.get(name)
    if pattern is None:
        raise Unsupported(
            f"{file.path}: text is cut by the rules {name!r}, which are not known; known are"
            f" {', '.join(sorted(_PATTERNS))}. The model's Hugging Face folder has its own tokenizer.json: add that"
        )
    merges = file.get("tokenizer.ggml.merges", list, [])
    pairs = [str(merge).split(" ") for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise SourceInvalid(f"{file.path}: tokenizer.ggml.merges holds something else than pairs")
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab and "".join(pair) in vocab]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    if pattern == "digits":
        cut: Json = {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        }
    elif pattern:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        cut = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}
    else:
        cut = byte_level
    return {
        "normalizer": {"type": "NFC"} if name in _COMPOSED else None,
        "pre_tokenizer": cut,
        "post_processor": None,
        "decoder": byte_level,
        "model": _bpe(vocab, pairs, ignore_merges=pattern in _IGNORE_MERGES),
    }


def _sentencepiece(file: Gguf, tokens: Sequence[str], types: Sequence[int]) -> Json:
    scores = file.get("tokenizer.ggml.scores", list, [])
    if len(scores) != len(tokens):
        raise SourceInvalid(f"{file.path}: {len(tokens)} tokens but {len(scores)} scores")
    vocab = {token: i for i, token in enumerate(tokens)}
    pieces = {token: scores[i] for token, i in vocab.items() if types[i] in (NORMAL, USER)}
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    unspace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    unknown = next((tokens[i] for i, kind in enumerate(types) if kind == UNKNOWN), None)
    normalizers = [{"type": "Prepend", "prepend": "▁"}, space] if prefix else [space]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [unspace, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": _bpe(vocab, merges_of(pieces, vocab), unknown=unknown, byte_fallback=True),
    }


def merges_of(scores: Mapping[str, float], vocab: Mapping[str, int]) -> list[list[str]]:
    """The merges behind SentencePiece's scores: every way to put a piece together of two, better pieces first."""
    found: list[tuple[float, int, int, str, str]] = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                found.append((-score, vocab[left], vocab[right], left, right))
    found.sort(key=lambda merge: merge[:3])
    return [[left, right] for *_, left, right in found]


def _bpe(
    vocab: Mapping[str, int],
    merges: list[list[str]],
    unknown: str | None = None,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": dict(vocab),
        "merges": merges,
    }
