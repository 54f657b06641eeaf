"""`x @ weight.T` for few rows, where reading the weights is all the work.

Library products choose tiles for many rows; for few rows this kernel keeps more bytes in flight. Each program owns
a few outputs and walks along the whole inner dimension. It pays for a handful of rows; float8 has a kernel of its
own (`float8_linear`).
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

from pelton.runtimes.lm.kernels.launch import chained


@triton.jit(do_not_specialize=["rows"])
def _thin(
    x_ptr, w_ptr, bias_ptr, out_ptr, rows, outs, size,
    ROWS: tl.constexpr, TN: tl.constexpr, TK: tl.constexpr, BIAS: tl.constexpr,
    AHEAD: tl.constexpr, LINE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, ROWS)
    n = tl.program_id(0) * TN + tl.arange(0, TN)
    k = tl.arange(0, TK)
    n_in = n < outs
    acc = tl.zeros([ROWS, TN], tl.float32)
    w_at = w_ptr + n[:, None].to(tl.int64) * size + k[None, :]
    x_at = x_ptr + row[:, None] * size + k[None, :]
    if CHAINED:
        # Weights do not depend on the kernel before: have them on their way to the L2 while it still runs.
        if AHEAD > 0:
            lines = w_ptr + n[:, None].to(tl.int64) * size + (tl.arange(0, AHEAD) * LINE)[None, :]
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1
            )
        gdc_wait()
        gdc_launch_dependents()
    for at in range(0, size, TK):
        inside = at + k < size
        w = tl.load(w_at, mask=n_in[:, None] & inside[None, :], other=0.0)
        x = tl.load(x_at, mask=(row < rows)[:, None] & inside[None, :], other=0.0)
        acc = tl.dot(x, tl.trans(w), acc)
        w_at += TK
        x_at += TK
    if BIAS:
        acc += tl.load(bias_ptr + n, mask=n_in, other=0.0).to(tl.float32)[None, :]
    out_at = out_ptr + row[:, None] * outs + n[None, :]
    tl.store(out_at, acc.to(out_ptr.dtype.element_ty), mask=(row < rows)[:, None] & n_in[None, :])


@dataclass(frozen=True, slots=True)
class ThinShape:
    """How the kernel is cut: found by measurement (benchmarks/gpu). `depth` and `ahead` in bytes of a weight row."""

    outs: int = 32
    depth: int = 256
    warps: int = 4
    stages: int = 6
    ahead: int = 1024  # fetched into the L2 before the kernel's input is ready


def thin_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shape: ThinShape) -> torch.Tensor:
    """x [rows <= 16, size] times weight [outs, size], both contiguous. Returns [rows, outs]."""
    rows, size = x.shape
    outs = weight.shape[0]
    out = torch.empty((rows, outs), dtype=x.dtype, device=x.device)
    element = weight.element_size()
    ahead = min(shape.ahead, size * element)
    ahead = triton.next_power_of_2(ahead // 128 + 1) // 2 if outs % shape.outs == 0 else 0
    _thin[(triton.cdiv(outs, shape.outs),)](
        x, weight, x if bias is None else bias, out, rows, outs, size,
        ROWS=max(16, triton.next_power_of_2(rows)), TN=shape.outs, TK=shape.depth // element, BIAS=bias is not None,
        AHEAD=ahead, LINE=128 // element, num_warps=shape.warps, num_stages=shape.stages, **chained(x),
    )  # fmt: skip
    return out
