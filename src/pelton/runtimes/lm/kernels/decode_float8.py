"""One part of decode attention over a float8 cache: `decode_attention` launches it.

Nothing is converted on the way: Hopper's matrix unit multiplies float8 as it lies in shared memory, if the tile of
keys (or values) is its first operand and both operands are contiguous along what is summed. Keys are; values are
because a float8 cache stores them transposed, [dim, block] in each block. The tile is then 64 keys or `dim` values
high, and the query heads are its columns.

Queries and weights are rounded to float8 twice, the second time what the first lost, in a column of its own beside
the first: together they are as precise as float16, and the columns are there anyway (16 is the smallest count).
"""

# Triton is untyped; its convention is capital names for compile-time arguments.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def decode_part_float8(
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

    dims = tl.arange(0, DIM)
    columns = tl.arange(0, 2 * ROWS)  # head 0, what its rounding lost, head 1, ...
    lost = (columns % 2 == 1)[None, :]
    q_at = row * q_stride + (kv_head * GROUP + columns // 2)[None, :] * DIM + dims[:, None]
    q = tl.load(q_ptr + q_at, mask=(columns // 2 < GROUP)[None, :], other=0.0).to(tl.float32)
    unit = tl.maximum(tl.max(tl.abs(q), 0), 1e-20) / 256.0
    q = q / unit[None, :]
    q = tl.where(lost, q - q.to(tl.float8e4nv).to(tl.float32), q).to(tl.float8e4nv)
    factor = unit * (scale * 1.4426950408889634)  # exp2 instead of exp
    best = tl.full([2 * ROWS], float("-inf"), tl.float32)
    totals = tl.zeros([TILE, 2 * ROWS], tl.float32)  # added up over keys only once, at the end
    acc = tl.zeros([DIM, 2 * ROWS], tl.float32)
    lanes = tl.arange(0, TILE)
    k_at = lanes[:, None] * DIM + dims[None, :]
    v_at = dims[:, None] * BLOCK + lanes[None, :]
    blocks = table_ptr + slot * table_stride
    for at in range(low, high, TILE):
        block = tl.load(blocks + at // BLOCK).to(tl.int64)
        tile = cache_ptr + (block * KV_HEADS + kv_head) * BLOCK * DIM
        k = tl.load(tile + at % BLOCK * DIM + k_at)
        v = tl.load(tile + v_offset + tl.multiple_of(at % BLOCK, TILE) + v_at)
        scores = tl.sum(tl.reshape(tl.dot(k, q), [TILE, ROWS, 2]), 2)
        scores = tl.reshape(tl.join(scores, scores), [TILE, 2 * ROWS]) * factor[None, :]
        seen = at + lanes < high
        if WINDOW > 0:
            seen = seen & (at + lanes >= keys - WINDOW)
        scores = tl.where(seen[:, None], scores, -1.0e30)
        peak = tl.maximum(best, tl.max(scores, 0))
        fade = tl.exp2(best - peak)
        weights = tl.exp2(scores - (peak - 8.0)[None, :])  # up to 256: small ones keep their digits in float8
        totals = totals * fade[None, :] + weights
        rounded = weights.to(tl.float8e4nv).to(tl.float32)
        weights = tl.where(lost, weights - rounded, weights).to(tl.float8e4nv)
        acc = tl.dot(v, weights, acc * fade[None, :])
        best = peak

    total, _ = tl.split(tl.reshape(tl.sum(totals, 0), [ROWS, 2]))
    best, _ = tl.split(tl.reshape(best, [ROWS, 2]))
    out = tl.sum(tl.reshape(acc, [DIM, ROWS, 2]), 2) / tl.where(total == 0.0, 1.0, total)[None, :]
    heads = tl.arange(0, ROWS)
    live = heads < GROUP
    head = kv_head * GROUP + heads
    if SPLITS == 1:
        at_out = (row * HEADS + head)[None, :] * DIM + dims[:, None]
        tl.store(out_ptr + at_out, out.to(out_ptr.dtype.element_ty), mask=live[None, :])
    else:
        line = (row * HEADS + head) * SPLITS + split
        tl.store(part_ptr + line[None, :] * DIM + dims[:, None], out, mask=live[None, :])
        lse = tl.where(total == 0.0, float("-inf"), best - 8.0 + tl.log2(tl.where(total == 0.0, 1.0, total)))
        tl.store(lse_ptr + line, lse, mask=live)
