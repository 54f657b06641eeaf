"""Example rows of a fitted model: an array, or a DataFrame with named, typed columns. pandas itself is not imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from pelton.errors import SourceInvalid
from pelton.packages.preprocess import Column, Table
from pelton.types import Array, TensorSpec

MATRIX: Final = "x"
_VALUE_LIMIT: Final = 10_000  # values of one category


class Frame(msgspec.Struct, frozen=True):
    """Rows in both worlds: `original` is what the model's own `predict` takes, `rows` the inputs of the ONNX model."""

    original: Any
    specs: tuple[TensorSpec, ...]
    blocks: tuple[Table, ...]
    rows: dict[str, Array]
    shown: Callable[[], dict[str, Any]]
    numeric: tuple[Any, ...]  # columns of floats: names, or positions of an array
    remake: Callable[[Any], Frame]

    def head(self, count: int) -> Frame:
        original = self.original[:count]
        return msgspec.structs.replace(self, original=original, rows={k: v[:count] for k, v in self.rows.items()})

    def example(self) -> dict[str, Any] | None:
        """The first row as a caller would send it (None: the tensor itself does)."""
        return self.shown() if self.blocks else None

    def with_holes(self, columns: int) -> Frame | None:
        """A few rows again and again, each time with NaN in one numeric column, at last in all."""
        if not self.numeric:
            return None
        few = self.original[:32]
        plain = isinstance(few, np.ndarray)
        parts = []
        for column in (*self.numeric[:columns], list(self.numeric)):
            part = few.copy()
            if plain:
                part[:, column] = np.nan
            else:
                part[column] = np.nan
            parts.append(part)
        return self.remake(np.concatenate(parts) if plain else importlib.import_module("pandas").concat(parts))


def named(frame: Frame, names: Sequence[str]) -> Frame:
    """A frame made of an array, with the names that the model has for its columns."""
    columns = tuple(Column(name) for name in names)
    row = {name: float(f"{value:.7g}") for name, value in zip(names, frame.rows[MATRIX][0], strict=True)}
    return msgspec.structs.replace(frame, blocks=(Table(columns, fills=MATRIX),), shown=lambda: row)


def frame_of(example: Any, needs_columns: bool) -> Frame:
    """Raises SourceInvalid where the rows are no table of numbers, texts, categories or truth values."""
    kind = type(example)
    if kind.__module__.partition(".")[0] == "pandas" and kind.__name__ == "DataFrame":
        return _data_frame(example, needs_columns)
    if needs_columns:
        raise SourceInvalid("this pipeline picks columns by name: give the example as a pandas DataFrame")
    try:
        array = np.asarray(example)
        if array.dtype.kind not in "fiub":
            array = array.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise SourceInvalid(
            f"the example is no array of numbers ({error}); give [rows, features] or a DataFrame"
        ) from None
    if array.ndim != 2 or not array.size:
        raise SourceInvalid(f"the example has the shape {array.shape}; give at least one row as [rows, features]")
    return _matrix(array)


def _matrix(array: Array) -> Frame:
    # the model is asked what callers will send: float32
    original = array.astype(np.float32)
    spec = TensorSpec(MATRIX, "FP32", (array.shape[1],))
    numeric = tuple(range(array.shape[1]))
    return Frame(original, (spec,), (), {MATRIX: original}, dict, numeric, _matrix)


def _data_frame(frame: Any, needs_columns: bool) -> Frame:
    if not len(frame) or not len(frame.columns):
        raise SourceInvalid("the example has no rows or no columns")
    names = [str(name) for name in frame.columns]
    if len(set(names)) != len(names):
        raise SourceInvalid(f"the example has two columns of one name: {names}")
    columns = tuple(_column(name, frame[key]) for name, key in zip(names, frame.columns, strict=True))
    texts = [column.name for column in columns if column.type == "string" and not column.values]
    apart = needs_columns or bool(texts)
    if apart:
        columns = tuple(msgspec.structs.replace(column, values=()) for column in columns)
    floats = tuple(key for key in frame.columns if frame[key].dtype.kind == "f")
    # the model is asked what callers will send: float32
    original = frame.astype(dict.fromkeys(floats, np.float32))

    def remake(other: Any) -> Frame:
        arrays = [_elements(column, other[key]) for column, key in zip(columns, frame.columns, strict=True)]
        if apart:
            specs = tuple(TensorSpec(c.name, _datatype(c), (1,)) for c in columns)
            rows = {c.name: array.reshape(-1, 1) for c, array in zip(columns, arrays, strict=True)}
            block = Table(columns)
        else:
            specs = (TensorSpec(MATRIX, "FP32", (len(columns),)),)
            rows = {MATRIX: np.stack([array.astype(np.float32) for array in arrays], axis=1)}
            block = Table(columns, fills=MATRIX)
        return Frame(other, specs, (block,), rows, lambda: _shown(columns, other), floats, remake)

    return remake(original)


def _column(name: str, series: Any) -> Column:
    dtype = series.dtype
    if dtype.name == "category":
        values = tuple(str(value) for value in dtype.categories)
        if len(values) > _VALUE_LIMIT:
            raise SourceInvalid(f"the column {name!r} has {len(values)} categories, at most {_VALUE_LIMIT}")
        return Column(name, "string", values=values)
    if dtype.kind == "b":
        return Column(name, "boolean")
    if dtype.kind in "iu":
        return Column(name, "integer")
    if dtype.kind == "f":
        return Column(name, "number")
    if all(isinstance(value, str) for value in series):
        return Column(name, "string")
    raise SourceInvalid(f"the column {name!r} ({dtype}) holds neither numbers nor texts; convert it first")


def _datatype(column: Column) -> str:
    return {"number": "FP32", "integer": "INT64", "boolean": "INT64", "string": "BYTES"}[column.type]


def _elements(column: Column, series: Any) -> Array:
    if column.values:
        codes: Array = series.cat.codes.to_numpy().astype(np.float32)
        codes[codes < 0] = np.nan  # a missing category, as null is
        return codes
    if column.type == "string":
        texts = [str(value).encode() for value in series]
        array: Array = np.empty(len(texts), object)
        array[:] = texts
        return array
    kinds = {"number": np.float32, "integer": np.int64, "boolean": np.int64}
    numbers: Array = series.to_numpy()
    return numbers.astype(kinds[column.type])


def _shown(columns: Sequence[Column], frame: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for column, key in zip(columns, frame.columns, strict=True):
        value = frame[key].iloc[0]
        if column.type == "string":
            row[column.name] = str(value)
        elif column.type == "boolean":
            row[column.name] = bool(value)
        elif column.type == "integer":
            row[column.name] = int(value)
        elif np.isfinite(value):
            row[column.name] = float(f"{value:.7g}")
    return row
