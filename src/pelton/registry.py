"""The registry: which models there are, and which versions each has. Kept in files, with no server.

    home/artifacts/<version>/...            the packages (`pelton.artifacts`)
    home/models/<name>/<version>.json       one entry a version: when it was added

The contract that a later store keeps: versions are immutable and belong to one model; adding the same package twice
gives the same version and makes it the newest; an entry appears only after its package is whole on the disk, and goes
before its package goes. So a process may be killed anywhere: at worst a package without an entry stays, which
nobody sees and which adding it again takes up.
"""

from __future__ import annotations

import difflib
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pelton import packages
from pelton.artifacts import Artifacts, write_atomically
from pelton.errors import InvalidInput, NotFound, PackageInvalid, PeltonError, Unsupported
from pelton.packages import Package
from pelton.types import ModelRef, check_name


class Entry(msgspec.Struct, frozen=True):
    """One version of a model. `added`: seconds since 1970, strictly rising within a model."""

    name: str
    version: str
    added: float


class Registry:
    """Models and versions under `home`. Safe for any number of threads and processes on one machine."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.artifacts = Artifacts(home / "artifacts")
        self._models = home / "models"

    def add(self, folder: Path) -> str:
        """Stores a package folder and makes it the newest version of its model. Returns the version.

        Raises PackageInvalid for what is no package, and what `Artifacts.put` raises. The same folder may be added
        again at any time, also by several processes at once."""
        package = packages.load(folder)
        version = self.artifacts.put(folder)
        with self._lock():
            if not self.artifacts.has(version):  # removed between the two lines above
                self.artifacts.put(folder)
            known = self._entries(package.name)
            if known and known[0].version == version:
                return version
            newest = known[0].added if known else 0.0
            entry = Entry(package.name, version, max(time.time(), newest + 1e-3))
            path = self._entry(package.name, version)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, msgspec.json.encode(entry))
        return version

    def models(self) -> list[str]:
        """Names of all models, sorted."""
        if not self._models.is_dir():
            return []
        # entries are not read: a damaged one must not hide the other models
        return sorted(name for name in os.listdir(self._models) if self._paths(name))

    def versions(self, name: str) -> list[Entry]:
        """All versions of a model, the newest first. Raises NotFound."""
        entries = self._entries(_checked(name))
        if not entries:
            raise NotFound(self._unknown(name))
        return entries

    def resolve(self, ref: ModelRef) -> Package:
        """The package that a reference means: its version, a unique prefix of one, or else the newest.

        Reads the manifest only; `verify` reads every byte. Raises NotFound, Unsupported (aliases), InvalidInput (a
        prefix of several versions), PackageInvalid (a damaged package)."""
        version = self._find(ref).version
        try:
            folder = self.artifacts.folder(version)
        except NotFound:
            raise PackageInvalid(
                f"the files of {ref} are gone from {self.artifacts.root}; add the package again"
            ) from None
        package = packages.load(folder, version)
        if package.name != ref.name:
            raise PackageInvalid(f"the files of {ref} are those of {package.name!r}; add the package again")
        return package

    def verify(self, version: str) -> None:
        """Reads every file of a version again. Raises ArtifactCorrupt, naming the file."""
        self.artifacts.verify(version)

    def remove(self, ref: ModelRef) -> list[str]:
        """Forgets one version, or, where the reference names none, the model with all its versions. Raises NotFound.

        Returns the versions that are gone."""
        with self._lock():
            found = [self._find(ref)] if ref.version or ref.alias else self.versions(ref.name)
            for entry in found:
                self._entry(entry.name, entry.version).unlink(missing_ok=True)
                if self.artifacts.has(entry.version):
                    self.artifacts.remove(entry.version)
        return [entry.version for entry in found]

    def _find(self, ref: ModelRef) -> Entry:
        if ref.alias:
            raise Unsupported(f"{ref}: aliases are not supported yet; name a version: {ref.name}:VERSION")
        entries = self.versions(ref.name)
        if not ref.version:
            return entries[0]
        found = [entry for entry in entries if entry.version.startswith(ref.version)]
        if not found:
            known = ", ".join(entry.version[:12] for entry in entries[:5])
            raise NotFound(f"the model {ref.name!r} has no version {ref.version!r}; the newest are {known}")
        if len(found) > 1:
            raise InvalidInput(
                f"{ref} may be any of {', '.join(entry.version[:12] for entry in found[:5])}; write more digits"
            )
        return found[0]

    def _entries(self, name: str) -> list[Entry]:
        paths = self._paths(name)
        entries = [entry for path in paths if (entry := _read(path)) is not None]
        return sorted(entries, key=lambda entry: (entry.added, entry.version), reverse=True)

    def _paths(self, name: str) -> list[Path]:
        try:
            return [path for path in (self._models / name).iterdir() if path.suffix == ".json"]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _entry(self, name: str, version: str) -> Path:
        return self._models / name / f"{version}.json"

    def _unknown(self, name: str) -> str:
        known = self.models()
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        if near:
            return f"there is no model {name!r}; did you mean {' or '.join(map(repr, near))}?"
        if known:
            return f"there is no model {name!r}; there are {', '.join(known[:10])}{', ...' if len(known) > 10 else ''}"
        return f"there is no model {name!r}: {self.home} holds none yet; add one with `pelton add`"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One writer at a time; the kernel gives the lock back when a process dies."""
        try:
            self._models.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._models / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise PeltonError(f"cannot write under {self.home}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _read(path: Path) -> Entry | None:
    """None: the entry was removed while we looked."""
    try:
        entry = msgspec.json.decode(path.read_bytes(), type=Entry)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise PackageInvalid(f"{path} is damaged ({error}); remove it and add the package again") from None
    if path.name != f"{entry.version}.json" or path.parent.name != entry.name:
        raise PackageInvalid(f"{path} describes {entry.name}:{entry.version}; remove it and add the package again")
    return entry


def _checked(name: str) -> str:
    """A name that cannot be one is a model that is not there."""
    try:
        return check_name(name)
    except InvalidInput as error:
        raise NotFound(str(error)) from None
