"""Models and versions. Every test with a store runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton.artifacts import Artifacts
from pelton.errors import ArtifactCorrupt, InvalidInput, NotFound, PackageInvalid
from pelton.packages import Manifest, save
from pelton.registry import Registry
from pelton.types import ModelRef, Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (2,)),))


def package(folder: Path, name: str, content: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "m.onnx").write_text(f"{name} {content}")
    save(Manifest(name, "onnx", "m.onnx", SIGNATURE), folder)
    return folder


@pytest.fixture
def registry(tmp_path: Path, store_url: str) -> Iterator[Registry]:
    registry = Registry(tmp_path / "home", store_url)
    yield registry
    registry.close()


def test_an_added_package_resolves_by_its_name(registry: Registry, tmp_path: Path) -> None:
    version = registry.add(package(tmp_path / "p", "spam"))
    found = registry.resolve(ModelRef("spam"))
    assert (found.version, found.name, found.file.read_text()) == (version, "spam", "spam ")
    assert registry.models() == ["spam"]
    registry.verify(version)


def test_the_newest_version_is_the_default_and_older_ones_stay(registry: Registry, tmp_path: Path) -> None:
    versions = [registry.add(package(tmp_path / str(i), "spam", str(i))) for i in range(4)]
    assert registry.resolve(ModelRef("spam")).version == versions[-1]
    assert [entry.version for entry in registry.versions("spam")] == versions[::-1]
    added = [entry.added for entry in registry.versions("spam")]
    assert added == sorted(set(added), reverse=True)
    assert registry.resolve(ModelRef("spam", versions[0])).version == versions[0]


def test_adding_the_same_twice_changes_nothing(registry: Registry, tmp_path: Path) -> None:
    folder = package(tmp_path / "p", "spam")
    registry.add(folder)
    before = registry.versions("spam")
    registry.add(folder)
    assert registry.versions("spam") == before


def test_adding_an_older_version_again_makes_it_the_newest(registry: Registry, tmp_path: Path) -> None:
    first = registry.add(package(tmp_path / "1", "spam", "1"))
    registry.add(package(tmp_path / "2", "spam", "2"))
    assert registry.add(tmp_path / "1") == first
    assert registry.resolve(ModelRef("spam")).version == first
    assert len(registry.versions("spam")) == 2


def test_a_version_may_be_shortened_to_a_unique_prefix(registry: Registry, tmp_path: Path) -> None:
    versions = [registry.add(package(tmp_path / str(i), "spam", str(i))) for i in range(17)]
    for version in versions:
        assert registry.resolve(ModelRef("spam", version[:12])).version == version
    twice = next(v[0] for v in versions if sum(w[0] == v[0] for w in versions) > 1)  # 17 versions, 16 digits
    with pytest.raises(InvalidInput, match="write more digits"):
        registry.resolve(ModelRef("spam", twice))


def test_unknown_names_and_versions_say_what_there_is(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="pelton add"):
        registry.resolve(ModelRef("phising"))
    version = registry.add(package(tmp_path / "p", "phishing"))
    with pytest.raises(NotFound, match="did you mean 'phishing'"):
        registry.resolve(ModelRef("phising"))
    with pytest.raises(NotFound, match="there are phishing"):
        registry.resolve(ModelRef("zzz"))
    with pytest.raises(NotFound, match=version[:12]):
        registry.resolve(ModelRef("phishing", "zz"))


@pytest.mark.parametrize("name", ["../artifacts", "", "a/b", ".lock", "x" * 101])
def test_names_that_cannot_be_models_are_not_found(registry: Registry, tmp_path: Path, name: str) -> None:
    registry.add(package(tmp_path / "p", "spam"))
    with pytest.raises(NotFound):
        registry.resolve(ModelRef(name))
    with pytest.raises(NotFound):
        registry.remove(ModelRef(name))


def test_removing_a_version_leaves_the_others(registry: Registry, tmp_path: Path) -> None:
    first = registry.add(package(tmp_path / "1", "spam", "1"))
    second = registry.add(package(tmp_path / "2", "spam", "2"))
    assert registry.remove(ModelRef("spam", second[:16])) == [second]
    assert registry.resolve(ModelRef("spam")).version == first
    assert registry.artifacts.versions() == [first]


def test_removing_a_model_removes_all_its_versions(registry: Registry, tmp_path: Path) -> None:
    versions = {registry.add(package(tmp_path / str(i), "spam", str(i))) for i in range(3)}
    other = registry.add(package(tmp_path / "o", "other"))
    assert set(registry.remove(ModelRef("spam"))) == versions
    assert registry.models() == ["other"]
    assert registry.artifacts.versions() == [other]
    with pytest.raises(NotFound):
        registry.versions("spam")


def test_a_folder_that_is_no_package_is_refused(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    with pytest.raises(PackageInvalid, match=r"pelton\.toml"):
        registry.add(tmp_path / "p")
    assert registry.models() == []
    assert registry.artifacts.versions() == []


def test_files_that_vanished_are_told_and_adding_again_mends(registry: Registry, tmp_path: Path) -> None:
    folder = package(tmp_path / "p", "spam")
    version = registry.add(folder)
    registry.artifacts.remove(version)
    with pytest.raises(PackageInvalid, match="add the package again"):
        registry.resolve(ModelRef("spam"))
    registry.add(folder)
    assert registry.resolve(ModelRef("spam")).version == version


def test_a_changed_file_is_found_by_verify(registry: Registry, tmp_path: Path) -> None:
    version = registry.add(package(tmp_path / "p", "spam"))
    file = registry.resolve(ModelRef("spam")).file
    file.chmod(0o644)
    file.write_text("other")
    with pytest.raises(ArtifactCorrupt, match=r"m\.onnx"):
        registry.verify(version)


KILLED = """
import os, signal, sys
from pathlib import Path
from pelton import artifacts
from pelton.registry import registry
from pelton.store import aliases, catalog, store, uses
from pelton.types import ModelRef
left = [int(sys.argv[4])]
FILES = [module.__file__ for module in (artifacts, registry, aliases, catalog, store, uses)]
def trace(frame, event, argument):
    if event == "line" and frame.f_code.co_filename in FILES:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace
r = registry.Registry(Path(sys.argv[1]), sys.argv[5])
r.models()
sys.settrace(trace)
r.add(Path(sys.argv[3])) if sys.argv[2] == "add" else r.remove(ModelRef(sys.argv[3]))
"""


@pytest.mark.parametrize(
    ("action", "lines"),
    [
        *[("add", lines) for lines in (10, 80, 150, 185, 205, 220)],
        *[("remove", lines) for lines in (10, 60, 80, 105, 118)],
    ],
)
def test_a_kill_anywhere_leaves_a_registry_that_works(
    registry: Registry, tmp_path: Path, store_url: str, action: str, lines: int
) -> None:
    first = registry.add(package(tmp_path / "1", "spam", "1"))
    package(tmp_path / "2", "other")
    target = str(tmp_path / "2") if action == "add" else "spam"
    command = [sys.executable, "-c", KILLED, str(registry.home), action, target, str(lines), store_url]
    assert subprocess.run(command, capture_output=True, check=False).returncode in (-signal.SIGKILL, 0)
    for name in registry.models():  # what is listed is whole
        registry.verify(registry.resolve(ModelRef(name)).version)
    registry.add(tmp_path / "2")
    assert registry.add(tmp_path / "1") == first
    assert registry.models() == ["other", "spam"]


ADD_AND_REMOVE = """
import contextlib, sys
from pathlib import Path
from pelton.errors import NotFound
from pelton.registry import Registry
from pelton.types import ModelRef
registry = Registry(Path(sys.argv[1]), sys.argv[3])
for _ in range(5):
    registry.add(Path(sys.argv[2]))
    with contextlib.suppress(NotFound):  # another process was first
        registry.remove(ModelRef("spam"))
    registry.add(Path(sys.argv[2]))
"""


def test_processes_that_add_and_remove_the_same_model_at_once_leave_it_whole(
    registry: Registry, tmp_path: Path, store_url: str
) -> None:
    folder = package(tmp_path / "spam", "spam")
    command = [sys.executable, "-c", ADD_AND_REMOVE, str(registry.home), str(folder), store_url]
    workers = [subprocess.Popen(command) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert registry.artifacts.versions() == [registry.resolve(ModelRef("spam")).version]
    registry.verify(Artifacts(registry.home / "artifacts").versions()[0])
