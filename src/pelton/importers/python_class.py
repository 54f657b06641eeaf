"""`path/to/file.py:Class` -> a package that runs it. The class is read without running it; loading it needs trust.

Into the package go the file, the modules beside it that it imports, and what the class lists as `files`:

    class Model:
        inputs = {"x": "FP32[30]"}
        outputs = {"score": "FP32[2]"}
        batch = True
        files = ["weights.npz"]     # relative to this file; `setup` gets the folder
"""

from __future__ import annotations

import ast
import logging
from pathlib import Path, PurePosixPath

from pelton.errors import ModelFailed, SourceInvalid, Untrusted
from pelton.importers import examples
from pelton.importers.draft import GOLDEN_ROWS, Options, draft, finish, name_from, place, random_rows
from pelton.packages import Batching, Manifest, Package
from pelton.packages.python_source import find_class, inspect_class
from pelton.registry import Registry

log = logging.getLogger(__name__)

_SIZE = 16  # of dimensions that may vary, in made-up rows
_MODULE_LIMIT = 200


def add(source: str, registry: Registry, options: Options) -> Package:
    """Adds a Python class. Raises Untrusted without `options.trust`, SourceInvalid where the class says too little."""
    file, _, class_name = source.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise SourceInvalid(f"there is no file {file!r}")
    class_name = class_name or find_class(path)
    signature, batch = inspect_class(path, class_name)
    if not options.trust:
        raise Untrusted(
            f"{source} is Python code, which may do anything on this machine; add it with --trust if you know it"
        )
    with draft() as folder:
        for name in (*_modules(path), *_listed(path, class_name)):
            place(path.parent / name, folder / name)
        manifest = Manifest(
            name_from(path.stem if class_name == "Model" else class_name),
            "python",
            path.name,
            signature,
            source=f"{path.name}:{class_name}",
            options={"class": class_name, "batch": batch},
            batching=Batching() if batch else Batching(max_rows=1),
        )
        if options.example is not None:
            return finish(folder, manifest, examples.read(options.example, signature), registry, options)
        try:
            return finish(folder, manifest, random_rows(signature, GOLDEN_ROWS, _SIZE), registry, options)
        except ModelFailed as error:
            log.warning(
                "no golden requests were recorded: made-up rows do not suit the model; use --example (%s)", error
            )
            return finish(folder, manifest, None, registry, options)


def _modules(path: Path) -> list[str]:
    """The file and, through all of them, the modules and packages beside it that are imported."""
    found = [path.name]
    todo = [path]
    while todo:
        for name in _imports(todo.pop()):
            for new in _beside(path.parent, name):
                if new not in found:
                    found.append(new)
                    todo.append(path.parent / new)
        if len(found) > _MODULE_LIMIT:
            raise SourceInvalid(
                f"{path} imports more than {_MODULE_LIMIT} files beside it; make it a folder with pelton.toml"
            )
    return found


def _beside(folder: Path, module: str) -> list[str]:
    name = module.partition(".")[0]
    if (folder / f"{name}.py").is_file():
        return [f"{name}.py"]
    if (folder / name / "__init__.py").is_file():
        return [str(file.relative_to(folder)) for file in sorted((folder / name).rglob("*.py"))]
    return []


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_bytes(), path.name)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if node.module else [alias.name for alias in node.names]
    return found


def _listed(path: Path, class_name: str) -> list[str]:
    """The literal list `files` of the class."""
    tree = ast.parse(path.read_bytes(), path.name)
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    names: object = []
    for node in body:
        if isinstance(node, ast.Assign) and any(isinstance(x, ast.Name) and x.id == "files" for x in node.targets):
            try:
                names = ast.literal_eval(node.value)
            except ValueError:
                raise SourceInvalid(f"{path.name}: class {class_name}: files must be a plain list of names") from None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise SourceInvalid(f"{path.name}: class {class_name}: files must be a list of names, not {names!r}")
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise SourceInvalid(f"{path.name}: class {class_name}: the file {name!r} must lie beside the module")
        if not (path.parent / name).is_file():
            raise SourceInvalid(f"{path.name}: class {class_name}: the file {name!r} is not there")
    return list(names)
