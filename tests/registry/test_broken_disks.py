"""Half-copied files, a changed byte, a full disk, a kill: refused with a clear error, and what was there goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pelton.artifacts import Artifacts
from pelton.errors import ArtifactCorrupt, NotFound, PackageInvalid, PeltonError
from pelton.registry import Registry
from pelton.types import ModelRef

Added = Callable[..., str]


def files(registry: Registry, version: str) -> Path:
    return registry.artifacts.folder(version)


def spoil(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Changes a stored file, its times as they were."""
    times = path.stat()
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))
    path.chmod(0o444)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES = {
    "one bit": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"x",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("name", ["m.onnx", "pelton.toml"])
def test_a_changed_file_is_refused_at_load_also_where_it_was_good_before(
    tmp_path: Path, make_package: Callable[..., Path], change: Callable[[bytes], bytes], name: str
) -> None:
    artifacts = Artifacts(tmp_path / "artifacts")
    version = artifacts.put(make_package(tmp_path / "p", "fraud"))
    other = artifacts.put(make_package(tmp_path / "q", "fraud", "other"))
    artifacts.check(version)
    spoil(artifacts.folder(version) / name, change)
    for _ in range(2):
        with pytest.raises(ArtifactCorrupt, match=rf"{name}.*add the package again"):
            artifacts.check(version)
    artifacts.check(other)


def test_a_file_that_is_missing_or_foreign_is_refused_at_load(
    tmp_path: Path, make_package: Callable[..., Path]
) -> None:
    artifacts = Artifacts(tmp_path / "artifacts")
    version = artifacts.put(make_package(tmp_path / "p", "fraud"))
    artifacts.check(version)
    foreign = artifacts.folder(version) / "extra.py"
    foreign.write_text("import os")
    with pytest.raises(ArtifactCorrupt, match="was not there"):
        artifacts.check(version)
    foreign.unlink()
    artifacts.check(version)
    (artifacts.folder(version) / "m.onnx").rename(tmp_path / "away")
    with pytest.raises(ArtifactCorrupt, match=r"m\.onnx"):
        artifacts.check(version)
    artifacts.remove(version)
    with pytest.raises(NotFound):
        artifacts.check(version)


def test_a_check_of_untouched_files_reads_them_once(
    tmp_path: Path, make_package: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = Artifacts(tmp_path / "artifacts")
    version = artifacts.put(make_package(tmp_path / "p", "fraud"))
    artifacts.check(version)
    read = Artifacts.verify
    times = []
    monkeypatch.setattr(Artifacts, "verify", lambda self, version: (times.append(version), read(self, version))[1])
    artifacts.check(version)
    assert times == []
    (artifacts.folder(version) / "m.onnx").chmod(0o400)  # the bytes are the same, but somebody was there
    artifacts.check(version)
    assert times == [version]


def test_adding_the_package_again_mends_what_is_damaged(registry: Registry, added: Added, tmp_path: Path) -> None:
    version = added()
    before = registry.versions("fraud")
    spoil(files(registry, version) / "m.onnx", CHANGES["cut short"])
    with pytest.raises(ArtifactCorrupt):
        registry.check(version)
    assert registry.add(tmp_path / "package1") == version
    registry.check(version)
    assert registry.versions("fraud") == before


def test_a_half_copied_package_is_never_seen(registry: Registry, added: Added) -> None:
    version = added()
    half = registry.artifacts.root / ("a" * 64)
    (half / "files").mkdir(parents=True)
    (half / "files" / "m.onnx").write_text("ha")
    assert [entry.version for entry in registry.versions("fraud")] == [version]
    with pytest.raises(NotFound):
        registry.resolve(ModelRef("fraud", "a" * 64))
    with pytest.raises(ArtifactCorrupt, match="SHA256SUMS"):
        registry.check("a" * 64)


def test_an_entry_without_files_says_what_to_do_and_does_not_hide_the_others(registry: Registry, added: Added) -> None:
    first, second = added(), added()
    registry.artifacts.remove(second)
    with pytest.raises(PackageInvalid, match="add the package again"):
        registry.resolve(ModelRef("fraud"))
    assert registry.resolve(ModelRef("fraud", first)).version == first


SMALL_DISK = """
import resource, signal, sys
from pathlib import Path
from pelton.errors import PeltonError
from pelton.registry import Registry
registry = Registry(Path(sys.argv[1]), sys.argv[2])
registry.models()
from pelton.store import catalog  # the files of the program itself may be written as compiled code now
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
try:
    registry.add(Path(sys.argv[3]))
    print("added")
except PeltonError as error:
    print(error)
"""


def test_a_disk_that_is_full_while_files_are_copied_adds_nothing(
    registry: Registry, added: Added, tmp_path: Path, store_url: str, make_package: Callable[..., Path]
) -> None:
    version = added()
    large = make_package(tmp_path / "large", "fraud", "x" * 3_000_000)
    command = [sys.executable, "-c", SMALL_DISK, str(registry.home), store_url, str(large), "2000000"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "no room under" in said
    assert "nothing was added" in said
    assert [entry.version for entry in registry.versions("fraud")] == [version]
    assert registry.artifacts.versions() == [version]
    assert not list(registry.artifacts.root.glob(".tmp-*"))
    registry.check(version)
    assert len({version, registry.add(large)}) == 2


def test_a_disk_that_is_full_while_the_entry_is_written_adds_nothing(
    tmp_path: Path, make_package: Callable[..., Path]
) -> None:
    registry = Registry(tmp_path / "home")
    version = registry.add(make_package(tmp_path / "first", "fraud"))
    store = tmp_path / "home" / "pelton.db"
    second = make_package(tmp_path / "second", "fraud", "2")
    url = f"sqlite:///{store}"
    limit = str(1024)  # room for the small files of the package, none for the log of the database
    command = [sys.executable, "-c", SMALL_DISK, str(registry.home), url, str(second), limit]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert str(store) in said
    assert "full" in said
    assert [entry.version for entry in registry.versions("fraud")] == [version]
    assert registry.add(second) == registry.find(ModelRef("fraud")).version != version
    registry.close()


def test_a_store_that_cannot_be_opened_is_named_before_anything_is_copied(
    tmp_path: Path, make_package: Callable[..., Path]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "pelton.db").write_text("not a database" * 1000)
    registry = Registry(tmp_path / "home")
    for look in (registry.models, lambda: registry.add(make_package(tmp_path / "p", "fraud"))):
        with pytest.raises(PeltonError, match=r"pelton\.db.*backup"):
            look()
    assert not (tmp_path / "home" / "artifacts").exists()
