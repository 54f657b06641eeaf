"""Content-addressed storage of package folders: a version is the digest of its files.

    root/<version>/files/...     the package, read-only
    root/<version>/SHA256SUMS    one line a file, in the form of `sha256sum`; its own sha256 is the version
    root/.tmp-*                  copies on their way; nobody reads them

A version becomes visible by one rename of a folder that is complete and on the disk, so a half-copied package is
never served, whenever the process dies. Two processes that add the same files both succeed: the second finds the
first one's folder. What killed processes left behind is cleared by the next `put`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from pelton.errors import ArtifactCorrupt, NotFound, PackageInvalid, PeltonError, TooLarge

SUMS: Final = "SHA256SUMS"
FILES: Final = "files"
TEMPORARY: Final = ".tmp-"
# leavings of editors, version control and interpreters: no part of a package
SKIPPED: Final = frozenset({"__pycache__", ".git", ".DS_Store", ".ipynb_checkpoints"})
_BLOCK: Final = 1 << 20
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one package may be: files, bytes in all, folders inside folders."""

    files: int = 10_000
    size: int = 256 * 1024**3
    depth: int = 16


class Artifacts:
    """The packages under `root`. Safe for any number of threads and processes on one machine."""

    def __init__(self, root: Path, limits: Limits = Limits()) -> None:
        self.root = root
        self.limits = limits
        self._verified: dict[str, list[tuple[int, ...]]] = {}

    def put(self, folder: Path) -> str:
        """Copies a folder in and returns its version: 64 hexadecimal digits.

        Raises PackageInvalid (a link, socket or device; an unusable name), TooLarge, or PeltonError where the disk is
        full or may not be written. Whatever is raised, nothing stays behind."""
        with self._writing():
            temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=self.root))
            try:
                return self._publish(temporary, self._copy(folder, temporary))
            except OSError as error:
                raise _storage_error(error, self.root, folder) from None
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def folder(self, version: str) -> Path:
        """Where the files of a version lie. Raises NotFound."""
        folder = self._home(version) / FILES
        if not folder.is_dir():
            raise NotFound(f"no stored package has the version {version}")
        return folder

    def has(self, version: str) -> bool:
        return (self._home(version) / SUMS).is_file()

    def versions(self) -> list[str]:
        """Every stored version, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(name for name in os.listdir(self.root) if _is_version(name))

    def verify(self, version: str) -> None:
        """Reads every file again. Raises ArtifactCorrupt, naming the first file that is missing, changed or foreign."""
        folder = self.folder(version)
        expected = self._sums(version)
        for name, digest in expected.items():
            try:
                found = _digest(folder / name)
            except OSError as error:
                raise ArtifactCorrupt(f"{folder / name}: {error.strerror}; {_MEND}") from None
            if found != digest:
                raise ArtifactCorrupt(f"{folder / name} is not the file that was added (sha256 {found}); {_MEND}")
        for name, path in _walk(folder, self.limits, skip=False):
            if name not in expected:
                raise ArtifactCorrupt(f"{path} was not there when the package was added; remove the file")

    def check(self, version: str) -> None:
        """`verify`, unless this process has done so and no file was written, exchanged or chmod-ed since.

        The kernel stamps such changes (inode, size, times of contents and of status); a disk that rots in silence is
        found by the next process."""
        stamp = self._stamp(version)
        if self._verified.get(version) != stamp:
            self._verified.pop(version, None)
            self.verify(version)
            self._verified[version] = stamp  # taken before: what changed meanwhile is read again the next time

    def files(self, version: str) -> dict[str, tuple[str, int]]:
        """Name -> (sha256, bytes) of every file of a version. Raises NotFound, ArtifactCorrupt."""
        folder = self.folder(version)
        try:
            return {name: (digest, (folder / name).stat().st_size) for name, digest in self._sums(version).items()}
        except OSError as error:
            raise ArtifactCorrupt(f"{error.filename}: {error.strerror}; {_MEND}") from None

    def size(self, version: str) -> int:
        """Bytes of all files of a version."""
        return sum(size for _, size in self.files(version).values())

    def remove(self, version: str) -> None:
        """Takes a version away, all at once. A model that is already loaded is not touched. Raises NotFound."""
        shutil.rmtree(self.bury(version), ignore_errors=True)

    def bury(self, version: str) -> Path:
        """The quick part of `remove`: the version is gone, and what is returned may be deleted at leisure."""
        home = self._home(version)
        with self._writing():
            grave = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=self.root))
            try:
                os.rename(home, grave)
            except FileNotFoundError:
                grave.rmdir()
                raise NotFound(f"no stored package has the version {version}") from None
            except OSError as error:
                grave.rmdir()
                raise PeltonError(f"cannot remove {home}: {error.strerror}") from None
        return grave

    def _home(self, version: str) -> Path:
        if not _is_version(version):
            raise NotFound(f"{version!r} is no version: 64 hexadecimal digits are expected")
        return self.root / version

    def _stamp(self, version: str) -> list[tuple[int, ...]]:
        home = self.folder(version).parent
        found = [home / SUMS, *(path for _, path in sorted(_walk(home / FILES, self.limits, skip=False)))]
        try:
            stats = [path.stat(follow_symlinks=False) for path in found]
        except OSError as error:
            raise ArtifactCorrupt(f"{error.filename}: {error.strerror}; {_MEND}") from None
        return [(one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in stats]

    def _sums(self, version: str) -> dict[str, str]:
        path = self._home(version) / SUMS
        try:
            text = path.read_bytes()
        except OSError as error:
            raise ArtifactCorrupt(f"{path}: {error.strerror}; {_MEND}") from None
        if hashlib.sha256(text).hexdigest() != version:
            raise ArtifactCorrupt(f"{path} was changed: its digest is not the version; {_MEND}")
        return {line[66:]: line[:64] for line in text.decode().splitlines()}

    def _copy(self, folder: Path, temporary: Path) -> bytes:
        """Copies `folder` to `temporary`/files and returns the contents of SHA256SUMS."""
        target = temporary / FILES
        target.mkdir()
        lines = []
        left = self.limits.size
        for name, path in sorted(_walk(folder, self.limits, skip=True)):
            digest, size = _copy_file(path, target / name, left)
            left -= size
            lines.append(f"{digest}  {name}\n")
        if not lines:
            raise PackageInvalid(f"{folder} holds no files")
        return "".join(lines).encode()

    def _publish(self, temporary: Path, sums: bytes) -> str:
        """Makes a complete temporary folder visible under its version, unless the same files are there and whole."""
        version = hashlib.sha256(sums).hexdigest()
        _write(temporary / SUMS, sums)
        for folder, _, _ in os.walk(temporary, topdown=False):
            _sync_folder(Path(folder))
        damaged = 0
        while damaged < 3:
            try:
                temporary.chmod(0o755)
                os.rename(temporary, self.root / version)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                try:
                    self.verify(version)
                except (ArtifactCorrupt, NotFound):
                    with suppress(NotFound):  # another process took it away a moment ago
                        self.remove(version)  # adding the same files again mends a damaged copy
                        damaged += 1
                    continue
            break
        else:
            raise ArtifactCorrupt(f"{self.root / version} is damaged and cannot be replaced; remove it")
        _sync_folder(self.root)
        return version

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Writers share a lock. Who gets it alone knows that no other writer lives, and clears what the dead left."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.root / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise PeltonError(f"cannot write under {self.root}: {error.strerror}") from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                for left in self.root.glob(f"{TEMPORARY}*"):
                    shutil.rmtree(left, ignore_errors=True)
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield
        finally:
            os.close(lock)


_MEND: Final = "add the package again"


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a small file: readers see the old contents or the new, whenever the process dies."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{os.urandom(4).hex()}")
    try:
        _write(temporary, data, mode=0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _is_version(name: str) -> bool:
    return len(name) == 64 and _HEX.issuperset(name)


def _walk(folder: Path, limits: Limits, skip: bool) -> Iterator[tuple[str, Path]]:
    """(relative name, path) of every regular file. Anything that is neither file nor folder is refused."""
    count = 0
    todo = [(folder, "", 0)]
    while todo:
        here, prefix, depth = todo.pop()
        if depth > limits.depth:
            raise TooLarge(f"{here}: folders are nested more than {limits.depth} deep")
        with os.scandir(here) as found:
            entries = list(found)
        for entry in entries:
            if skip and entry.name in SKIPPED:
                continue
            name = _checked_name(prefix + entry.name, entry.path)
            if entry.is_dir(follow_symlinks=False):
                todo.append((Path(entry.path), f"{name}/", depth + 1))
                continue
            if not entry.is_file(follow_symlinks=False):
                raise PackageInvalid(f"{entry.path} is {_what(entry)}; a package holds plain files and folders only")
            count += 1
            if count > limits.files:
                raise TooLarge(f"{folder} holds more than {limits.files} files")
            yield name, Path(entry.path)


def _checked_name(name: str, path: str) -> str:
    if "\\" in name or not name.isprintable():
        raise PackageInvalid(f"{path!r}: file names in a package are printable UTF-8 without '\\'; rename it")
    return name


def _what(entry: os.DirEntry[str]) -> str:
    return "a symbolic link" if entry.is_symlink() else "neither a file nor a folder"


def _copy_file(source: Path, target: Path, left: int) -> tuple[str, int]:
    """Copies, hashes what it wrote, and puts it on the disk: (sha256, bytes)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    size = 0
    # O_NOFOLLOW and the second look: the file may have been exchanged since the folder was listed
    with os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as reader:
        if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
            raise PackageInvalid(f"{source} is not a plain file")
        with target.open("xb") as writer:
            while block := reader.read(_BLOCK):
                size += len(block)
                if size > left:
                    raise TooLarge(f"{source}: the package is larger than its limit by this file")
                digest.update(block)
                writer.write(block)
            _finish(writer, 0o444)
    return digest.hexdigest(), size


def _write(path: Path, data: bytes, mode: int = 0o444) -> None:
    with path.open("xb") as writer:
        writer.write(data)
        _finish(writer, mode)


def _finish(writer: IO[bytes], mode: int) -> None:
    writer.flush()
    os.fchmod(writer.fileno(), mode)
    os.fsync(writer.fileno())


def _digest(path: Path) -> str:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _storage_error(error: OSError, root: Path, folder: Path) -> PeltonError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(root).free / 2**20
        return PeltonError(
            f"no room under {root} for {folder} ({free:.0f} MiB free): {error.strerror}; nothing was added"
        )
    return PeltonError(f"cannot store {folder} under {root}: {error.strerror} ({error.filename}); nothing was added")
