"""What differs between two packages. Pure: manifests and lists of files go in, differences come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pelton.packages.manifest import Package

Files = Mapping[str, tuple[str, int]]  # name -> (sha256, bytes)


class File(msgspec.Struct, frozen=True):
    """A file of a version."""

    sha256: str
    size: int


class FileChange(msgspec.Struct, frozen=True):
    """A file that was added (no `before`), removed (no `after`) or changed."""

    path: str
    before: File | None
    after: File | None


class Change(msgspec.Struct, frozen=True):
    """A value at a dotted path ("inputs.x.shape"); None: it is not there."""

    path: str
    before: Any
    after: Any


class Diff(msgspec.Struct, frozen=True):
    """From `a` to `b`, both `name:version`. `metrics`: name -> the value of each, None where it has none."""

    a: str
    b: str
    files: tuple[FileChange, ...]
    signature: tuple[Change, ...]
    manifest: tuple[Change, ...]
    metrics: dict[str, tuple[float | None, float | None]]

    @property
    def same(self) -> bool:
        """Whether the two are the same version."""
        return not self.files


def compare(a: Package, b: Package, files: tuple[Files, Files], metrics: tuple[Mapping[str, float], ...]) -> Diff:
    """From `a` to `b`, with the files and the metrics of each."""
    before, after = _plain(a), _plain(b)
    return Diff(
        f"{a.name}:{a.version}",
        f"{b.name}:{b.version}",
        tuple(
            FileChange(name, _file(files[0].get(name)), _file(files[1].get(name)))
            for name in sorted({*files[0], *files[1]})
            if files[0].get(name) != files[1].get(name)
        ),
        _changes(before.pop("signature"), after.pop("signature")),
        _changes(before, after),
        {name: (metrics[0].get(name), metrics[1].get(name)) for name in sorted({*metrics[0], *metrics[1]})},
    )


def _file(known: tuple[str, int] | None) -> File | None:
    return None if known is None else File(*known)


def _plain(package: Package) -> dict[str, Any]:
    """A manifest as plain data; tensors stand under their names, so that a new one does not shift the others."""
    plain: dict[str, Any] = msgspec.to_builtins(package.manifest)
    signature = plain["signature"]
    for side in ("inputs", "outputs"):
        signature[side] = {spec["name"]: {**spec, "order": i} for i, spec in enumerate(signature[side])}
    return plain


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    flat = _flat(before), _flat(after)
    return tuple(
        Change(path, flat[0].get(path), flat[1].get(path))
        for path in sorted({*flat[0], *flat[1]})
        if flat[0].get(path) != flat[1].get(path)
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
