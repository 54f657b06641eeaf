"""The transformer: Llama, Mistral, Qwen 2 and 3, SmolLM2, Gemma 3, as one function over weights.

Weights are already cut for this process when tensor parallel: heads, the MLP's inner dimension and the vocabulary
are divided; two sums per layer put the parts together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pelton.runtimes.lm.attention import Attention, Batch
from pelton.runtimes.lm.config import ModelConfig, Rope
from pelton.runtimes.lm.ops import Linear, Norms, Ops, Quantized
from pelton.runtimes.lm.parallel import Ranks
from pelton.runtimes.lm.product import Product, finished


@dataclass(slots=True)
class Layer:
    """Norm weights are float32 and multiply as they are (Gemma's "1 + w" is added when loading)."""

    attention_norm: torch.Tensor
    qkv: Linear
    out: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear
    qk_norms: Norms | None = None
    after_attention_norm: torch.Tensor | None = None
    after_mlp_norm: torch.Tensor | None = None


@dataclass(slots=True)
class Weights:
    embedding: torch.Tensor
    layers: list[Layer]
    final_norm: torch.Tensor
    head: Linear

    def bytes(self) -> int:
        """Memory of all tensors; a head tied to the embedding counts once."""
        linears = [self.head, *(m for x in self.layers for m in (x.qkv, x.out, x.gate_up, x.down))]
        tensors = {t.data_ptr(): t.nbytes for t in (self.embedding, *(m.weight for m in linears))}
        return sum(tensors.values())


def rope_tables(rope: Rope, dim: int, positions: int, device: torch.device) -> Norms:
    """cos and sin [positions, dim / 2] in float32, computed in float64."""
    inverse = rope.theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if rope.kind == "linear":
        inverse = inverse / rope.factor
    elif rope.kind == "llama3":
        inverse = _llama3_frequencies(inverse, rope)
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), inverse)
    return angles.cos().float().to(device), angles.sin().float().to(device)


def _llama3_frequencies(inverse: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    wavelength = 2 * math.pi / inverse
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = ((rope.original_context / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * inverse / rope.factor + smooth * inverse


class Model:
    """Weights, how to compute with them, and nothing that changes from step to step."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        ops: Ops,
        attention: Attention,
        ranks: Ranks,
        max_positions: int,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.weights, self.ops, self.attention, self.ranks = config, weights, ops, attention, ranks
        self.dtype = dtype
        device = weights.embedding.device
        self._rope = rope_tables(config.rope, config.head_dim, max_positions, device)
        local = config.local_rope
        self._local_rope = rope_tables(local, config.head_dim, max_positions, device) if local else self._rope
        self._heads = config.heads // ranks.size

    def forward(self, batch: Batch, cache: torch.Tensor, table: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocab] of `batch.logit_rows` (all tokens if None); writes the cache.

        cache [layers, 2, blocks, kv_heads, block, dim]; table [slots, blocks per slot] int32; last [slots] int32.
        """
        config, ops, weights = self.config, self.ops, self.weights
        self.attention.prepare(batch, table)
        residual = ops.embed(weights.embedding, batch.ids, batch.slots, last, config.embed_scale)
        first = weights.layers[0]
        x = ops.norm(finished(residual), first.attention_norm, config.norm_eps, None, first.qkv.fp8)
        for index, layer in enumerate(weights.layers):
            out = self._attend(x, index, layer, batch, cache[index], table)
            if layer.after_attention_norm is not None:
                out = finished(ops.norm(out, layer.after_attention_norm, config.norm_eps, None, False).values)
            x = ops.norm(out, layer.mlp_norm, config.norm_eps, residual, layer.gate_up.fp8)
            out = self._mlp(x, layer)
            if layer.after_mlp_norm is not None:
                out = finished(ops.norm(out, layer.after_mlp_norm, config.norm_eps, None, False).values)
            if index + 1 < config.layers:
                following = weights.layers[index + 1]
                x = ops.norm(out, following.attention_norm, config.norm_eps, residual, following.qkv.fp8)
        if batch.logit_rows is not None:
            out, residual = out.select(batch.logit_rows), residual.index_select(0, batch.logit_rows)
        x = ops.norm(out, weights.final_norm, config.norm_eps, residual, weights.head.fp8)
        logits = ops.linear(x, weights.head, self.dtype, whole=True).values
        return self.ranks.gather(logits)[:, : config.vocab]

    def _attend(
        self, x: Quantized, index: int, layer: Layer, batch: Batch, cache: torch.Tensor, table: torch.Tensor
    ) -> Product:
        config = self.config
        window = config.window(index)
        q = self.ops.rope_and_store(
            self.ops.linear(x, layer.qkv, self.dtype),
            cache,
            layer.qk_norms,
            self._local_rope if window else self._rope,
            table,
            batch.slots,
            batch.positions,
            self._heads,
            config.norm_eps,
        )
        out = self.attention(q, cache, batch, table, config.scale, window).flatten(1)
        mixed = self.ops.quantize(out) if layer.out.fp8 else Quantized(out)
        return self._summed(mixed, layer.out)

    def _mlp(self, x: Quantized, layer: Layer) -> Product:
        gelu = self.config.gated == "gelu_tanh"
        inner = self.ops.gated(self.ops.linear(x, layer.gate_up, self.dtype), gelu, layer.down.fp8)
        return self._summed(inner, layer.down)

    def _summed(self, x: Quantized, linear: Linear) -> Product:
        """A product whose inner dimension is divided among the processes."""
        if self.ranks.size == 1:
            return self.ops.linear(x, linear, self.dtype)
        return finished(self.ranks.sum(self.ops.linear(x, linear, self.dtype, whole=True).values))
