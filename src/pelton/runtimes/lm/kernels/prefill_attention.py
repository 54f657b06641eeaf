"""Causal attention of many new tokens per sequence over a paged KV cache that already holds them.

The new tokens of all sequences are packed in one row; a list of tiles says which sequence and which of its tokens
each program handles, so short and long prompts share one launch without padding.
"""

# Triton is untyped; its convention is capital names for compile-time arguments.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803, N806

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["sequences"])
def _prefill(
    q_ptr, cache_ptr, table_ptr, out_ptr, tile_ptr, packed_ptr,
    scale, v_offset, q_stride, table_stride, sequences,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    tile = tl.program_id(1)
    sequence = tl.load(tile_ptr + 2 * tile)
    offset = tl.load(tile_ptr + 2 * tile + 1)  # of the tile's first token among the sequence's new tokens
    begin = tl.load(packed_ptr + sequence).to(tl.int64)
    count = tl.load(packed_ptr + sequences + sequence)
    start = tl.load(packed_ptr + 2 * sequences + sequence)  # position of the sequence's first new token
    slot = tl.load(packed_ptr + 3 * sequences + sequence).to(tl.int64)
    kv_head = head // (HEADS // KV_HEADS)

    rows = offset + tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    lanes = tl.arange(0, TILE)
    k_at = lanes[None, :] * DIM + dims[:, None]
    V_STEP: tl.constexpr = 1 if cache_ptr.dtype.element_ty == tl.float8e4nv else DIM
    if V_STEP == 1:  # values lie transposed: see reference.values_of
        v_at = dims[None, :] * BLOCK + lanes[:, None]
    else:
        v_at = lanes[:, None] * DIM + dims[None, :]
    live = rows < count
    q = tl.load(q_ptr + (begin + rows)[:, None] * q_stride + head * DIM + dims[None, :], mask=live[:, None], other=0.0)
    if cache_ptr.dtype.element_ty == tl.float8e4nv:
        q = q.to(tl.float16)
    position = start + rows
    high = tl.minimum(start + offset + ROWS, start + count)
    low = 0
    if WINDOW > 0:
        low = tl.maximum(start + offset - WINDOW + 1, 0) // TILE * TILE
    best = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    unmasked = low
    if WINDOW == 0:
        unmasked = (start + offset + 1) // TILE * TILE  # keys below are seen by every row of the tile
        for at in range(low, unmasked, TILE):
            block = tl.load(table_ptr + slot * table_stride + at // BLOCK).to(tl.int64)
            tile_at = cache_ptr + (block * KV_HEADS + kv_head) * BLOCK * DIM
            k = tl.load(tile_at + at % BLOCK * DIM + k_at).to(q.dtype)
            v = tl.load(tile_at + v_offset + tl.multiple_of(at % BLOCK, TILE) * V_STEP + v_at).to(q.dtype)
            scores = tl.dot(q, k) * (scale * 1.4426950408889634)
            peak = tl.maximum(best, tl.max(scores, 1))
            fade = tl.exp2(best - peak)
            weights = tl.exp2(scores - peak[:, None])
            total = total * fade + tl.sum(weights, 1)
            acc = tl.dot(weights.to(q.dtype), v, acc * fade[:, None])
            best = peak
    for at in range(unmasked, high, TILE):
        block = tl.load(table_ptr + slot * table_stride + at // BLOCK).to(tl.int64)
        tile_at = cache_ptr + (block * KV_HEADS + kv_head) * BLOCK * DIM
        k = tl.load(tile_at + at % BLOCK * DIM + k_at).to(q.dtype)
        v = tl.load(tile_at + v_offset + tl.multiple_of(at % BLOCK, TILE) * V_STEP + v_at).to(q.dtype)
        seen = (at + lanes)[None, :] <= position[:, None]
        if WINDOW > 0:
            seen = seen & ((at + lanes)[None, :] > position[:, None] - WINDOW)
        scores = tl.where(seen, tl.dot(q, k) * (scale * 1.4426950408889634), -1.0e30)
        peak = tl.maximum(best, tl.max(scores, 1))
        fade = tl.exp2(best - peak)
        weights = tl.where(seen, tl.exp2(scores - peak[:, None]), 0.0)
        total = total * fade + tl.sum(weights, 1)
        acc = tl.dot(weights.to(q.dtype), v, acc * fade[:, None])
        best = peak
    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    at_out = ((begin + rows) * HEADS + head)[:, None] * DIM + dims[None, :]
    tl.store(out_ptr + at_out, out.to(out_ptr.dtype.element_ty), mask=live[:, None])


@dataclass(frozen=True, slots=True)
class PrefillShape:
    """How the prefill kernel is cut: found by measurement (benchmarks/gpu)."""

    rows: int = 64
    tile: int = 64
    warps: int = 4
    stages: int = 3


def prefill_attention(
    q: torch.Tensor,
    out: torch.Tensor,
    cache: torch.Tensor,
    table: torch.Tensor,
    tiles: torch.Tensor,
    packed: torch.Tensor,
    scale: float,
    window: int,
    shape: PrefillShape,
) -> None:
    """Attend from packed new tokens to everything before them, into `out`.

    q, out [tokens, heads, dim]; cache [2, blocks, kv_heads, block, dim]; table [slots, blocks per slot] int32;
    tiles [n, 2] int32: (sequence, its first token in the tile), made for tiles of `shape.rows` tokens;
    packed [4, sequences] int32: first row in q, number of new tokens, position of the first, slot. Memory of the
    cache that was never written must be finite (zeros).
    """
    _, heads, dim = q.shape
    _, _, kv_heads, block, _ = cache.shape
    _prefill[(heads, tiles.shape[0])](
        q, cache, table, out, tiles, packed,
        scale, cache.stride(0), q.stride(0), table.stride(0), packed.shape[1],
        HEADS=heads, KV_HEADS=kv_heads, DIM=dim,
        BLOCK=block, ROWS=shape.rows, TILE=min(shape.tile, block), WINDOW=window,
        num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
