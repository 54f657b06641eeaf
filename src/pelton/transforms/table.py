"""Named, typed columns -> the model's inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Final, NoReturn

import msgspec
import numpy as np

from pelton.errors import InvalidInput, PackageInvalid
from pelton.packages.preprocess import Column, Table
from pelton.transforms.elements import BadElement, Elements, compile_elements, integer
from pelton.transforms.fields import FieldSpec, Prepared, place, show
from pelton.types import Array, Fields, TensorSpec

UNSET: Final = msgspec.UNSET  # a row that leaves a column out, while other rows have it

_LISTS: Final = frozenset({list, tuple})

# One column of a call -> the columns of elements that the model sees (several for one-hot).
Convert = Callable[[Sequence[Any]], Sequence[Sequence[Any]]]
# One value -> one element. Raises ValueError with the reason.
One = Callable[[Any], Any]


class Vector:
    """All columns side by side in one input [rows, width]."""

    heavy = False

    def __init__(self, block: Table, spec: TensorSpec) -> None:
        self.fields = tuple(map(_field, block.columns))
        widths = [len(column.values) if column.one_hot else 1 for column in block.columns]
        self._width = sum(widths)
        if len(spec.shape) != 1 or spec.shape[0] not in (-1, self._width):
            raise PackageInvalid(
                f"the table fills {spec.name!r} with {self._width} elements; its shape is {spec.shape}"
            )
        self._of_element = [i for i, width in enumerate(widths) for _ in range(width)]
        self._take = _taker([column.name for column in block.columns])
        converts = [_compile(column, spec) for column in block.columns]
        # Columns of plain numbers need no work of their own: the elements' own check is theirs.
        self._plain = all(convert is None for convert in converts)
        self._converts = [convert or _as_it_is for convert in converts]
        self._elements = compile_elements(spec.type, spec.nan, self._width)
        ones = [_one(column, spec) for column in block.columns]
        self._ones = [(i, one) for i, one in enumerate(ones) if one is not None]
        self._one_each = self._width == len(block.columns) and not any(column.one_hot for column in block.columns)

    def one_row(self, fields: Fields) -> Array | None:
        """The way of most live calls: one row, every column given, all in order. None: take the long way."""
        if not self._one_each or len(fields) != len(self.fields):
            return None
        try:
            lists = self._take(fields)
            if not _LISTS.issuperset(map(type, lists)):
                return None
            row = [value for [value] in lists]
            if not self._plain and (None in row or UNSET in row):
                return None
            for i, one in self._ones:
                row[i] = one(row[i])
            return self._elements(row).reshape(1, self._width)
        except (KeyError, ValueError, TypeError, BadElement):
            return None  # the long way says what is wrong

    def __call__(self, fields: Fields) -> Prepared:
        lists: Sequence[Sequence[Any]] = self._take(fields)
        if not self._plain:
            lists = self._converted(lists)
        flat = list(chain.from_iterable(zip(*lists, strict=True)))
        try:
            array = self._elements(flat)
        except BadElement as bad:
            row, element = divmod(bad.index, self._width)
            rows = len(flat) // self._width
            _refuse(self.fields[self._of_element[element]].name, row, rows, bad.why)
        return Prepared([array.reshape(-1, self._width)])

    def _converted(self, lists: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        columns: list[Sequence[Any]] = []
        for field, convert, values in zip(self.fields, self._converts, lists, strict=True):
            try:
                columns.extend(convert(values))
            except BadElement as bad:
                _refuse(field.name, bad.index, len(values), bad.why)
        return columns


class Columns:
    """Each column is the input of its own name, [rows] or [rows, 1]."""

    heavy = False

    def __init__(self, block: Table, specs: Sequence[TensorSpec]) -> None:
        self.fields = tuple(map(_field, block.columns))
        self._parts: list[tuple[str, Convert, Elements, tuple[int, ...]]] = []
        for column, spec in zip(block.columns, specs, strict=True):
            width = len(column.values) if column.one_hot else 1
            if spec.shape not in ((), (1,), (width,), (-1,)) or (spec.shape in ((), (1,)) and width != 1):
                raise PackageInvalid(f"column {column.name!r} has {width} elements; the input's shape is {spec.shape}")
            shape = () if spec.shape == () else (width,)
            elements = compile_elements(spec.type, spec.nan, width)
            self._parts.append((column.name, _compile(column, spec) or _as_it_is, elements, shape))

    def __call__(self, fields: Fields) -> Prepared:
        inputs: list[Array] = []
        for name, convert, elements, shape in self._parts:
            values = fields[name]
            width = 1
            try:
                columns = convert(values)
                width = len(columns)
                flat = columns[0] if width == 1 else list(chain.from_iterable(zip(*columns, strict=True)))
                inputs.append(elements(flat).reshape((len(values), *shape)))
            except BadElement as bad:
                _refuse(name, bad.index // width, len(values), bad.why)
        return Prepared(inputs)


def compile_table(block: Table, specs: Sequence[TensorSpec]) -> Vector | Columns:
    """`specs`: the inputs that the block fills, in order."""
    if not block.columns:
        raise PackageInvalid("a table needs at least one column")
    for column in block.columns:
        _check(column)
    return Vector(block, specs[0]) if block.fills else Columns(block, specs)


def _taker(names: Sequence[str]) -> Callable[[Fields], Sequence[Sequence[Any]]]:
    if len(names) == 1:
        name = names[0]
        return lambda fields: (fields[name],)
    return itemgetter(*names)


def _refuse(name: str, row: int, rows: int, why: str) -> NoReturn:
    raise InvalidInput(f"{place(name, row, rows)}: {why}")


def _check(column: Column) -> None:
    what = f"column {column.name!r}"
    if column.values and column.type != "string":
        raise PackageInvalid(f"{what}: `values` belong to strings, not to {column.type}")
    if len(set(column.values)) != len(column.values):
        raise PackageInvalid(f"{what}: `values` has a value twice")
    if column.one_hot and not column.values:
        raise PackageInvalid(f"{what}: `one_hot` needs `values`")
    if (column.minimum is not None or column.maximum is not None) and column.type not in ("number", "integer"):
        raise PackageInvalid(f"{what}: `minimum` and `maximum` belong to numbers and integers, not to {column.type}")


def _field(column: Column) -> FieldSpec:
    required = column.required and column.default is None
    description = column.description or _describe(column)
    return FieldSpec(column.name, column.type, required, description, column.values)


def _describe(column: Column) -> str:
    words = {"number": "a number", "integer": "a whole number", "boolean": "true or false", "string": "text"}
    text = f"one of {len(column.values)} values" if column.values else words[column.type]
    if column.minimum is not None:
        text += f", at least {column.minimum:g}"
    if column.maximum is not None:
        text += f", at most {column.maximum:g}"
    return text if column.default is None else f"{text}; {show(column.default)} where left out"


def _as_it_is(values: Sequence[Any]) -> Sequence[Sequence[Any]]:
    return (values,)


def _compile(column: Column, spec: TensorSpec) -> Convert | None:
    """None: the values are elements already. Checks here that a default is a value that the column accepts."""
    one = _one(column, spec)
    default = None
    if column.default is not None:
        try:
            if one is None:
                compile_elements(spec.type, spec.nan, 1)([column.default])
            default = column.default if one is None else one(column.default)
        except (ValueError, BadElement) as error:
            raise PackageInvalid(f"column {column.name!r}: default: {error}") from None
    missing = _missing(column, default)
    if one is None and missing is UNSET and column.required:
        return None
    convert = _each(one or _any, missing, column.required and column.default is None)
    if column.one_hot:
        return _one_hot(convert, len(column.values))
    return lambda values: (convert(values),)


def _missing(column: Column, default: Any) -> Any:
    """What a null becomes; UNSET: it stays null, and the elements decide."""
    if column.default is not None:
        return default
    if column.values and column.unknown is not None:
        return -1 if column.one_hot else column.unknown
    return UNSET


def _any(value: Any) -> Any:
    return value


def _each(one: One, missing: Any, required: bool) -> Callable[[Sequence[Any]], list[Any]]:
    null = None if missing is UNSET else missing

    def convert(values: Sequence[Any]) -> list[Any]:
        elements: list[Any] = []
        for index, value in enumerate(values):
            if value is UNSET and required:
                raise BadElement(index, "is left out")
            if value is None or value is UNSET:
                elements.append(null)
                continue
            try:
                elements.append(one(value))
            except ValueError as error:
                raise BadElement(index, str(error)) from None
        return elements

    return convert


def _one_hot(convert: Callable[[Sequence[Any]], list[Any]], width: int) -> Convert:
    """Index -> `width` columns of 0 and 1; a null stays null in the first, so that it is refused or NaN there."""

    def spread(values: Sequence[Any]) -> Sequence[Sequence[Any]]:
        indices = convert(values)
        return [[None if index is None else int(index == i) for index in indices] for i in range(width)]

    return spread


def _one(column: Column, spec: TensorSpec) -> One | None:
    """The check and conversion of one value, None where the elements' own is enough."""
    text = spec.datatype == "BYTES"
    if text and (column.type != "string" or column.one_hot):
        raise PackageInvalid(f"column {column.name!r} ({column.type}) cannot fill {spec.name!r}, which is BYTES")
    if column.type == "string":
        if column.values:
            return _category(column, text)
        if not text:
            raise PackageInvalid(f"column {column.name!r}: text needs `values`, or a BYTES input; not {spec.datatype}")
        return _text
    if column.type == "boolean":
        return _boolean if spec.type.kind != "bool" else None
    if spec.type.kind == "bool":
        raise PackageInvalid(f"column {column.name!r} ({column.type}) cannot fill {spec.name!r}, which is BOOL")
    if column.minimum is not None or column.maximum is not None:
        return _ranged(column)
    if column.type == "integer" and spec.type.kind == "float":
        return integer
    return None


def _category(column: Column, text: bool) -> One:
    known: dict[str, Any] = {value: value if text else index for index, value in enumerate(column.values)}
    unknown: Any = None if text or column.unknown is None else -1 if column.one_hot else column.unknown
    offered = ", ".join(map(repr, column.values[:10])) + (", ..." if len(column.values) > 10 else "")

    def one(value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError(f"{show(value)} is not text")
        element = known.get(value, unknown)
        if element is None:
            raise ValueError(f"{show(value)} is not one of {offered}")
        return element

    return one


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{show(value)} is not text")
    return value


def _boolean(value: Any) -> int:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{show(value)} is not true or false")
    return int(value)


def _ranged(column: Column) -> One:
    low = -math.inf if column.minimum is None else column.minimum
    high = math.inf if column.maximum is None else column.maximum
    whole = column.type == "integer"

    def one(value: Any) -> Any:
        if whole:
            value = integer(value)
        elif isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise ValueError(f"{show(value)} is not a number")
        if value < low or value > high:
            raise ValueError(f"{show(value)} is outside of {low:g} to {high:g}")
        return value

    return one
