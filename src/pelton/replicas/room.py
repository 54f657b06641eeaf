"""Whether a second version of a language model fits beside the one that serves.

What the new one will take is judged by what the old one holds now: nobody knows better before it is loaded. Refusing is
better than trying: where memory runs out, Linux ends an engine, and it may be the one that serves.
"""

from __future__ import annotations

from typing import Final

from pelton.errors import NotReady
from pelton.packages import Package
from pelton.replicas.language import LanguageReplica
from pelton.runtimes.memory import free_memory, resident

SPARE: Final = 0.05  # of the memory that is free: it stays free
GIGABYTE: Final = 1e9


def check_room(package: Package, before: LanguageReplica) -> None:
    """Raises NotReady where `package` would not fit beside `before`."""
    shortage = lacking(resident(before.engine.pids), before.package.file.stat().st_size,
                       package.file.stat().st_size, free_memory())  # fmt: skip
    if shortage:
        raise NotReady(
            f"{shortage}: it is not loaded beside {package.name}:{before.version[:12]}, which goes on; give the machine "
            f"more memory, or take that version out first (pelton undeploy {package.name}, then deploy the new one)"
        )


def lacking(held: int, old: int, new: int, free: float) -> str:
    """Why a new version does not fit; empty: it does. Pure. `held`: bytes in memory of the version that serves, whose
    weights are `old` bytes on the disk; `new`: those of the other one; `free`: what may still be had."""
    need = held * new / max(old, 1)
    room = free * (1.0 - SPARE)
    if need <= room:
        return ""
    return f"it would need about {need / GIGABYTE:.2f} GB of memory, {max(room, 0.0) / GIGABYTE:.2f} GB can be had"
