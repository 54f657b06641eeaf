"""What the Triton kernels compute, in plain torch: the CPU path, and what tests compare the kernels with."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [rows, size] as float8_e4m3fn with one float32 scale per row: x ~ result * scale."""
    values = x.float()
    scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-6) / FP8_MAX
    return (values / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None, quantize: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if residual is not None:
        residual.copy_(x + residual)
        x = residual
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    y = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps) * weight
    return quantize_rows(y) if quantize else (y.to(x.dtype), None)


def gated(x: torch.Tensor, gelu: bool, quantize: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
    gate, up = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, -1)
    y = (F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)) * up
    return quantize_rows(y) if quantize else (y.to(x.dtype), None)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x [tokens, heads, dim] by cos, sin [tokens, dim / 2]; halves, not pairs."""
    a, b = x.chunk(2, -1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def values_of(cache: torch.Tensor) -> torch.Tensor:
    """The values [blocks, kv_heads, block, dim] of one layer's cache, as a view.

    A float8 cache holds the values of a block and head as [dim, block]: Hopper's matrix unit multiplies float8 only
    as it lies, and attention sums values over tokens.
    """
    if cache.dtype != FP8:
        return cache[1]
    _, blocks, kv_heads, block, dim = cache.shape
    return cache[1].view(blocks, kv_heads, dim, block).transpose(-1, -2)


def rope_and_store(
    qkv: torch.Tensor,
    cache: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    cos_sin: tuple[torch.Tensor, torch.Tensor],
    table: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    heads: int,
    eps: float,
) -> torch.Tensor:
    _, _, kv_heads, block, dim = cache.shape
    values = qkv.to(torch.promote_types(qkv.dtype, torch.float32)).view(qkv.shape[0], heads + 2 * kv_heads, dim)
    q, k, v = values[:, :heads], values[:, heads : heads + kv_heads], values[:, heads + kv_heads :]
    if norms is not None:
        q, _ = rms_norm(q, norms[0], eps)
        k, _ = rms_norm(k, norms[1], eps)
    at = positions.clamp(min=0).long()
    cos, sin = cos_sin[0][at], cos_sin[1][at]
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    live = positions >= 0
    blocks = table[slots.long(), at // block].long()[live]
    where = (at % block)[live]
    for target, new in ((cache[0], k), (values_of(cache), v)):
        if cache.dtype == FP8:
            new = new.clamp(-FP8_MAX, FP8_MAX)
        target[blocks, :, where] = new[live].to(cache.dtype)
    return q.to(qkv.dtype)


def gather_kv(
    cache: torch.Tensor, table: torch.Tensor, slot: int, length: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `length` keys and values of one slot, [kv_heads, length, dim] each."""
    block = cache.shape[3]
    blocks = table[slot, : -(-length // block)].long()
    keys, values = (
        kv[blocks].to(dtype).transpose(0, 1).flatten(1, 2)[:, :length] for kv in (cache[0], values_of(cache))
    )
    return keys, values


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, scale: float, window: int
) -> torch.Tensor:
    """q [n, heads, dim] at positions start.. attends to keys, values [kv_heads, start + n, dim], causally."""
    rows = torch.arange(start, start + q.shape[0], device=q.device)[:, None]
    columns = torch.arange(keys.shape[1], device=q.device)[None, :]
    seen = columns <= rows
    if window:
        seen &= columns > rows - window
    group = q.shape[1] // keys.shape[0]
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1),
        keys.repeat_interleave(group, 0),
        values.repeat_interleave(group, 0),
        attn_mask=seen,
        scale=scale,
    )
    return out.transpose(0, 1)


def decode_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    table: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    out = torch.zeros_like(q)
    for row, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
        if position >= 0:
            keys, values = gather_kv(cache, table, slot, position + 1, q.dtype)
            out[row] = attend(q[row : row + 1], keys, values, position, scale, window)[0]
    return out


def prefill_attention(
    q: torch.Tensor, cache: torch.Tensor, table: torch.Tensor, packed: torch.Tensor, scale: float, window: int
) -> torch.Tensor:
    out = torch.zeros_like(q)
    for begin, count, start, slot in packed.T.tolist():
        keys, values = gather_kv(cache, table, slot, start + count, q.dtype)
        out[begin : begin + count] = attend(q[begin : begin + count], keys, values, start, scale, window)
    return out


def embed(
    weights: torch.Tensor, ids: torch.Tensor, slots: torch.Tensor, last: torch.Tensor, scale: float
) -> torch.Tensor:
    tokens = torch.where(ids < 0, last[slots.long()], ids)
    return F.embedding(tokens, weights) * scale


def greedy_and_remember(logits: torch.Tensor, last: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    tokens = logits.argmax(-1).to(torch.int32)
    last[slots.long()] = tokens
    return tokens
