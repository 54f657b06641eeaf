"""The shape of a model, read from a Hugging Face `config.json` or GGUF metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")


class ModelUnsupported(ValueError):
    """The model is not one that this engine can run; the message says which part and what is supported."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding. `kind` and its numbers follow Hugging Face's `rope_scaling`."""

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes are counts of elements; `window` is in tokens (0: full attention)."""

    family: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    norm_eps: float
    rope: Rope
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    gated: Literal["silu", "gelu_tanh"] = "silu"
    sandwich_norms: bool = False  # Gemma: a norm after attention and after the MLP, too
    embed_scale: float = 1.0
    attn_scale: float = 0.0  # 0: 1 / sqrt(head_dim)
    windows: tuple[int, ...] = ()  # per layer; empty: full attention everywhere
    local_rope: Rope | None = None  # for the layers with a window (Gemma)

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads

    @property
    def scale(self) -> float:
        return self.attn_scale or self.head_dim**-0.5

    def window(self, layer: int) -> int:
        return self.windows[layer] if self.windows else 0

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * element_bytes

    @property
    def parameters(self) -> int:
        """How many weights a forward pass reads for one token: all but an untied embedding table."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocab * self.hidden


def read_config(folder: Path) -> ModelConfig:
    """Read `config.json` of a Hugging Face model folder."""
    return config_from_hf(json.loads((folder / "config.json").read_text()))


def config_from_hf(raw: Mapping[str, Any]) -> ModelConfig:
    """Translate the content of a `config.json`. Raises ModelUnsupported for what would run wrongly."""
    if raw.get("model_type") == "gemma3" and "text_config" in raw:
        raw = {**raw["text_config"], "model_type": "gemma3_text"}
    family = str(raw.get("model_type"))
    if family not in FAMILIES:
        raise ModelUnsupported(f"model_type {family!r} is not supported; supported: {', '.join(FAMILIES)}")
    if "quantization_config" in raw:
        raise ModelUnsupported("the folder holds quantized weights: give the original bf16, fp16 or fp32 ones")
    heads, hidden, layers = raw["num_attention_heads"], raw["hidden_size"], raw["num_hidden_layers"]
    config = ModelConfig(
        family=family,
        vocab=raw["vocab_size"],
        hidden=hidden,
        intermediate=raw["intermediate_size"],
        layers=layers,
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or hidden // heads,
        context=raw.get("max_position_embeddings", 4096),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope=_rope(raw, "full_attention", 10_000.0),
        tied=bool(raw.get("tie_word_embeddings", family == "gemma3_text")),
        qkv_bias=bool(raw.get("attention_bias", family == "qwen2")),
        qk_norm=family in ("qwen3", "gemma3_text"),
        windows=_windows(raw, family, layers),
    )
    if raw.get("mlp_bias"):
        raise ModelUnsupported("mlp_bias is not supported")
    return _gemma(config, raw) if family == "gemma3_text" else _check_activation(config, raw)


def _check_activation(config: ModelConfig, raw: Mapping[str, Any]) -> ModelConfig:
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelUnsupported(f"hidden_act {raw['hidden_act']!r} is not supported for {config.family}; silu is")
    return config


def _gemma(config: ModelConfig, raw: Mapping[str, Any]) -> ModelConfig:
    if raw.get("attn_logit_softcapping") or raw.get("final_logit_softcapping"):
        raise ModelUnsupported("soft-capped logits (Gemma 2) are not supported")
    local = _rope(raw, "sliding_attention", raw.get("rope_local_base_freq", 10_000.0))
    return replace(
        config,
        gated="gelu_tanh",
        sandwich_norms=True,
        embed_scale=float(config.hidden) ** 0.5,
        attn_scale=float(raw.get("query_pre_attn_scalar", config.head_dim)) ** -0.5,
        rope=config.rope if "rope_parameters" in raw else replace(config.rope, theta=raw.get("rope_theta", 1e6)),
        local_rope=local if "rope_parameters" in raw else Rope(theta=raw.get("rope_local_base_freq", 10_000.0)),
    )


def _windows(raw: Mapping[str, Any], family: str, layers: int) -> tuple[int, ...]:
    window = raw.get("sliding_window")
    if not window or raw.get("use_sliding_window") is False:
        return ()
    kinds = raw.get("layer_types")
    if kinds is None and family == "gemma3_text":
        every = raw.get("sliding_window_pattern", 6)
        kinds = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)]
    if kinds is None:
        kinds = ["sliding_attention" if family == "mistral" else "full_attention"] * layers
    windows = tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    return windows if any(windows) else ()


def _rope(raw: Mapping[str, Any], layer_kind: str, default_theta: float) -> Rope:
    """Both spellings: `rope_theta` + `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5)."""
    scaling = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    scaling = dict(scaling.get(layer_kind, scaling))
    theta = float(scaling.get("rope_theta") or raw.get("rope_theta") or default_theta)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, "linear", factor=float(scaling["factor"]))
    if kind == "llama3":
        return Rope(
            theta,
            "llama3",
            factor=float(scaling["factor"]),
            low_freq_factor=float(scaling["low_freq_factor"]),
            high_freq_factor=float(scaling["high_freq_factor"]),
            original_context=int(scaling["original_max_position_embeddings"]),
        )
    raise ModelUnsupported(f"rope type {kind!r} is not supported; supported: default, linear, llama3")


_GGUF_FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}


def config_from_gguf(meta: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Translate GGUF metadata. `tensors` maps each tensor's name to its shape, outermost dimension first."""
    arch = str(meta["general.architecture"])
    if arch not in _GGUF_FAMILIES:
        raise ModelUnsupported(f"GGUF architecture {arch!r} is not supported; supported: {', '.join(_GGUF_FAMILIES)}")
    if f"{arch}.rope.scaling.type" in meta and meta[f"{arch}.rope.scaling.type"] not in ("none", "linear"):
        raise ModelUnsupported(f"GGUF rope scaling {meta[f'{arch}.rope.scaling.type']!r} is not supported")
    if "rope_freqs.weight" in tensors:
        raise ModelUnsupported("GGUF files with rope_freqs are not supported: use the Hugging Face folder")
    heads, hidden = int(meta[f"{arch}.attention.head_count"]), int(meta[f"{arch}.embedding_length"])
    layers = int(meta[f"{arch}.block_count"])
    factor = float(meta.get(f"{arch}.rope.scaling.factor", 1.0))
    theta = float(meta.get(f"{arch}.rope.freq_base", 1e6 if arch == "gemma3" else 10_000.0))
    raw: dict[str, Any] = {
        "model_type": _GGUF_FAMILIES[arch],
        "vocab_size": tensors["token_embd.weight"][0],
        "hidden_size": hidden,
        "intermediate_size": int(meta[f"{arch}.feed_forward_length"]),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": int(meta.get(f"{arch}.attention.head_count_kv", heads)),
        "head_dim": int(meta.get(f"{arch}.attention.key_length", hidden // heads)),
        "max_position_embeddings": int(meta[f"{arch}.context_length"]),
        "rms_norm_eps": float(meta[f"{arch}.attention.layer_norm_rms_epsilon"]),
        "rope_theta": theta,
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
    }
    if f"{arch}.attention.sliding_window" in meta:
        raw["sliding_window"] = int(meta[f"{arch}.attention.sliding_window"])
    if factor != 1.0:
        raw["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    return config_from_hf(raw)
