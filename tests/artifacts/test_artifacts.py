from __future__ import annotations

import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.artifacts import SUMS, Artifacts, Limits, write_atomically
from pelton.errors import ArtifactCorrupt, NotFound, PackageInvalid, PeltonError, TooLarge


@pytest.fixture
def store(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path / "artifacts")


def make(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def debris(store: Artifacts) -> list[str]:
    return [entry.name for entry in store.root.iterdir() if entry.name.startswith(".tmp")]


FILES = {"pelton.toml": b"name = 'a'\n", "weights/one.bin": bytes(range(256)) * 40, "weights/two.bin": b""}


def test_a_folder_comes_back_byte_for_byte(store: Artifacts, tmp_path: Path) -> None:
    folder = store.folder(store.put(make(tmp_path / "in", FILES)))
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == FILES


def test_the_version_is_the_digest_of_a_list_that_sha256sum_checks(store: Artifacts, tmp_path: Path) -> None:
    version = store.put(make(tmp_path / "in", FILES))
    sums = (store.root / version / SUMS).read_bytes()
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(FILES.items())]
    assert sums == "".join(lines).encode()
    assert hashlib.sha256(sums).hexdigest() == version
    subprocess.run(["sha256sum", "--check", "--strict", f"../{SUMS}"], cwd=store.folder(version), check=True)


def test_the_same_files_give_the_same_version_whatever_their_times_and_modes(store: Artifacts, tmp_path: Path) -> None:
    first = make(tmp_path / "a", FILES)
    second = make(tmp_path / "b", dict(reversed(FILES.items())))
    os.utime(second / "pelton.toml", (1, 1))
    (second / "weights/one.bin").chmod(0o600)
    assert store.put(first) == store.put(second)
    assert store.versions() == [store.put(first)]


@given(st.binary(max_size=64), st.binary(max_size=64), st.sampled_from(["a", "b", "a/b", "ab"]))
def test_any_difference_of_name_or_content_gives_another_version(
    tmp_path_factory: pytest.TempPathFactory, one: bytes, two: bytes, name: str
) -> None:
    here = tmp_path_factory.mktemp("store")
    store = Artifacts(here / "artifacts")
    first = store.put(make(here / "1", {"a": one, "z": b"end"}))
    second = store.put(make(here / "2", {name: two, "z": b"end"}))
    assert (first == second) == (name == "a" and one == two)


def test_stored_files_cannot_be_written(store: Artifacts, tmp_path: Path) -> None:
    folder = store.folder(store.put(make(tmp_path / "in", FILES)))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o444}


def test_caches_and_editor_leavings_are_no_part_of_a_package(store: Artifacts, tmp_path: Path) -> None:
    plain = store.put(make(tmp_path / "a", FILES))
    extra = {"__pycache__/m.pyc": b"x", ".git/HEAD": b"y", "weights/.DS_Store": b"z"}
    assert store.put(make(tmp_path / "b", FILES | extra)) == plain


def test_an_unchanged_version_verifies(store: Artifacts, tmp_path: Path) -> None:
    store.verify(store.put(make(tmp_path / "in", FILES)))


def damage_bit(folder: Path) -> None:
    path = folder / "weights/one.bin"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)


def damage_cut(folder: Path) -> None:
    (folder / "weights/one.bin").chmod(0o644)
    os.truncate(folder / "weights/one.bin", 100)


def damage_gone(folder: Path) -> None:
    (folder / "weights/one.bin").unlink()


def damage_link(folder: Path) -> None:
    (folder / "weights/one.bin").rename(folder.parent / "one.bin")
    (folder / "weights/one.bin").symlink_to(folder.parent / "one.bin")


def damage_foreign(folder: Path) -> None:
    (folder / "weights/__pycache__").mkdir()
    (folder / "weights/__pycache__/one.bin").write_bytes(b"planted")


@pytest.mark.parametrize("damage", [damage_bit, damage_cut, damage_gone, damage_link, damage_foreign])
def test_a_changed_file_is_named_and_adding_again_mends_it(store: Artifacts, tmp_path: Path, damage) -> None:
    source = make(tmp_path / "in", FILES)
    version = store.put(source)
    damage(store.folder(version))
    with pytest.raises(PackageInvalid, match=r"one\.bin"):
        store.verify(version)
    assert store.put(source) == version
    store.verify(version)


def test_a_changed_list_of_files_is_found(store: Artifacts, tmp_path: Path) -> None:
    version = store.put(make(tmp_path / "in", FILES))
    (store.root / version / SUMS).chmod(0o644)
    (store.root / version / SUMS).write_bytes(b"")
    with pytest.raises(ArtifactCorrupt, match=SUMS):
        store.verify(version)


def test_a_symbolic_link_is_refused_without_debris(store: Artifacts, tmp_path: Path) -> None:
    source = make(tmp_path / "in", FILES)
    (source / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(PackageInvalid, match="passwd is a symbolic link"):
        store.put(source)
    assert store.versions() == debris(store) == []


def test_a_linked_folder_is_refused(store: Artifacts, tmp_path: Path) -> None:
    source = make(tmp_path / "in", FILES)
    (source / "more").symlink_to(tmp_path)
    with pytest.raises(PackageInvalid, match="more is a symbolic link"):
        store.put(source)


def test_a_pipe_and_a_socket_are_refused_without_waiting(
    store: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "in", FILES)
    os.mkfifo(source / "pipe")
    with pytest.raises(PackageInvalid, match="pipe is neither a file nor a folder"):
        store.put(source)
    (source / "pipe").unlink()
    monkeypatch.chdir(source)  # the path of a socket may not be long
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        with pytest.raises(PackageInvalid, match="sock is neither"):
            store.put(source)


@pytest.mark.parametrize("name", ["new\nline", "back\\slash", "bad\udcff"])
def test_unusable_file_names_are_refused(store: Artifacts, tmp_path: Path, name: str) -> None:
    with pytest.raises(PackageInvalid, match="printable"):
        store.put(make(tmp_path / "in", {name: b""}))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(files=2), "more than 2 files"),
        (Limits(size=10_000), "larger than its limit"),
        (Limits(depth=0), "nested more than 0 deep"),
    ],
)
def test_limits_are_kept_without_debris(tmp_path: Path, limits: Limits, message: str) -> None:
    store = Artifacts(tmp_path / "artifacts", limits)
    with pytest.raises(TooLarge, match=message):
        store.put(make(tmp_path / "in", FILES))
    assert store.versions() == debris(store) == []


def test_an_empty_folder_and_a_missing_one_are_refused(store: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(PackageInvalid, match="holds no files"):
        store.put(tmp_path / "in")
    with pytest.raises(PeltonError, match="No such file"):
        store.put(tmp_path / "nowhere")


@pytest.mark.parametrize("version", ["", "abc", "../../etc", "g" * 64, "a" * 64])
def test_what_is_not_stored_is_not_found(store: Artifacts, version: str) -> None:
    with pytest.raises(NotFound):
        store.folder(version)
    with pytest.raises(NotFound):
        store.remove(version)


def test_a_removed_version_is_gone_and_leaves_nothing(store: Artifacts, tmp_path: Path) -> None:
    version = store.put(make(tmp_path / "in", FILES))
    store.remove(version)
    assert not store.has(version)
    assert store.versions() == debris(store) == []


FULL = """
import resource, sys
from pathlib import Path
from pelton.artifacts import Artifacts
from pelton.errors import PeltonError
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # the kernel refuses the write, as on a full disk
try:
    Artifacts(Path(sys.argv[1])).put(Path(sys.argv[2]))
except PeltonError as error:
    print(error)
"""


def test_a_full_disk_is_a_clear_error_without_debris(store: Artifacts, tmp_path: Path) -> None:
    source = make(tmp_path / "in", FILES)
    command = [sys.executable, "-c", FULL, str(store.root), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"no room under {store.root}")
    assert store.versions() == debris(store) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from pelton import artifacts
step, left = sys.argv[3], [int(sys.argv[4])]
def trace(frame, event, argument):
    if event == step and frame.f_code.co_filename == artifacts.__file__:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace
sys.settrace(trace)
print(artifacts.Artifacts(Path(sys.argv[1])).put(Path(sys.argv[2])))
"""


@pytest.mark.parametrize("lines", [5, 40, 80, 120, 160, 200, 230])
def test_a_killed_copy_is_never_visible_and_its_debris_is_cleared(store: Artifacts, tmp_path: Path, lines: int) -> None:
    source = make(tmp_path / "in", FILES)
    command = [sys.executable, "-c", KILLED, str(store.root), str(source), "line", str(lines)]
    assert subprocess.run(command, capture_output=True, check=False).returncode in (-signal.SIGKILL, 0)
    for version in store.versions():
        store.verify(version)
    version = store.put(source)
    store.verify(version)
    assert debris(store) == []


PUT_ALL = """
import sys
from pathlib import Path
from pelton.artifacts import Artifacts
for folder in sys.argv[2:]:
    Artifacts(Path(sys.argv[1])).put(Path(folder))
"""


def test_processes_that_add_the_same_and_other_files_at_once_all_succeed(store: Artifacts, tmp_path: Path) -> None:
    folders = [str(make(tmp_path / str(i), {"same": b"x" * 9000, "part": bytes([i % 4])})) for i in range(8)]
    command = [sys.executable, "-c", PUT_ALL, str(store.root)]
    workers = [subprocess.Popen(command + folders[i:] + folders[:i]) for i in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert len(store.versions()) == 4
    for version in store.versions():
        store.verify(version)
    store.put(Path(folders[0]))
    assert debris(store) == []


def test_files_that_another_process_removes_while_they_are_added_are_there_in_the_end(tmp_path: Path) -> None:
    class Raced(Artifacts):
        left = 5

        def verify(self, version: str) -> None:
            if self.left:
                self.left -= 1
                other.remove(version)
                if self.left % 2:
                    other.put(folder)
                    (other.root / version / SUMS).unlink()
            super().verify(version)

    folder = make(tmp_path / "a", FILES)
    other, store = Artifacts(tmp_path / "artifacts"), Raced(tmp_path / "artifacts")
    version = other.put(folder)
    while store.left:
        assert store.put(folder) == version
    store.verify(version)
    assert debris(store) == []


def test_a_small_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "entry.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]
