"""Attention of one new token per row over a paged KV cache, split along the keys.

Memory bound: each key and value is read once, so the speed is that of the memory if enough loads are in flight.
The query heads that share a KV head are one tile (padded to 16 rows for the matrix unit). A row's keys are cut
into SPLITS equal parts so that few or uneven rows still fill the chip; a second kernel combines the parts. A float8
cache has a kernel of its own (`decode_float8`).
"""

# Triton is untyped; its convention is capital names for compile-time arguments.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from pelton.runtimes.lm.kernels.decode_float8 import decode_part_float8
from pelton.runtimes.lm.kernels.launch import chained


@triton.jit
def _decode_part(
    q_ptr, cache_ptr, table_ptr, slot_ptr, position_ptr, out_ptr, part_ptr, lse_ptr,
    scale, v_offset, q_stride, table_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)  # first: the heads of a row run side by side, and their keys lie side by side
    row = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    keys = tl.load(position_ptr + row) + 1  # position -1 marks a padding row: no keys
    slot = tl.load(slot_ptr + row).to(tl.int64)
    if CHAINED:
        gdc_wait()
        gdc_launch_dependents()
    first = 0
    if WINDOW > 0:
        first = tl.maximum(keys - WINDOW, 0) // TILE * TILE
    part = tl.cdiv(tl.cdiv(keys - first, SPLITS), TILE) * TILE
    low = first + split * part
    high = tl.minimum(low + part, keys)

    heads = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    q_at = row * q_stride + (kv_head * GROUP + heads)[:, None] * DIM + dims[None, :]
    q = tl.load(q_ptr + q_at, mask=heads[:, None] < GROUP, other=0.0)
    factor = scale * 1.4426950408889634  # exp2 instead of exp
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    lanes = tl.arange(0, TILE)
    k_at = lanes[None, :] * DIM + dims[:, None]
    v_at = lanes[:, None] * DIM + dims[None, :]
    blocks = table_ptr + slot * table_stride
    for at in range(low, high, TILE):
        block = tl.load(blocks + at // BLOCK).to(tl.int64)
        tile = cache_ptr + ((block * KV_HEADS + kv_head) * BLOCK + at % BLOCK) * DIM
        k = tl.load(tile + k_at)
        v = tl.load(tile + v_offset + v_at)
        seen = at + lanes < high
        if WINDOW > 0:
            seen = seen & (at + lanes >= keys - WINDOW)
        scores = tl.where(seen[None, :], tl.dot(q, k), -1.0e30)
        peak = tl.maximum(best, tl.max(scores, 1))
        fade = tl.exp2((best - peak) * factor)
        weights = tl.exp2(scores * factor - (peak * factor)[:, None])
        total = total * fade + tl.sum(weights, 1)
        acc = tl.dot(weights.to(q.dtype), v, acc * fade[:, None])
        best = peak

    live = heads < GROUP
    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    head = kv_head * GROUP + heads
    if SPLITS == 1:
        at_out = (row * HEADS + head)[:, None] * DIM + dims[None, :]
        tl.store(out_ptr + at_out, out.to(out_ptr.dtype.element_ty), mask=live[:, None])
    else:
        line = (row * HEADS + head) * SPLITS + split
        tl.store(part_ptr + line[:, None] * DIM + dims[None, :], out, mask=live[:, None])
        lse = tl.where(total == 0.0, float("-inf"), best * factor + tl.log2(tl.where(total == 0.0, 1.0, total)))
        tl.store(lse_ptr + line, lse, mask=live)


@triton.jit
def _combine(
    part_ptr, lse_ptr, out_ptr,
    SPLITS: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    if CHAINED:
        gdc_wait()
        gdc_launch_dependents()
    line = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, PADDED)
    dims = tl.arange(0, DIM)
    lse = tl.load(lse_ptr + line * SPLITS + splits, mask=splits < SPLITS, other=float("-inf"))
    peak = tl.max(lse, 0)
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    weight = tl.exp2(lse - peak)
    total = tl.sum(weight, 0)
    parts = tl.load(
        part_ptr + (line * SPLITS + splits)[:, None] * DIM + dims[None, :], mask=(splits < SPLITS)[:, None], other=0.0
    )
    out = tl.sum(parts * weight[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + line * DIM + dims, out.to(out_ptr.dtype.element_ty))


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """How the decode kernel is cut: found by measurement (benchmarks/gpu)."""

    tile: int = 64
    warps: int = 2
    stages: int = 5
    programs: int = 132 * 4  # how many programs fill the chip; more splits than that do not pay
    max_splits: int = 32

    def splits(self, rows: int, kv_heads: int) -> int:
        wanted = -(-self.programs // max(1, rows * kv_heads))
        return 1 << min(wanted - 1, self.max_splits - 1).bit_length() if wanted > 1 else 1


FLOAT8_SHAPE = DecodeShape(tile=64, warps=4, stages=5)


def decode_attention(
    q: torch.Tensor,
    out: torch.Tensor,
    cache: torch.Tensor,
    table: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int,
    shape: DecodeShape,
) -> None:
    """Attend from one token per row, into `out`.

    q, out [rows, heads, dim]; cache [2, blocks, kv_heads, block, dim] of one layer (float8: values transposed, as
    `reference.values_of` says); table [slots, blocks per slot] int32; slots [rows] and positions [rows] int32
    (position -1: the row is padding, its output is 0). Memory of the cache that was never written must be finite
    (zeros).
    """
    rows, heads, dim = q.shape
    _, _, kv_heads, block, _ = cache.shape
    splits, group = shape.splits(rows, kv_heads), triton.next_power_of_2(heads // kv_heads)
    float8 = cache.dtype == torch.float8_e4m3fn
    kernel = decode_part_float8 if float8 else _decode_part
    parts = torch.empty((rows, heads, splits, dim) if splits > 1 else (1,), dtype=torch.float32, device=q.device)
    lse = torch.empty((rows, heads, splits) if splits > 1 else (1,), dtype=torch.float32, device=q.device)
    kernel[(kv_heads, rows, splits)](
        q, cache, table, slots, positions, out, parts, lse,
        scale, cache.stride(0), q.stride(0), table.stride(0),
        HEADS=heads, KV_HEADS=kv_heads, GROUP=heads // kv_heads,
        ROWS=max(8 if float8 else 16, group), DIM=dim, BLOCK=block, TILE=min(shape.tile, block), SPLITS=splits, WINDOW=window,
        num_warps=shape.warps, num_stages=shape.stages, **chained(q),
    )  # fmt: skip
    if splits > 1:
        _combine[(rows * heads,)](
            parts, lse, out, SPLITS=splits, PADDED=triton.next_power_of_2(splits), DIM=dim, num_warps=2, **chained(q)
        )
