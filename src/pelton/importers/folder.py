"""A folder with `pelton.toml` -> the registry. Golden requests that it brings must hold; without any, they are recorded."""

from __future__ import annotations

from pathlib import Path

from pelton.artifacts import SKIPPED
from pelton.errors import PackageInvalid
from pelton.importers import examples
from pelton.importers.draft import GOLDEN_ROWS, Options, Rows, draft, finish, place, random_rows, rows_of_example
from pelton.packages import Package, load
from pelton.registry import Registry


def add(source: str, registry: Registry, options: Options) -> Package:
    """Adds a package folder. Raises PackageInvalid, Untrusted, Disagrees (its own golden requests fail)."""
    package = load(Path(source))
    with draft() as folder:
        _collect(package.folder, folder)
        return finish(folder, package.manifest, _rows(package, options), registry, options)


def _rows(package: Package, options: Options) -> Rows | None:
    signature = package.manifest.signature
    if options.example is not None:
        return examples.read(options.example, signature)
    if package.manifest.golden is not None:
        return None
    if package.manifest.example:
        return rows_of_example(package)
    if not all(spec.fixed for spec in signature.inputs):
        return None
    return random_rows(signature, GOLDEN_ROWS, 1)


def _collect(source: Path, folder: Path) -> None:
    for path in source.rglob("*"):
        name = path.relative_to(source)
        if SKIPPED.intersection(name.parts) or path.is_dir():
            continue
        if path.is_symlink() or not path.is_file():
            raise PackageInvalid(f"{path} is no plain file; a package holds plain files and folders only")
        place(path, folder / name)
