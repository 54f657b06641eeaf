"""Engines in processes of their own: nothing that one does, crash, hang or print, reaches the server.

`order` is what an engine's module must offer, `child` the loop around it, `wire` what goes between, `process` one life of
a process, `client` the server's side: a `LanguageEngine`. `auto` finds the best engine for a model.
"""

from __future__ import annotations

import difflib

from pelton.errors import PackageInvalid
from pelton.packages import Package
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.engine_process.auto import engine_order, load_best
from pelton.runtimes.engine_process.client import EngineProcess
from pelton.runtimes.engine_process.order import Built, EngineOrder, Options, read_options
from pelton.runtimes.language import ENGINES, LanguageEngine

__all__ = ["Built", "EngineOrder", "EngineProcess", "Options", "engine_order", "load", "read_options"]


def load(package: Package, options: RuntimeOptions) -> LanguageEngine:
    """Starts the engine that the package asks for, or the best for this model on this machine. Slow.

    Raises PackageInvalid, ExtraMissing, ModelFailed."""
    own = read_options(package)
    if own.engine == "auto":
        return load_best(package, own, options.cache)
    if own.engine not in ENGINES:
        near = difflib.get_close_matches(own.engine, ["auto", *ENGINES], 1)
        raise PackageInvalid(
            f"model {package.name!r}: options.engine is {own.engine!r}, must be auto, {', '.join(ENGINES)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return EngineProcess(engine_order(package, own, own.engine, options.cache))
