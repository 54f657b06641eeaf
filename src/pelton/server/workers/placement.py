"""Which worker holds which model. Pure: sizes in, places out.

A small model is loaded in every worker, so that its calls never leave the process that read them. A big one would cost
its memory once per worker, so it lives in one, and the others forward its calls there. Models that run user code stay
in one worker whatever their files weigh: these say nothing about what the code keeps in memory, and `processes` in
their package already says how often they shall run. Language models do too: one engine that batches everybody is faster
than several that compete for the cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from pelton.packages import Package

EVERYWHERE: Final = -1
ONE_PLACE: Final = frozenset({"python", "language"})  # runtimes whose models are never loaded twice


class Weight(msgspec.Struct, frozen=True):
    """What placing a model depends on: bytes of its files, and whether it must not be loaded twice."""

    size: int
    alone: bool = False


def weigh(package: Package) -> Weight:
    """The weight of a package on the disk."""
    size = sum(path.stat().st_size for path in package.folder.rglob("*") if path.is_file())
    return Weight(size, package.manifest.runtime in ONE_PLACE)


def place(
    weights: Mapping[str, Weight], workers: int, replicate_below: int, placed: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Model -> the number of its worker, or EVERYWHERE. `replicate_below` is in bytes.

    What stands in `placed` stays there: only models that are new find a place. The biggest are placed first, each in
    the worker that holds the fewest bytes of such models (then: the fewest models, then the lowest number).
    """
    places = {name: where for name, where in (placed or {}).items() if name in weights}
    loads = [[0, 0] for _ in range(workers)]
    for name, where in places.items():
        if where != EVERYWHERE:
            _put(loads[where], weights[name])
    for name in sorted(weights.keys() - places.keys(), key=lambda name: (-weights[name].size, name)):
        weight = weights[name]
        if workers == 1 or (weight.size <= replicate_below and not weight.alone):
            places[name] = EVERYWHERE
            continue
        where = min(range(workers), key=lambda worker: (loads[worker], worker))
        places[name] = where
        _put(loads[where], weight)
    return places


def _put(load: list[int], weight: Weight) -> None:
    load[0] += weight.size
    load[1] += 1
