"""How much memory this process may still have, and how much others hold. Linux tells; elsewhere nothing is known."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
GROUPS: Final = Path("/sys/fs/cgroup")
# of each generation of control groups: their limit, what they use, and what of that is only a cache
SECOND: Final = ("memory.max", "memory.current", "inactive_file")
FIRST: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_memory(proc: Path = PROC, groups: Path = GROUPS) -> float:
    """Bytes: what the machine could give, or less where a control group (a container) has a limit. Infinite where the
    system does not tell."""
    return min([_available(proc / "meminfo"), *_left(proc, groups)])


def resident(pids: Iterable[int], proc: Path = PROC) -> int:
    """Bytes that processes hold; one that has ended holds none."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages += int((proc / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _available(file: Path) -> float:
    with contextlib.suppress(OSError, ValueError, LookupError):
        for line in file.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return float("inf")


def _left(proc: Path, groups: Path) -> Iterator[float]:
    """Of each control group that this process is in, and of those above."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, kinds, path = line.split(":", 2)
        if number != "0" and "memory" not in kinds.split(","):
            continue
        root, names = (groups, SECOND) if number == "0" else (groups / "memory", FIRST)
        folder = root / path.lstrip("/")
        while True:
            yield _left_of(folder, *names)
            if folder == root or root not in folder.parents:
                break
            folder = folder.parent


def _left_of(folder: Path, limit: str, used: str, cached: str) -> float:
    try:
        most, now = (folder / limit).read_text().strip(), int((folder / used).read_text())
        stats = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return float("inf") if most == "max" else float(int(most) - now + int(stats.get(cached, 0)))
    except (OSError, ValueError):
        return float("inf")
