"""What memory can be had, as the machine and control groups tell it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pelton.runtimes.memory import free_memory, resident


def machine(folder: Path, groups: str = "") -> Path:
    """A /proc with 8000 kB available."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "meminfo").write_text("MemTotal: 16000 kB\nMemAvailable:    8000 kB\n")
    (folder / "proc" / "self" / "cgroup").write_text(groups)
    return folder / "proc"


def group(folder: Path, limit: str, used: int, cached: int, first: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(f"{limit}\n")
    (folder / ("memory.usage_in_bytes" if first else "memory.current")).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"{'total_' if first else ''}inactive_file {cached}\nanon 5\n")


def test_without_limits_it_is_what_the_machine_has_available(tmp_path):
    assert free_memory(machine(tmp_path), tmp_path / "groups") == 8000 * 1024


@pytest.mark.parametrize("path", ["/", "/a/b"])
def test_a_containers_limit_counts_wherever_above_it_stands(tmp_path, path):
    group(tmp_path / "groups", "1000000", 700_000, 100_000)
    group(tmp_path / "groups" / "a" / "b", "max", 5, 0)
    assert free_memory(machine(tmp_path, f"0::{path}\n"), tmp_path / "groups") == 400_000


def test_control_groups_of_the_first_generation_count_too(tmp_path):
    group(tmp_path / "groups" / "memory" / "x", "2000000", 1_500_000, 0, first=True)
    assert free_memory(machine(tmp_path, "5:cpu:/y\n4:memory:/x\n0::/\n"), tmp_path / "groups") == 500_000


def test_a_system_that_does_not_tell_sets_no_limit(tmp_path):
    assert free_memory(tmp_path / "none", tmp_path / "none") == float("inf")


def test_processes_hold_what_the_system_says_and_ended_ones_nothing():
    mine = resident([os.getpid()])
    assert mine > 10_000_000
    assert resident([2**22 + 1]) == 0
    assert resident([]) == 0
