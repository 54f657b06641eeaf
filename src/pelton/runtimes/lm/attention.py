"""Attention over the paged KV cache: one interface, chosen once, at start.

`torch` runs anywhere and is the reference; `triton` is our own kernels; `flash` is FlashAttention 3, where its
package is installed (Hopper GPUs), for prefill, and for decode whichever measured faster.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from pelton.runtimes.lm import reference

AttentionKind = Literal["auto", "torch", "triton", "flash", "flash-decode"]


@dataclass(slots=True)
class Batch:
    """One step on the device. The first `decodes` of the tokens are single rows, the rest packed sequences.

    ids, positions, slots [tokens] int32 (id -1: the token that the last step left in the slot; position -1:
    padding); packed [4, sequences] and tiles [n, 2] int32 as in `kernels.prefill_attention`, None without
    prefill; logit_rows [rows] int32, None for all; sample_slots [rows] int32.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    sample_slots: torch.Tensor
    decodes: int
    packed: torch.Tensor | None = None
    tiles: torch.Tensor | None = None
    logit_rows: torch.Tensor | None = None
    longest_new: int = 0  # tokens of the longest packed sequence


class Attention(Protocol):
    """Attends from every token of a batch to the cache that already holds its keys and values."""

    @property
    def tile_rows(self) -> int:
        """Queries per prefill tile that `Batch.tiles` must be made for."""
        ...

    def prepare(self, batch: Batch, table: torch.Tensor) -> None:
        """Compute once per step what all layers share."""
        ...

    def __call__(
        self, q: torch.Tensor, cache: torch.Tensor, batch: Batch, table: torch.Tensor, scale: float, window: int
    ) -> torch.Tensor:
        """q [tokens, heads, dim]; cache [2, blocks, kv_heads, block, dim] (float8: values transposed, see
        `reference.values_of`). Returns [tokens, heads, dim]."""
        ...


class TorchAttention:
    """Plain torch, one sequence at a time."""

    tile_rows = 64

    def prepare(self, batch: Batch, table: torch.Tensor) -> None:
        return None

    def __call__(
        self, q: torch.Tensor, cache: torch.Tensor, batch: Batch, table: torch.Tensor, scale: float, window: int
    ) -> torch.Tensor:
        d = batch.decodes
        parts = []
        if d:
            parts.append(
                reference.decode_attention(q[:d], cache, table, batch.slots[:d], batch.positions[:d], scale, window)
            )
        if batch.packed is not None:
            packed = batch.packed - torch.tensor([[d], [0], [0], [0]], dtype=torch.int32, device=q.device)
            parts.append(reference.prefill_attention(q[d:], cache, table, packed, scale, window))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class TritonAttention:
    """Our own kernels."""

    def __init__(self) -> None:
        from pelton.runtimes.lm.kernels import decode_attention, prefill_attention  # Triton is not everywhere

        self._decode, self._prefill = decode_attention, prefill_attention
        self.decode_shape = decode_attention.DecodeShape()
        self.decode_shape_float8 = decode_attention.FLOAT8_SHAPE
        self.prefill_shape = prefill_attention.PrefillShape()

    @property
    def tile_rows(self) -> int:
        return self.prefill_shape.rows

    def prepare(self, batch: Batch, table: torch.Tensor) -> None:
        return None

    def __call__(
        self, q: torch.Tensor, cache: torch.Tensor, batch: Batch, table: torch.Tensor, scale: float, window: int
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        if batch.decodes:
            self.decode(q, out, cache, batch, table, scale, window)
        if batch.packed is not None and batch.tiles is not None:
            self._prefill.prefill_attention(
                q, out, cache, table, batch.tiles, batch.packed, scale, window, self.prefill_shape
            )
        return out

    def decode(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        cache: torch.Tensor,
        batch: Batch,
        table: torch.Tensor,
        scale: float,
        window: int,
    ) -> None:
        d = batch.decodes
        shape = self.decode_shape_float8 if cache.dtype == reference.FP8 else self.decode_shape
        self._decode.decode_attention(
            q[:d], out[:d], cache, table, batch.slots[:d], batch.positions[:d], scale, window, shape
        )


class FlashAttention:
    """FlashAttention 3 for prefill; decode by our kernel, or by FlashAttention with `flash_decode`."""

    tile_rows = 128

    def __init__(self, flash_decode: bool = False) -> None:
        self._flash: Any = importlib.import_module("flash_attn_interface")
        self.own = TritonAttention()
        self._flash_decode = flash_decode
        self._decode_table: torch.Tensor | None = None
        self._decode_lengths: torch.Tensor | None = None
        self._prefill_table: torch.Tensor | None = None
        self._prefill_lengths: torch.Tensor | None = None
        self._starts: torch.Tensor | None = None

    def prepare(self, batch: Batch, table: torch.Tensor) -> None:
        d = batch.decodes
        if d and self._flash_decode:
            self._decode_table = table[batch.slots[:d].long()]
            self._decode_lengths = batch.positions[:d] + 1
        if batch.packed is not None:
            begin, count, start, slot = batch.packed
            self._starts = torch.cat((begin - d, (begin[-1:] + count[-1:]) - d))
            self._prefill_table = table[slot.long()]
            self._prefill_lengths = start + count

    def __call__(
        self, q: torch.Tensor, cache: torch.Tensor, batch: Batch, table: torch.Tensor, scale: float, window: int
    ) -> torch.Tensor:
        d = batch.decodes
        keys, values = cache[0].transpose(1, 2), cache[1].transpose(1, 2)
        sides = (window - 1, 0) if window else (-1, -1)
        if batch.packed is None and self._flash_decode:
            return self._decode(q, keys, values, scale, sides)
        if batch.packed is None:
            out = torch.empty_like(q)
            self.own.decode(q, out, cache, batch, table, scale, window)
            return out
        new: torch.Tensor = self._flash.flash_attn_with_kvcache(
            q[d:],
            keys,
            values,
            cache_seqlens=self._prefill_lengths,
            page_table=self._prefill_table,
            cu_seqlens_q=self._starts,
            max_seqlen_q=batch.longest_new,
            softmax_scale=scale,
            causal=True,
            window_size=sides,
        )
        if not d:
            return new
        out = torch.empty_like(q)
        out[d:] = new
        if self._flash_decode:
            out[:d] = self._decode(q[:d], keys, values, scale, sides)
        else:
            self.own.decode(q, out, cache, batch, table, scale, window)
        return out

    def _decode(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, sides: tuple[int, int]
    ) -> torch.Tensor:
        out: torch.Tensor = self._flash.flash_attn_with_kvcache(
            q[:, None],
            keys,
            values,
            cache_seqlens=self._decode_lengths,
            page_table=self._decode_table,
            softmax_scale=scale,
            causal=True,
            window_size=sides,
        )
        return out[:, 0]


def flash_available() -> bool:
    return importlib.util.find_spec("flash_attn_interface") is not None and (
        torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    )


def choose_attention(kind: AttentionKind, device: torch.device, kv_dtype: torch.dtype) -> Attention:
    """`auto`: FlashAttention 3 where it is installed and the cache is not float8, else our own kernels."""
    if kind == "auto":
        if device.type != "cuda":
            kind = "torch"
        else:
            kind = "flash" if flash_available() and kv_dtype != reference.FP8 else "triton"
    if kind == "torch":
        return TorchAttention()
    if kind == "triton":
        return TritonAttention()
    return FlashAttention(flash_decode=kind == "flash-decode")
