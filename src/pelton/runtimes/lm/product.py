"""What a matrix product leaves for the kernel that reads it.

A product may end unfinished: cut along its inner dimension into parts that are still to be added (few rows, where
one part alone would not fill the chip), or without the scales of its float8 operands (where the library multiplies
faster without them). The kernel behind it reads every value anyway, so finishing there costs next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class Product:
    """Worth `values * row_scale * out_scale`, parts added.

    values [rows, outs], or [parts, rows, outs] to be added; row_scale [rows, 1] and out_scale [1, outs] float32, both
    or neither; dtype of the finished product.
    """

    values: torch.Tensor
    dtype: torch.dtype
    row_scale: torch.Tensor | None = None
    out_scale: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        rows: int = self.values.shape[-2]
        return rows

    @property
    def outs(self) -> int:
        outs: int = self.values.shape[-1]
        return outs

    @property
    def parts(self) -> int:
        return self.values.shape[0] if self.values.dim() == 3 else 1

    def select(self, rows: torch.Tensor) -> Product:
        """Some of the rows."""
        scale = self.row_scale.index_select(0, rows) if self.row_scale is not None else None
        return replace(self, values=self.values.index_select(-2, rows), row_scale=scale)


def finished(values: torch.Tensor) -> Product:
    """A product that is already what it should be."""
    return Product(values, values.dtype)
