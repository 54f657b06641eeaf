"""Tensors as callers write them: nested lists, arrays, raw little-endian bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

import numpy as np

from pelton.errors import InvalidInput
from pelton.transforms.elements import BadElement, compile_elements, to_bf16
from pelton.transforms.fields import FieldSpec, Prepared, file_bytes, place, show, stack
from pelton.types import Array, Fields, TensorSpec

RAW_LIMIT: Final = 1 << 30  # bytes of one row; the server bounds bodies long before
_LISTS: Final = frozenset({list, tuple})
_RAW: Final = (str, bytes, bytearray, memoryview, dict)


class Tensor:
    """The field that fills one input as it is."""

    heavy = False

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.fields = (_field(spec),)
        self._name = spec.name
        self._type = spec.type
        self._numeric = spec.type.kind != "bytes"
        self._nested_kinds = _LISTS | {float, int, bool, type(None)}
        self._whole = spec.fixed or spec.pad is None
        self._shape = spec.shape
        self._flat_shape = (spec.elements,) if spec.fixed and len(spec.shape) > 1 else None
        self._elements = compile_elements(spec.type, spec.nan, spec.elements if spec.fixed else 0)

    def __call__(self, fields: Fields) -> Prepared:
        return Prepared([self.rows(fields[self._name])])

    def rows(self, values: Sequence[Any]) -> Array:
        """One value per row -> [rows, *shape]. Raises InvalidInput that names the input and the position."""
        if isinstance(values, np.ndarray) and values.dtype != np.object_:
            return self._array(values, (len(values), *self.spec.shape), place(self._name, 0, 1))
        if (self._whole or len(values) == 1) and self._nested_kinds.issuperset(map(type, values)):
            return self._nested(values, 0, len(values))
        rows = [self._row(value, row, len(values)) for row, value in enumerate(values)]
        return stack(self._name, rows, self.spec.pad)

    def _row(self, value: Any, row: int, rows: int) -> Array:
        if isinstance(value, np.ndarray):
            return self._array(value, self.spec.shape, place(self._name, row, rows))
        if self._numeric and isinstance(value, _RAW):
            return self._raw(value, place(self._name, row, rows))
        array: Array = self._nested((value,), row, rows)[0:1]
        return array.reshape(array.shape[1:])

    def _nested(self, values: Sequence[Any], first: int, rows: int) -> Array:
        """Unwraps one level of lists per dimension. `first`: which row of the call `values[0]` is."""
        items = values
        dims = [len(values)]
        flat = self._flat_shape if self._flat_shape is not None and self._is_flat(values[0]) else None
        for dim in flat or self._shape:
            if not _LISTS.issuperset(map(type, items)):
                raise self._not_a_list(items, dims, first, rows)
            sizes = set(map(len, items)) or {max(dim, 0)}
            if len(sizes) != 1 or (dim >= 0 and dim not in sizes):
                raise self._wrong_length(items, dims, dim, first, rows)
            items = items[0] if len(items) == 1 else list(chain.from_iterable(items))
            dims.append(sizes.pop())
        try:
            array = self._elements(items)
        except BadElement as bad:
            raise InvalidInput(f"{self._at(bad.index, dims, first, rows)}: {bad.why}") from None
        return array.reshape((dims[0], *self._shape) if flat else dims)

    def _is_flat(self, row: Any) -> bool:
        """Whether a row of several dimensions is written as one list of all its elements."""
        return type(row) in _LISTS and (len(row),) == self._flat_shape and len(row) > 0 and type(row[0]) not in _LISTS

    def _at(self, index: int, dims: Sequence[int], first: int, rows: int) -> str:
        row, *position = (int(i) for i in np.unravel_index(index, dims))
        where = place(self._name, first + row, rows)
        return f"{where}, position {position}" if position else where

    def _not_a_list(self, items: Sequence[Any], dims: Sequence[int], first: int, rows: int) -> InvalidInput:
        index = next(i for i, item in enumerate(items) if type(item) not in _LISTS)
        return InvalidInput(
            f"{self._at(index, dims, first, rows)}: {show(items[index])} where a list is needed; "
            f"a row has the shape {list(self.spec.shape)}"
        )

    def _wrong_length(self, items: Sequence[Any], dims: Sequence[int], dim: int, first: int, rows: int) -> InvalidInput:
        need = dim if dim >= 0 else len(items[0])
        index = next(i for i, item in enumerate(items) if len(item) != need)
        why = "as in the lists before it" if dim < 0 else f"a row has the shape {list(self.spec.shape)}"
        return InvalidInput(
            f"{self._at(index, dims, first, rows)}: a list of {len(items[index])} where {need} are needed ({why})"
        )

    def _raw(self, value: Any, where: str) -> Array:
        raw = file_bytes(where, value, RAW_LIMIT)
        shape = self.spec.shape
        fixed = self._type.size
        for dim in shape:
            fixed *= 1 if dim < 0 else dim
        unknown = shape.count(-1)
        if unknown > 1 or (unknown and not fixed):
            raise InvalidInput(f"{where}: raw bytes leave the shape {list(shape)} open; send nested lists")
        if len(raw) != fixed and (not unknown or len(raw) % fixed):
            need = f"a multiple of {fixed}" if unknown else str(fixed)
            raise InvalidInput(
                f"{where}: {len(raw)} raw bytes; {need} are needed for {self._type.name} {list(shape)} "
                "(text is read as base64)"
            )
        array: Array = np.frombuffer(raw, self._type.dtype if self._type.kind != "bool" else np.uint8).reshape(shape)
        if self._type.kind == "bool":
            if array.size and array.max() > 1:
                raise InvalidInput(f"{where}: raw BOOL bytes must be 0 or 1")
            return array.view(np.bool_)
        return self._finite(array, where)

    def _finite(self, array: Array, where: str) -> Array:
        if self._type.kind != "float" or self.spec.nan:
            return array
        good = (array & 0x7F80) != 0x7F80 if self._type.name == "BF16" else np.isfinite(array)
        if not good.all():
            index = int(np.argmin(good.ravel()))
            position = [int(i) for i in np.unravel_index(index, array.shape)] if array.shape else []
            raise InvalidInput(f"{where}, position {position}: only finite numbers in the range of {self._type.name}")
        return array

    def _array(self, array: Array, shape: tuple[int, ...], where: str) -> Array:
        """An array of one row, or of all; its elements must fit the type without loss of range."""
        if array.ndim != len(shape) or any(need not in (-1, dim) for dim, need in zip(array.shape, shape, strict=True)):
            raise InvalidInput(f"{where}: an array of shape {list(array.shape)} where {list(shape)} is needed")
        kind = array.dtype.kind
        if self._type.kind == "float" and kind in "fiu":
            return self._float_array(array, where)
        if self._type.kind == "int" and kind in "fiu":
            return self._int_array(array, where)
        if (self._type.kind == "bool" and kind == "b") or (self._type.kind == "bytes" and kind in "OSU"):
            try:
                return self._elements(array.ravel().tolist()).reshape(array.shape)
            except BadElement as bad:
                raise InvalidInput(f"{where}, element {bad.index}: {bad.why}") from None
        raise InvalidInput(f"{where}: an array of {array.dtype} where {self._type.name} is needed")

    def _float_array(self, array: Array, where: str) -> Array:
        if self._type.name == "BF16" and array.dtype == np.uint16:
            return self._finite(array, where)
        with np.errstate(over="ignore", invalid="ignore"):
            wide = array.astype(np.float32) if self._type.name == "BF16" else array
            cast = to_bf16(wide) if self._type.name == "BF16" else array.astype(self._type.dtype, copy=False)
        infinite = (cast & 0x7FFF) == 0x7F80 if self._type.name == "BF16" else np.isinf(cast)
        if (infinite & np.isfinite(array)).any():
            raise InvalidInput(f"{where}: a number is beyond the range of {self._type.name}")
        return self._finite(cast, where)

    def _int_array(self, array: Array, where: str) -> Array:
        if array.dtype == self._type.dtype or not array.size:
            return array.astype(self._type.dtype, copy=False)
        if array.dtype.kind == "f" and not (np.isfinite(array).all() and (np.floor(array) == array).all()):
            raise InvalidInput(f"{where}: an array of {array.dtype} with fractions where {self._type.name} is needed")
        limits = np.iinfo(self._type.dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InvalidInput(f"{where}: a number is beyond the range of {self._type.name}")
        return array.astype(self._type.dtype)


def _field(spec: TensorSpec) -> FieldSpec:
    shape = list(spec.shape)
    form = f"nested lists of shape {shape}" if shape else "one value"
    return FieldSpec(spec.name, "tensor", True, f"{spec.datatype}: {form}", shape=spec.shape, datatype=spec.datatype)
