"""One set of operations, two makers: plain torch (CPU, reference) and Triton (CUDA). Chosen once, at start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from pelton.runtimes.lm import reference

if TYPE_CHECKING:
    from pelton.runtimes.lm.kernels.thin_linear import ThinShape

Norms = tuple[torch.Tensor, torch.Tensor]


@dataclass(slots=True)
class Linear:
    """weight [outs, size]; float8 weights come with `scale` [1, outs] float32: value = weight * scale."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: torch.Tensor | None = None

    @property
    def fp8(self) -> bool:
        return self.scale is not None


@dataclass(slots=True)
class Quantized:
    """Activations: `values` as they are, or float8 with `scale` [rows, 1]."""

    values: torch.Tensor
    scale: torch.Tensor | None = None


class Ops(Protocol):
    """What the model is made of. Shapes are those of `pelton.runtimes.lm.kernels`."""

    def embed(
        self, weights: torch.Tensor, ids: torch.Tensor, slots: torch.Tensor, last: torch.Tensor, scale: float
    ) -> torch.Tensor: ...

    def norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None, quantize: bool
    ) -> Quantized: ...

    def gated(self, x: torch.Tensor, gelu: bool, quantize: bool) -> Quantized: ...

    def linear(self, x: Quantized, linear: Linear, dtype: torch.dtype) -> torch.Tensor: ...

    def quantize(self, x: torch.Tensor) -> Quantized: ...

    def rope_and_store(
        self,
        qkv: torch.Tensor,
        cache: torch.Tensor,
        norms: Norms | None,
        cos_sin: Norms,
        table: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        heads: int,
        eps: float,
    ) -> torch.Tensor: ...

    def greedy_and_remember(self, logits: torch.Tensor, last: torch.Tensor, slots: torch.Tensor) -> torch.Tensor: ...


class TorchOps:
    """The reference: any device, any dtype."""

    def embed(
        self, weights: torch.Tensor, ids: torch.Tensor, slots: torch.Tensor, last: torch.Tensor, scale: float
    ) -> torch.Tensor:
        return reference.embed(weights, ids, slots, last, scale)

    def norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None, quantize: bool
    ) -> Quantized:
        return Quantized(*reference.rms_norm(x, weight, eps, residual, quantize))

    def gated(self, x: torch.Tensor, gelu: bool, quantize: bool) -> Quantized:
        return Quantized(*reference.gated(x, gelu, quantize))

    def linear(self, x: Quantized, linear: Linear, dtype: torch.dtype) -> torch.Tensor:
        if linear.scale is None:
            return F.linear(x.values, linear.weight, linear.bias)
        if x.scale is None:
            raise AssertionError("float8 weights need quantized activations")
        out = F.linear(x.values.float() * x.scale, linear.weight.float() * linear.scale.T)
        return (out if linear.bias is None else out + linear.bias).to(dtype)

    def quantize(self, x: torch.Tensor) -> Quantized:
        return Quantized(*reference.quantize_rows(x))

    def rope_and_store(
        self,
        qkv: torch.Tensor,
        cache: torch.Tensor,
        norms: Norms | None,
        cos_sin: Norms,
        table: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        heads: int,
        eps: float,
    ) -> torch.Tensor:
        return reference.rope_and_store(qkv, cache, norms, cos_sin, table, slots, positions, heads, eps)

    def greedy_and_remember(self, logits: torch.Tensor, last: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return reference.greedy_and_remember(logits, last, slots)


class TritonOps:
    """Fused kernels for CUDA; they also run, slowly, through Triton's interpreter on a CPU."""

    def __init__(self) -> None:
        from pelton.runtimes.lm.kernels import elementwise, thin_linear  # Triton is not everywhere

        self._elementwise, self._thin = elementwise, thin_linear
        self.thin_shape = thin_linear.ThinShape()
        self.thin_shape_fp8 = thin_linear.ThinShape(outs=32, depth=512, warps=4, stages=4, native=True)
        self.wide_shape = thin_linear.ThinShape(outs=64, depth=256, native=True)  # 17 to 64 rows
        self.widest_shape = thin_linear.ThinShape(outs=64, depth=256, warps=8, stages=4, native=True)  # to 128 rows
        self.thin_rows = 4  # with more rows the library is as fast

    def embed(
        self, weights: torch.Tensor, ids: torch.Tensor, slots: torch.Tensor, last: torch.Tensor, scale: float
    ) -> torch.Tensor:
        return self._elementwise.embed(weights, ids, slots, last, scale)

    def norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None, quantize: bool
    ) -> Quantized:
        return Quantized(*self._elementwise.rms_norm(x, weight, eps, residual, quantize))

    def gated(self, x: torch.Tensor, gelu: bool, quantize: bool) -> Quantized:
        return Quantized(*self._elementwise.gated(x, gelu, quantize))

    def linear(self, x: Quantized, linear: Linear, dtype: torch.dtype) -> torch.Tensor:
        rows = x.values.shape[0]
        shape = self._float8_shape(rows) if linear.fp8 else self.thin_shape if rows <= self.thin_rows else None
        if shape is not None:
            return self._thin.thin_linear(x.values, linear.weight, linear.bias, shape, x.scale, linear.scale, dtype)
        if linear.scale is None:
            return F.linear(x.values, linear.weight, linear.bias)
        if x.scale is None:
            raise AssertionError("float8 weights need quantized activations")
        return torch._scaled_mm(
            x.values, linear.weight.t(), x.scale, linear.scale, linear.bias, out_dtype=dtype, use_fast_accum=True
        )

    def _float8_shape(self, rows: int) -> ThinShape | None:
        """Which cut of our kernel for so many rows; None where the library is faster."""
        if rows <= 16:
            return self.thin_shape_fp8
        if rows <= 64:
            return self.wide_shape
        return self.widest_shape if 96 < rows <= 128 else None  # tiles hold 64 or 128 rows

    def quantize(self, x: torch.Tensor) -> Quantized:
        return Quantized(*self._elementwise.quantize_rows(x))

    def rope_and_store(
        self,
        qkv: torch.Tensor,
        cache: torch.Tensor,
        norms: Norms | None,
        cos_sin: Norms,
        table: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        heads: int,
        eps: float,
    ) -> torch.Tensor:
        return self._elementwise.rope_and_store(qkv, cache, norms, cos_sin, table, slots, positions, heads, eps)

    def greedy_and_remember(self, logits: torch.Tensor, last: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return self._elementwise.greedy_and_remember(logits, last, slots)


def choose_ops(device: torch.device) -> Ops:
    return TritonOps() if device.type == "cuda" else TorchOps()
