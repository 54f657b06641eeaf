"""Reads what a user's class says about itself, `inputs`, `outputs` and `batch`, without running any of its code.

    class Model:
        inputs = {"x": "FP32[30]"}
        outputs = {"score": "FP32[2]"}
        batch = True

A tensor is written DATATYPE[row shape]: `FP32[30]`, `UINT8[-1, -1, 3]`, `BYTES` (one text a row), `INT64[]`.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pelton.errors import PackageInvalid, SourceInvalid
from pelton.types import DATATYPES, Signature, TensorSpec

SOURCE_LIMIT: Final = 4 * 1024 * 1024
_RANK_LIMIT: Final = 32
# what people write first -> what it is called here
_ALIASES: Final = {
    "float": "FP32", "float16": "FP16", "float32": "FP32", "float64": "FP64", "double": "FP64", "half": "FP16",
    "bfloat16": "BF16", "int": "INT64", "long": "INT64", "str": "BYTES", "string": "BYTES", "text": "BYTES",
}  # fmt: skip
_MISSING: Final = object()


def inspect_class(path: Path, class_name: str = "Model") -> tuple[Signature, bool]:
    """The signature of a class in a file, and whether its `predict` takes whole batches (default: one row).

    Attributes may stand in the class or in a base class of the same file. Raises SourceInvalid with the mend.
    """
    classes = _classes(path)
    _class(classes, path, class_name)
    where = f"{path.name}: class {class_name}"
    inputs, outputs, batch = (
        _literal(_attribute(classes, class_name, attribute), f"{where}: {attribute}")
        for attribute in ("inputs", "outputs", "batch")
    )
    for attribute, value in (("inputs", inputs), ("outputs", outputs)):
        if value is _MISSING:
            raise SourceInvalid(f'{where} has no `{attribute}`; add for example {attribute} = {{"x": "FP32[30]"}}')
    if batch is _MISSING:
        batch = False
    if not isinstance(batch, bool):
        raise SourceInvalid(f"{where}: batch must be True or False, not {batch!r}")
    if not _has_predict(classes, class_name):
        raise SourceInvalid(f"{where} has no method `predict`")
    try:
        return Signature(specs(inputs, f"{where}: inputs"), specs(outputs, f"{where}: outputs")), batch
    except PackageInvalid as error:
        raise SourceInvalid(str(error)) from None


def find_class(path: Path) -> str:
    """The name of the one class of a file that has `predict`; `Model` wins where there are several."""
    classes = _classes(path)
    found = [name for name in classes if _has_predict(classes, name)]
    if len(found) == 1:
        return found[0]
    if "Model" in found:
        return "Model"
    if not found:
        raise SourceInvalid(f"{path.name} has no class with a method `predict`")
    raise SourceInvalid(f"{path.name} has several classes with `predict`: {', '.join(found)}; say which one to serve")


def specs(declared: object, where: str) -> tuple[TensorSpec, ...]:
    """{"x": "FP32[30]"} -> specs in the same order. Raises PackageInvalid; `where` starts its message."""
    if not isinstance(declared, Mapping) or not declared:
        raise PackageInvalid(f'{where} must be a dictionary such as {{"x": "FP32[30]"}}, not {declared!r}')
    return tuple(_spec(name, text, where) for name, text in declared.items())


def _spec(name: object, text: object, where: str) -> TensorSpec:
    if not isinstance(name, str) or not name:
        raise PackageInvalid(f"{where}: names must be text, not {name!r}")
    where = f"{where}: {name!r}"
    if not isinstance(text, str):
        raise PackageInvalid(f'{where}: write its type as text such as "FP32[30]", not {text!r}')
    datatype, bracket, rest = text.strip().partition("[")
    datatype = datatype.strip()
    if datatype not in DATATYPES:
        raise PackageInvalid(f"{where}: unknown datatype {datatype!r}{_suggestion(datatype)}")
    if not bracket:
        return TensorSpec(name, datatype)
    if not rest.endswith("]"):
        raise PackageInvalid(f"{where}: {text!r} lacks the closing bracket")
    return TensorSpec(name, datatype, _shape(rest[:-1], where, text))


def _shape(inner: str, where: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in inner.split(",")] if inner.strip() else []
    if len(parts) > _RANK_LIMIT:
        raise PackageInvalid(f"{where}: {text!r} has more than {_RANK_LIMIT} dimensions")
    shape = []
    for part in parts:
        if part != "-1" and not (part.isascii() and part.isdigit() and len(part) <= 12):
            raise PackageInvalid(f"{where}: {part!r} in {text!r} is no dimension; use a number, or -1 where it varies")
        shape.append(int(part))
    return tuple(shape)


def _suggestion(datatype: str) -> str:
    lower = datatype.lower()
    alias = _ALIASES.get(lower)
    near = [alias] if alias else difflib.get_close_matches(datatype.upper(), DATATYPES, n=1)
    return f"; did you mean {near[0]}?" if near else f"; one of {', '.join(DATATYPES)}"


def _classes(path: Path) -> dict[str, ast.ClassDef]:
    try:
        if path.stat().st_size > SOURCE_LIMIT:
            raise SourceInvalid(f"{path.name} is larger than {SOURCE_LIMIT} bytes")
        tree = ast.parse(path.read_bytes(), path.name)
    except OSError as error:
        raise SourceInvalid(f"cannot read {path}: {error.strerror}") from None
    except SyntaxError as error:
        raise SourceInvalid(f"{path.name} line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; nesting beyond the parser's stack
        raise SourceInvalid(f"{path.name} is not Python source: {error}") from None
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _class(classes: dict[str, ast.ClassDef], path: Path, name: str) -> ast.ClassDef:
    if name not in classes:
        known = ", ".join(classes) or "none"
        raise SourceInvalid(f"{path.name} has no class {name!r} at its top level; it has: {known}")
    return classes[name]


def _lineage(classes: dict[str, ast.ClassDef], name: str) -> list[ast.ClassDef]:
    """The class and its bases in this file, nearest first. (Depth first; diamonds are not resolved as Python does.)"""
    found: list[ast.ClassDef] = []
    waiting = [name]
    while waiting:
        node = classes.get(waiting.pop(0))
        if node is not None and node not in found:
            found.append(node)
            waiting = [base.id for base in node.bases if isinstance(base, ast.Name)] + waiting
    return found


def _attribute(classes: dict[str, ast.ClassDef], name: str, attribute: str) -> ast.expr | None:
    for node in _lineage(classes, name):
        value = None
        for statement in node.body:  # the last assignment wins, as at run time
            if isinstance(statement, ast.Assign):
                targets = statement.targets
            elif isinstance(statement, ast.AnnAssign):
                targets = [statement.target]
            else:
                continue
            if statement.value is not None and any(isinstance(t, ast.Name) and t.id == attribute for t in targets):
                value = statement.value
        if value is not None:
            return value
    return None


def _has_predict(classes: dict[str, ast.ClassDef], name: str) -> bool:
    return any(
        isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name == "predict"
        for node in _lineage(classes, name)
        for statement in node.body
    )


def _literal(value: ast.expr | None, where: str) -> Any:
    if value is None:
        return _MISSING
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise SourceInvalid(
            f"{where} (line {value.lineno}) is computed; write it as a plain literal, so that it can be read "
            "without running the code"
        ) from None
