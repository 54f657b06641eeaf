"""`x @ weight.T` of float8 operands for up to 64 rows, where reading the weights is nearly all the work.

The weights are the first operand of the matrix unit (its tiles are 64 high: with the few rows of x there, most of it
would be padding) and go there from shared memory as they are. Where the outputs alone make too few programs to fill
the chip, the inner dimension is cut and the next kernel adds the parts.
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
from pelton.runtimes.lm.product import Product

MAX_ROWS = 64


@triton.jit(do_not_specialize=["rows", "parts"])
def _linear(
    x_ptr, w_ptr, bias_ptr, out_ptr, x_scale_ptr, w_scale_ptr, rows, outs, size, parts,
    ROWS: tl.constexpr, TN: tl.constexpr, TK: tl.constexpr, BIAS: tl.constexpr, EVEN: tl.constexpr,
    AHEAD: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * TN + tl.arange(0, TN)
    part = tl.program_id(1)
    span = tl.cdiv(tl.cdiv(size, TK), parts) * TK
    low = part * span
    high = tl.minimum(low + span, size)
    row = tl.arange(0, ROWS)
    k = tl.arange(0, TK)
    w_at = w_ptr + n[:, None].to(tl.int64) * size + (low + k)[None, :]
    x_at = x_ptr + row[None, :] * size + (low + k)[:, None]
    acc = tl.zeros([TN, ROWS], tl.float32)
    if CHAINED:
        # Weights do not depend on the kernel before: have them on their way to the L2 while it still runs.
        if EVEN:
            lines = w_ptr + n[:, None].to(tl.int64) * size + (low + tl.arange(0, AHEAD) * 128)[None, :]
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1
            )
        gdc_wait()
        gdc_launch_dependents()
    for at in range(low, high, TK):
        if EVEN:
            w = tl.load(w_at)
            x = tl.load(x_at, mask=(row < rows)[None, :], other=0.0)
        else:
            inside = at + k < size
            w = tl.load(w_at, mask=(n < outs)[:, None] & inside[None, :], other=0.0)
            x = tl.load(x_at, mask=(row < rows)[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(w, x, acc)
        w_at += TK
        x_at += TK
    n_in = n < outs
    w_scale = tl.load(w_scale_ptr + n, mask=n_in, other=0.0)
    x_scale = tl.load(x_scale_ptr + row, mask=row < rows, other=0.0)
    acc = acc * x_scale[None, :] * w_scale[:, None]
    if BIAS:
        acc += tl.load(bias_ptr + n, mask=n_in, other=0.0).to(tl.float32)[:, None]
    out_at = out_ptr + part.to(tl.int64) * rows * outs + row[None, :] * outs + n[:, None]
    tl.store(out_at, acc.to(out_ptr.dtype.element_ty), mask=(row < rows)[None, :] & n_in[:, None])


@dataclass(frozen=True, slots=True)
class Float8Shape:
    """How the kernel is cut: found by measurement (benchmarks/gpu). `depth` is of the inner dimension, per round."""

    outs: int = 64
    depth: int = 256
    warps: int = 4
    stages: int = 6
    programs: int = 132  # with fewer, the inner dimension is cut
    max_parts: int = 4

    def parts(self, outs: int, size: int) -> int:
        tiles = -(-outs // self.outs)
        return max(1, min(self.max_parts, self.programs // tiles, size // (4 * self.depth)))


def float8_linear(
    x: tuple[torch.Tensor, torch.Tensor],
    weight: tuple[torch.Tensor, torch.Tensor],
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    shape: Float8Shape,
    whole: bool = False,
) -> Product:
    """x [rows <= 64, size] times weight [outs, size], each float8_e4m3fn, contiguous, with its scale ([rows, 1] and
    [1, outs]). `whole`: the result is one finished tensor; so it is with a bias."""
    (values, x_scale), (matrix, w_scale) = x, weight
    rows, size = values.shape
    outs = matrix.shape[0]
    parts = 1 if whole or bias is not None else shape.parts(outs, size)
    kind = torch.float32 if parts > 1 else dtype
    out = torch.empty((parts, rows, outs) if parts > 1 else (rows, outs), dtype=kind, device=values.device)
    _linear[(triton.cdiv(outs, shape.outs), parts)](
        values, matrix, values if bias is None else bias, out, x_scale, w_scale, rows, outs, size, parts,
        ROWS=max(16, triton.next_power_of_2(rows)), TN=shape.outs, TK=shape.depth, BIAS=bias is not None,
        EVEN=outs % shape.outs == 0 and size % shape.depth == 0, AHEAD=max(1, min(2 * shape.depth, triton.next_power_of_2(size + 1) // 2) // 128),
        num_warps=shape.warps, num_stages=shape.stages, **chained(values),
    )  # fmt: skip
    return Product(out, dtype)
