"""Whether one more version of a language model fits beside those that are loaded.

What the new one will take is judged by what another one of the same name holds now: nobody knows better before it is
loaded. Refusing is better than trying: where memory runs out, Linux ends an engine, and it may be the one that serves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pelton.errors import NoRoom
from pelton.packages import Package
from pelton.replicas.language import LanguageReplica
from pelton.runtimes.memory import free_memory, resident

SPARE: Final = 0.05  # of the memory that is free: it stays free
GIGABYTE: Final = 1e9


def check_room(package: Package, beside: Iterable[LanguageReplica]) -> None:
    """Raises NoRoom where `package` would not fit `beside` versions that are in memory: that serve, or that are kept or
    not given back yet. The first that has processes is what it is judged by."""
    for other in beside:
        pids = other.engine.pids
        shortage = lacking(
            resident(pids), len(pids), size(other.package.folder), size(package.folder), free_memory()
        )  # fmt: skip
        if shortage:
            raise NoRoom(
                f"{shortage}: it is not loaded beside {other.name}:{other.package.version[:12]}; give the machine more "
                f"memory, or take that version out first (pelton undeploy {other.name}, then deploy the new one)"
            )
        if pids:
            return


def lacking(held: int, processes: int, old: int, new: int, free: float) -> str:
    """Why a new version does not fit; empty: it does, or nothing is known. Pure. All in bytes. `held`: in the memory of
    the other version's `processes`, whose files are `old` bytes on the disk; `new`: those of the new one; `free`: what
    may still be had.

    A byte more of weights takes a byte more of each process, or less where weights are not held there (but on a GPU);
    the rest, as libraries and the KV memory, does not grow with them."""
    if not held:
        return ""
    need = held + min(processes, held / max(old, 1)) * (new - old)
    room = free * (1.0 - SPARE)
    if need <= room:
        return ""
    return f"it would need about {need / GIGABYTE:.2f} GB of memory, {max(room, 0.0) / GIGABYTE:.2f} GB can be had"


def size(folder: Path) -> int:
    """Bytes of all files: weights may be several, and not the one that the package names. What is gone has none."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
