"""Weights from a Hugging Face folder, a GGUF file, or a random seed; cut for tensor parallelism, quantized to FP8."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from pelton.runtimes.lm import reference
from pelton.runtimes.lm.config import ModelConfig, ModelUnsupported, config_from_gguf, config_from_hf
from pelton.runtimes.lm.gguf import GgufFile
from pelton.runtimes.lm.model import Layer, Weights
from pelton.runtimes.lm.ops import Linear
from pelton.runtimes.lm.parallel import Ranks


class Source(Protocol):
    """Where tensors come from, by their Hugging Face names."""

    def read(self, name: str) -> torch.Tensor: ...

    def has(self, name: str) -> bool: ...

    def norm(self, name: str) -> torch.Tensor:
        """A norm's weight as a plain multiplier, float32."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A model's shape, its tensors, and its end-of-sequence tokens."""

    config: ModelConfig
    source: Source
    end_tokens: frozenset[int]


class FolderSource:
    """`*.safetensors` of a Hugging Face folder."""

    def __init__(self, folder: Path, prefix: str, gemma: bool) -> None:
        from safetensors import safe_open  # only folders need it

        self._stack, self._prefix, self._gemma = ExitStack(), prefix, gemma
        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            handle = self._stack.enter_context(safe_open(path, framework="pt"))
            self._files.update(dict.fromkeys(handle.keys(), handle))
        if not self._files:
            raise ModelUnsupported(f"{folder} holds no *.safetensors (pickled .bin weights are not read)")

    def _name(self, name: str) -> str:
        for candidate in (name, self._prefix + name, f"language_model.{name}"):
            if candidate in self._files:
                return candidate
        return name

    def has(self, name: str) -> bool:
        return self._name(name) in self._files

    def read(self, name: str) -> torch.Tensor:
        found = self._name(name)
        if found not in self._files:
            raise ModelUnsupported(f"the weights hold no tensor {name!r}")
        tensor: torch.Tensor = self._files[found].get_tensor(found)
        return tensor

    def norm(self, name: str) -> torch.Tensor:
        weight = self.read(name).float()
        return weight + 1.0 if self._gemma else weight


_GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_GGUF_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_GGUF_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


class GgufSource:
    """A GGUF file. Files of the llama family store queries and keys for pairwise rotation; that is undone here."""

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        self._file, self._config = file, config
        self._paired = str(file.meta["general.architecture"]) == "llama"
        self._parts = {**_GGUF_PARTS, **(_GGUF_GEMMA if config.sandwich_norms else {})}

    def _name(self, name: str) -> str:
        if name in _GGUF_NAMES:
            return _GGUF_NAMES[name]
        _, _, layer, rest = name.split(".", 3)
        part, kind = rest.rsplit(".", 1)
        return f"blk.{layer}.{self._parts[part]}.{kind}"

    def has(self, name: str) -> bool:
        return self._name(name) in self._file.tensors

    def read(self, name: str) -> torch.Tensor:
        tensor = torch.from_numpy(self._file.read(self._name(name)).copy())
        if self._paired and (".q_proj." in name or ".k_proj." in name):
            heads = self._config.heads if ".q_proj." in name else self._config.kv_heads
            tensor = tensor.view(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        return tensor

    def norm(self, name: str) -> torch.Tensor:
        return self.read(name)  # a Gemma file has the 1 added already


class RandomSource:
    """Normal weights of a seed, drawn where they are needed: for benchmarks and tests without a model file."""

    def __init__(self, config: ModelConfig, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self._config, self._device, self._dtype = config, device, dtype
        self._generator = torch.Generator(device).manual_seed(seed)

    def has(self, name: str) -> bool:
        return True

    def read(self, name: str) -> torch.Tensor:
        c = self._config
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        outs, size = {
            "embed_tokens": (c.vocab, c.hidden),
            "lm_head": (c.vocab, c.hidden),
            "q_proj": (q, c.hidden),
            "k_proj": (kv, c.hidden),
            "v_proj": (kv, c.hidden),
            "o_proj": (c.hidden, q),
            "gate_proj": (c.intermediate, c.hidden),
            "up_proj": (c.intermediate, c.hidden),
            "down_proj": (c.hidden, c.intermediate),
        }[name.split(".")[-2]]
        shape = (outs,) if name.endswith(".bias") else (outs, size)
        return torch.randn(shape, generator=self._generator, device=self._device, dtype=self._dtype) * 0.02

    def norm(self, name: str) -> torch.Tensor:
        size = self._config.head_dim if name.split(".")[-2] in ("q_norm", "k_norm") else self._config.hidden
        return torch.ones(size, device=self._device)


def open_model(path: Path) -> Opened:
    """Read the shape of a Hugging Face folder or a .gguf file; tensors are read later."""
    if path.is_dir():
        raw = json.loads((path / "config.json").read_text())
        config = config_from_hf(raw)
        text = raw.get("text_config", raw)
        source: Source = FolderSource(path, "model.", config.family == "gemma3_text")
        return Opened(config, source, _end_tokens(path, text.get("eos_token_id", raw.get("eos_token_id"))))
    file = GgufFile(path)
    config = config_from_gguf(file.meta, {name: info.shape for name, info in file.tensors.items()})
    ends = (file.meta.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot"))
    return Opened(config, GgufSource(file, config), frozenset(int(e) for e in ends if e is not None))


def _end_tokens(folder: Path, declared: Any) -> frozenset[int]:
    generation = folder / "generation_config.json"
    if generation.exists():
        declared = json.loads(generation.read_text()).get("eos_token_id", declared)
    if declared is None:
        return frozenset()
    return frozenset(declared) if isinstance(declared, list) else frozenset((int(declared),))


class Loader:
    """Puts a source's tensors together as this process needs them."""

    def __init__(
        self, config: ModelConfig, source: Source, device: torch.device, dtype: torch.dtype, ranks: Ranks, fp8: bool
    ) -> None:
        self.config, self.source, self.device, self.dtype = config, source, device, dtype
        self.ranks, self.fp8 = ranks, fp8
        for what, count in (("attention heads", config.heads), ("KV heads", config.kv_heads)):
            if count % ranks.size:
                raise ModelUnsupported(f"{count} {what} do not divide among {ranks.size} processes")

    def load(self) -> Weights:
        embedding = self._tensor("model.embed_tokens.weight")
        layers = [self._layer(f"model.layers.{i}.") for i in range(self.config.layers)]
        if self.config.tied:
            head = Linear(self._cut_vocab(embedding))
        else:
            head = Linear(self._cut_vocab(self._tensor("lm_head.weight")))
        if self.fp8 and not self.config.tied:
            head = quantize_linear(head)
        return Weights(embedding, layers, self._norm("model.norm.weight"), head)

    def _layer(self, at: str) -> Layer:
        sandwich = self.config.sandwich_norms
        mlp_norm = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
        return Layer(
            attention_norm=self._norm(at + "input_layernorm.weight"),
            qkv=self._joined(at + "self_attn.", ("q_proj", "k_proj", "v_proj"), self.config.qkv_bias),
            out=self._linear([self.ranks.cut(self._tensor(at + "self_attn.o_proj.weight"), 1)], None),
            mlp_norm=self._norm(f"{at}{mlp_norm}.weight"),
            gate_up=self._joined(at + "mlp.", ("gate_proj", "up_proj"), False),
            down=self._linear([self.ranks.cut(self._tensor(at + "mlp.down_proj.weight"), 1)], None),
            qk_norms=(self._norm(at + "self_attn.q_norm.weight"), self._norm(at + "self_attn.k_norm.weight"))
            if self.config.qk_norm
            else None,
            after_attention_norm=self._norm(at + "post_attention_layernorm.weight") if sandwich else None,
            after_mlp_norm=self._norm(at + "post_feedforward_layernorm.weight") if sandwich else None,
        )

    def _joined(self, at: str, names: tuple[str, ...], bias: bool) -> Linear:
        """Several products with one input become one; each is cut on its own."""
        weights = [self.ranks.cut(self._tensor(f"{at}{name}.weight"), 0) for name in names]
        biases = [self.ranks.cut(self._tensor(f"{at}{name}.bias"), 0) for name in names] if bias else None
        return self._linear(weights, biases)

    def _linear(self, weights: list[torch.Tensor], biases: list[torch.Tensor] | None) -> Linear:
        linear = Linear(torch.cat(weights), torch.cat(biases) if biases else None)
        return quantize_linear(linear) if self.fp8 else linear

    def _cut_vocab(self, weight: torch.Tensor) -> torch.Tensor:
        """Rows of the head for this process; padded so that they divide evenly."""
        short = -weight.shape[0] % self.ranks.size
        if short:
            weight = torch.cat((weight, weight.new_zeros(short, weight.shape[1])))
        return weight if self.ranks.size == 1 else self.ranks.cut(weight, 0)

    def _tensor(self, name: str) -> torch.Tensor:
        return self.source.read(name).to(device=self.device, dtype=self.dtype)

    def _norm(self, name: str) -> torch.Tensor:
        return self.source.norm(name).to(self.device)


def quantize_linear(linear: Linear) -> Linear:
    """float8_e4m3fn weights with one scale per output."""
    weight, scale = reference.quantize_rows(linear.weight)
    return Linear(weight, linear.bias, scale.T.contiguous())
