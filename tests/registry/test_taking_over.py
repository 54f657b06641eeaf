"""Homes of earlier builds, which kept entries in files, are taken over into the store."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pelton.artifacts import Artifacts
from pelton.errors import PackageInvalid
from pelton.registry import Registry
from pelton.types import ModelRef


@pytest.fixture
def home(tmp_path: Path, make_package: Callable[..., Path]) -> Path:
    """What an earlier build left: two versions of one model, one of another."""
    home = tmp_path / "home"
    artifacts = Artifacts(home / "artifacts")
    for number, name in enumerate(("fraud", "fraud", "churn")):
        version = artifacts.put(make_package(tmp_path / f"old{number}", name, str(number)))
        entry = home / "models" / name / f"{version}.json"
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.write_text(json.dumps({"name": name, "version": version, "added": 1000.0 + number}))
    (home / "models" / ".lock").touch()
    return home


def entries(home: Path) -> list[Path]:
    return sorted((home / "models").glob("*/*.json"))


def test_entries_in_files_are_in_the_store_after_the_first_look(home: Path, store_url: str) -> None:
    old = [path.relative_to(home / "models") for path in entries(home)]
    registry = Registry(home, store_url)
    assert registry.models() == ["churn", "fraud"]
    assert [entry.added for entry in registry.versions("fraud")] == [1001.0, 1000.0]
    for name in registry.models():
        assert registry.find(ModelRef(name)).size > 0
        registry.verify(registry.resolve(ModelRef(name)).version)
    assert not (home / "models").exists()
    assert all((home / "models.before-store" / path).is_file() for path in old), "nothing is thrown away"
    registry.close()


def test_what_was_removed_after_that_does_not_come_back(home: Path, store_url: str) -> None:
    registry = Registry(home, store_url)
    registry.remove(ModelRef("fraud"))
    registry.close()
    again = Registry(home, store_url)
    assert again.models() == ["churn"]
    again.close()


def test_a_takeover_that_was_killed_is_finished_the_next_time(home: Path, store_url: str) -> None:
    registry = Registry(home, store_url)
    before = registry.versions("fraud")
    registry.close()
    (home / "models.before-store").rename(home / "models")  # as if it was killed before the last step
    again = Registry(home, store_url)
    assert again.versions("fraud") == before
    assert not (home / "models").exists()
    again.close()


def test_entries_that_an_old_build_writes_later_are_taken_over_too(
    home: Path, store_url: str, tmp_path: Path, make_package: Callable[..., Path]
) -> None:
    Registry(home, store_url).models()
    version = Artifacts(home / "artifacts").put(make_package(tmp_path / "late", "late"))
    (home / "models" / "late").mkdir(parents=True)
    (home / "models" / "late" / f"{version}.json").write_text(
        json.dumps({"name": "late", "version": version, "added": 5.0})
    )
    registry = Registry(home, store_url)
    assert registry.models() == ["churn", "fraud", "late"]
    assert (home / "models.before-store-2" / "late").is_dir()
    registry.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "other", "version": "x", "added": 1.0}'])
def test_a_damaged_entry_is_told_and_its_model_is_not_lost(
    home: Path, store_url: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = entries(home)[0]
    path.write_bytes(content)
    registry = Registry(home, store_url)
    with caplog.at_level(logging.WARNING):
        assert registry.resolve(ModelRef("churn")).version == path.stem
    assert str(path) in caplog.text
    registry.close()


def test_an_entry_whose_files_are_gone_is_left_behind(home: Path, store_url: str) -> None:
    Artifacts(home / "artifacts").remove(entries(home)[0].stem)
    registry = Registry(home, store_url)
    assert registry.models() == ["fraud"]
    registry.close()


def test_a_folder_under_the_wrong_name_is_not_served_under_it(home: Path, store_url: str) -> None:
    (home / "models" / "churn").rename(home / "models" / "stolen")
    registry = Registry(home, store_url)
    with pytest.raises(PackageInvalid, match="are those of 'churn'"):
        registry.resolve(ModelRef("stolen"))
    registry.close()


OPEN = """
import sys
from collections.abc import Callable
from pathlib import Path
from pelton.registry import Registry
registry = Registry(Path(sys.argv[1]), sys.argv[2])
sys.stdin.readline()
print(registry.models(), [entry.added for entry in registry.versions("fraud")])
"""


def test_processes_that_take_over_at_once_get_the_same(home: Path, store_url: str) -> None:
    command = [sys.executable, "-c", OPEN, str(home), store_url]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert answers == {"['churn', 'fraud'] [1001.0, 1000.0]\n"}
