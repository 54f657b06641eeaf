"""One set of operations, two makers: plain torch (CPU, reference) and Triton (CUDA). Chosen once, at start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from pelton.runtimes.lm import reference
from pelton.runtimes.lm.product import Product, finished

if TYPE_CHECKING:
    from pelton.runtimes.lm.kernels.float8_linear import Float8Shape

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
        self, x: Product, weight: torch.Tensor, eps: float, residual: torch.Tensor | None, quantize: bool
    ) -> Quantized: ...

    def gated(self, x: Product, gelu: bool, quantize: bool) -> Quantized: ...

    def linear(self, x: Quantized, linear: Linear, dtype: torch.dtype, whole: bool = False) -> Product:
        """`whole`: the product is finished, its values are the result."""
        ...

    def quantize(self, x: torch.Tensor) -> Quantized: ...

    def rope_and_store(
        self,
        qkv: Product,
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
        self, x: Product, weight: torch.Tensor, eps: float, residual: torch.Tensor | None, quantize: bool
    ) -> Quantized:
        return Quantized(*reference.rms_norm(x.values, weight, eps, residual, quantize))

    def gated(self, x: Product, gelu: bool, quantize: bool) -> Quantized:
        return Quantized(*reference.gated(x.values, gelu, quantize))

    def linear(self, x: Quantized, linear: Linear, dtype: torch.dtype, whole: bool = False) -> Product:
        if linear.scale is None:
            return finished(F.linear(x.values, linear.weight, linear.bias))
        if x.scale is None:
            raise AssertionError("float8 weights need quantized activations")
        out = F.linear(x.values.float() * x.scale, linear.weight.float() * linear.scale.T)
        return finished((out if linear.bias is None else out + linear.bias).to(dtype))

    def quantize(self, x: torch.Tensor) -> Quantized:
        return Quantized(*reference.quantize_rows(x))

    def rope_and_store(
        self,
        qkv: Product,
        cache: torch.Tensor,
        norms: Norms | None,
        cos_sin: Norms,
        table: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        heads: int,
        eps: float,
    ) -> torch.Tensor:
        return reference.rope_and_store(qkv.values, cache, norms, cos_sin, table, slots, positions, heads, eps)

    def greedy_and_remember(self, logits: torch.Tensor, last: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return reference.greedy_and_remember(logits, last, slots)


class TritonOps:
    """Fused kernels for CUDA; they also run, slowly, through Triton's interpreter on a CPU."""

    def __init__(self) -> None:
        from pelton.runtimes.lm.kernels import elementwise, float8_linear, thin_linear  # Triton is not everywhere

        self._elementwise, self._thin, self._float8 = elementwise, thin_linear, float8_linear
        self.thin_shape = thin_linear.ThinShape()
        self.thin_rows = 4  # with more rows the library is as fast
        self.float8_shape = float8_linear.Float8Shape()  # to 32 rows
        self.float8_shape_64 = float8_linear.Float8Shape(stages=5)
        self.float8_rows = float8_linear.MAX_ROWS
        self.unscaled_rows = 512  # float8, by the library: with more rows it is faster with scales than without
        self._one: torch.Tensor | None = None

    def embed(
        self, weights: torch.Tensor, ids: torch.Tensor, slots: torch.Tensor, last: torch.Tensor, scale: float
    ) -> torch.Tensor:
        return self._elementwise.embed(weights, ids, slots, last, scale)

    def norm(
        self, x: Product, weight: torch.Tensor, eps: float, residual: torch.Tensor | None, quantize: bool
    ) -> Quantized:
        return Quantized(*self._elementwise.rms_norm(x, weight, eps, residual, quantize))

    def gated(self, x: Product, gelu: bool, quantize: bool) -> Quantized:
        return Quantized(*self._elementwise.gated(x, gelu, quantize))

    def linear(self, x: Quantized, linear: Linear, dtype: torch.dtype, whole: bool = False) -> Product:
        if linear.scale is not None:
            return self._float8_product(x, linear, dtype, whole)
        if x.values.shape[0] <= self.thin_rows:
            return finished(self._thin.thin_linear(x.values, linear.weight, linear.bias, self.thin_shape))
        return finished(F.linear(x.values, linear.weight, linear.bias))

    def _float8_product(self, x: Quantized, linear: Linear, dtype: torch.dtype, whole: bool) -> Product:
        """By our kernel for few rows. The library has no good kernel with scales for some hundred: there it
        multiplies without, and whoever reads the product applies them."""
        if x.scale is None or linear.scale is None:
            raise AssertionError("float8 weights need quantized activations")
        rows = x.values.shape[0]
        if rows <= self.float8_rows:
            shape: Float8Shape = self.float8_shape if rows <= 32 else self.float8_shape_64
            operands = (x.values, x.scale), (linear.weight, linear.scale)
            return self._float8.float8_linear(*operands, linear.bias, dtype, shape, whole)
        weight = linear.weight.t()
        if rows <= self.unscaled_rows and linear.bias is None and not whole:
            one = self._unit(x.values.device)
            out = torch._scaled_mm(x.values, weight, one, one, out_dtype=dtype, use_fast_accum=True)
            return Product(out, dtype, x.scale, linear.scale)
        return finished(
            torch._scaled_mm(x.values, weight, x.scale, linear.scale, linear.bias, out_dtype=dtype, use_fast_accum=True)
        )

    def _unit(self, device: torch.device) -> torch.Tensor:
        """The scale 1 on the device."""
        if self._one is None:
            self._one = torch.ones((), dtype=torch.float32, device=device)
        return self._one

    def quantize(self, x: torch.Tensor) -> Quantized:
        return Quantized(*self._elementwise.quantize_rows(x))

    def rope_and_store(
        self,
        qkv: Product,
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
