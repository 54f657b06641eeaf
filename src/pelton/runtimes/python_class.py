"""A user's class in memory: importing it, `setup`, and `predict` with its answers checked.

Runs in the model's own process, or in the server with isolation = "thread"; imports numpy and msgspec, nothing heavy.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final

import msgspec

from pelton.errors import ModelFailed, PackageInvalid
from pelton.runtimes.python_answer import answers, empty, stack
from pelton.types import Array, Signature

MESSAGE_LIMIT: Final = 2000
TRACE_LIMIT: Final = 20_000
_importing = threading.Lock()
_numbers = count(1)


class UserClass(msgspec.Struct, frozen=True):
    """Which class to load, and as what. `batch` None: as the class says, else one row at a time."""

    model: str
    folder: str
    file: str
    class_name: str
    signature: Signature
    batch: bool | None = None
    alone: bool = True  # nothing else lives in this process


class UserFailed(Exception):
    """The user's code raised. `str()` is its class and message; `trace` is for the log only."""

    def __init__(self, error: BaseException, trace: str) -> None:
        super().__init__(_short(f"{type(error).__name__}: {error}" if _text(error) else type(error).__name__))
        self.trace = trace


class UserModel:
    """An instance of the user's class. `declared` is what the class itself says its inputs and outputs are."""

    def __init__(self, instance: Any, spec: UserClass, batch: bool) -> None:
        self._predict: Callable[..., Any] = instance.predict
        self._signature = spec.signature
        self._batch = batch
        names = tuple(tensor.name for tensor in spec.signature.inputs)
        self._names = names if _takes_names(self._predict, names, spec) else None
        self.declared: dict[str, Any] = {
            key: value for key in ("inputs", "outputs") if (value := getattr(type(instance), key, None)) is not None
        }

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Raises UserFailed where the code raises, ModelFailed where its answer does not fit the signature."""
        outputs = self._signature.outputs
        if not self._signature.batched:
            return answers(self._call(inputs), outputs, None)
        rows = len(inputs[0])
        if rows == 0:
            return [empty(spec) for spec in outputs]
        if self._batch:
            return answers(self._call(inputs), outputs, rows)
        each = [answers(self._call([array[i] for array in inputs]), outputs, None) for i in range(rows)]
        return [stack([row[k] for row in each], spec) for k, spec in enumerate(outputs)]

    def _call(self, inputs: Sequence[Any]) -> Any:
        try:
            if self._names is None:
                return self._predict(*inputs)
            return self._predict(**dict(zip(self._names, inputs, strict=True)))
        except Exception as error:  # noqa: BLE001 - the boundary to the user's code
            raise UserFailed(error, _trace(error, error.__traceback__)) from None


def load_class(spec: UserClass) -> UserModel:
    """Imports the file, makes the instance, calls `setup`. Raises PackageInvalid, or UserFailed from the user's code."""
    module = _import(spec)
    found = getattr(module, spec.class_name, None)
    if not isinstance(found, type):
        raise PackageInvalid(f"{spec.file} has no class {spec.class_name!r}")
    if not callable(getattr(found, "predict", None)):
        raise PackageInvalid(f"class {spec.class_name!r} of {spec.file} has no method `predict`")
    batch = getattr(found, "batch", False) if spec.batch is None else spec.batch
    if not isinstance(batch, bool):
        raise PackageInvalid(f"{spec.class_name}.batch must be True or False, not {batch!r}")
    instance = _users(found)
    if callable(getattr(instance, "setup", None)):
        _users(instance.setup, Path(spec.folder))
    return UserModel(instance, spec, batch)


def _import(spec: UserClass) -> ModuleType:
    """Siblings of the file can be imported. The module has the file's own name where that is free, as pickles of the
    user's classes expect; in a shared process it never is, for two packages may both have a `model.py`."""
    path = Path(spec.folder) / spec.file
    name = path.stem
    if not spec.alone or name in sys.modules or name in sys.stdlib_module_names:
        name = f"pelton_model_{next(_numbers)}_{path.stem.replace('.', '_')}"
    with _importing:  # sys.path and the bytecode switch belong to everybody
        for folder in dict.fromkeys((str(spec.folder), str(path.parent))):
            if folder not in sys.path:
                sys.path.insert(0, folder)
        found = importlib.util.spec_from_file_location(name, path)
        if found is None or found.loader is None:
            raise PackageInvalid(f"{spec.file} is not a Python file (.py)")
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module  # dataclasses and pickle look their module up here
        kept = sys.dont_write_bytecode
        sys.dont_write_bytecode = True  # a package's folder holds its files and nothing else
        try:
            _users(found.loader.exec_module, module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        finally:
            sys.dont_write_bytecode = kept
    return module


def _users(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the boundary to the user's code; so is exit() in setup
        raise UserFailed(error, _trace(error, error.__traceback__)) from None


def _takes_names(predict: Callable[..., Any], names: tuple[str, ...], spec: UserClass) -> bool:
    """Whether the inputs go by name. If not they go by position, which must not contradict the names."""
    where = f"{spec.file}: {spec.class_name}.predict"
    if inspect.iscoroutinefunction(predict) or inspect.isasyncgenfunction(predict):
        raise PackageInvalid(f"{where} is `async`; write a plain `def`: calls run in parallel with `processes`")
    if inspect.isgeneratorfunction(predict):
        raise PackageInvalid(f"{where} is a generator; it must return its answer")
    signature = inspect.signature(predict)
    try:
        signature.bind(**dict.fromkeys(names))
        return True
    except TypeError:
        pass
    try:
        bound = signature.bind(*names)
    except TypeError as error:
        raise PackageInvalid(f"{where}{signature} cannot take the inputs {list(names)}: {error}") from None
    for parameter, name in bound.arguments.items():
        if parameter in names and parameter != name:
            raise PackageInvalid(f"{where}{signature} takes {parameter!r} at the place of the input {name!r}")
    return False


def failure(error: BaseException) -> str:
    """The message for callers."""
    return _short(str(error)) if isinstance(error, UserFailed | ModelFailed | PackageInvalid) else _short(repr(error))


def _trace(error: BaseException, trace: TracebackType | None) -> str:
    """The user's frames: the first is ours."""
    inner = trace.tb_next if trace is not None and trace.tb_next is not None else trace
    try:
        text = "".join(traceback.format_exception(type(error), error, inner, limit=-30))
    except Exception:  # noqa: BLE001 - formatting calls the user's own __str__
        text = type(error).__name__
    text = _sendable(text)
    return text if len(text) <= TRACE_LIMIT else "..." + text[-TRACE_LIMIT:]


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the user's own __str__
        return ""


def _sendable(text: str) -> str:
    """Lone surrogates are no UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _short(text: str) -> str:
    text = _sendable(text)
    return text if len(text) <= MESSAGE_LIMIT else text[:MESSAGE_LIMIT] + "..."
