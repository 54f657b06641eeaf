"""An MLflow model folder -> a package, without MLflow: the file MLmodel says what is in it.

ONNX models, and LightGBM and XGBoost models in their own formats, are read as such. A pickle runs code when it is
read: it needs trust, is opened once at import, and is served as ONNX."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec
import numpy as np

from pelton.errors import ExtraMissing, SourceInvalid, Untrusted
from pelton.importers import convert, native, onnx
from pelton.importers.draft import Options, name_from
from pelton.packages import Package
from pelton.registry import Registry

MLMODEL_LIMIT: Final = 4 * 1024**2
EXAMPLE_LIMIT: Final = 64 * 1024**2
_KNOWN: Final = ("onnx", "lightgbm", "xgboost", "sklearn")


def add(source: str, registry: Registry, options: Options) -> Package:
    """Adds a folder with MLmodel. Raises SourceInvalid, Untrusted (a pickle without trust), ExtraMissing, Disagrees."""
    root = Path(source)
    document = read(root / "MLmodel")
    flavors = document.get("flavors")
    if not isinstance(flavors, dict):
        raise SourceInvalid(f"{root / 'MLmodel'} has no flavors")
    name = next((known for known in _KNOWN if known in flavors), "")
    if not name:
        raise SourceInvalid(f"{source} has the flavors {', '.join(map(str, flavors))}; read are {', '.join(_KNOWN)}")
    options = msgspec.structs.replace(options, name=options.name or name_from(root.resolve().name))
    flavor = flavors[name] if isinstance(flavors[name], dict) else {}
    file = _file(root, flavor.get("data") or flavor.get("pickled_model") or f"model.{name}")
    if name == "onnx":
        return onnx.add(str(file), registry, options)
    if name != "sklearn" and file.suffix not in (".pkl", ".pickle", ".joblib"):
        return native.add_booster(native.open_booster(file), options.name, registry, options)
    if not options.trust:
        raise Untrusted(
            f"{file} is a pickle, which can run any code when it is read; add it with --trust if you know who made it"
        )
    return convert.package(_unpickle(file), _example(root, document), registry, options)


def read(path: Path) -> dict[str, Any]:
    """MLmodel as plain data. Raises SourceInvalid, ExtraMissing (PyYAML)."""
    try:
        yaml = importlib.import_module("yaml")
    except ImportError:
        raise ExtraMissing("reading MLmodel (PyYAML)", "convert") from None
    try:
        if path.stat().st_size > MLMODEL_LIMIT:
            raise SourceInvalid(f"{path} is larger than {MLMODEL_LIMIT} bytes")
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise SourceInvalid(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SourceInvalid(f"{path} is no YAML: {str(error).splitlines()[0][:200]}") from None
    if not isinstance(document, dict):
        raise SourceInvalid(f"{path} holds no mapping")
    return document


def _file(root: Path, name: object) -> Path:
    """A file that MLmodel names, which must lie in its folder. A folder stands for the one model in it."""
    if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise SourceInvalid(f"{root / 'MLmodel'} names the file {name!r}, outside of its folder")
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise SourceInvalid(f"{root / 'MLmodel'} names the file {name!r}, which leads outside of its folder")
    if path.is_dir():
        inside = [file for file in path.iterdir() if file.suffix == ".onnx"]
        path = inside[0] if len(inside) == 1 else path
    if not path.is_file():
        raise SourceInvalid(f"{root / 'MLmodel'} names {name!r}, which is not there")
    return path


def _unpickle(file: Path) -> Any:
    """Only for files that the user trusts."""
    if file.suffix == ".joblib":
        return importlib.import_module("joblib").load(file)
    try:
        with file.open("rb") as reader:
            return pickle.load(reader)  # noqa: S301 - trusted by the user, see `add`
    except (pickle.UnpicklingError, ImportError, AttributeError, EOFError) as error:
        raise SourceInvalid(f"{file} cannot be read here: {error}; install what it was trained with") from None


def _example(root: Path, document: dict[str, Any]) -> Any:
    """The input example that was logged with the model: a DataFrame or an array."""
    told = document.get("saved_input_example_info")
    if not isinstance(told, dict):
        raise SourceInvalid(
            f"{root} has no input example; log the model again with input_example=X, rows to compare on"
        )
    path = _file(root, told.get("artifact_path", "input_example.json"))
    if path.stat().st_size > EXAMPLE_LIMIT:
        raise SourceInvalid(f"{path} is larger than {EXAMPLE_LIMIT} bytes")
    try:
        data = msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise SourceInvalid(f"{path}: {error}") from None
    if isinstance(data, dict) and {"columns", "data"} <= data.keys():
        return importlib.import_module("pandas").DataFrame(data["data"], columns=data["columns"])
    rows = data.get("inputs", data.get("data")) if isinstance(data, dict) else data
    try:
        return np.array(rows, np.float64)
    except (ValueError, TypeError) as error:
        raise SourceInvalid(f"{path}: {error}") from None
