"""Engines in processes of their own: nothing that one does, crash, hang or print, reaches the server.

`order` is what an engine's module must offer, `child` the loop around it, `wire` what goes between, `process` one life of
a process, `client` the server's side: a `LanguageEngine`.
"""

from __future__ import annotations

import difflib

from pelton.errors import PackageInvalid
from pelton.packages import Package
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.engine_process.client import EngineProcess
from pelton.runtimes.engine_process.order import Built, EngineOrder, Options, read_options
from pelton.runtimes.language import ENGINES, LanguageEngine

__all__ = ["Built", "EngineOrder", "EngineProcess", "Options", "load", "read_options"]


def load(package: Package, options: RuntimeOptions) -> LanguageEngine:
    """Starts the engine that the package asks for, or the best for this model on this machine. Slow.

    Raises PackageInvalid, ExtraMissing, ModelFailed."""
    own = read_options(package)
    engine = own.engine if own.engine != "auto" else _first_guess(package)
    if engine not in ENGINES:
        near = difflib.get_close_matches(engine, ["auto", *ENGINES], 1)
        raise PackageInvalid(
            f"model {package.name!r}: options.engine is {engine!r}, must be auto, {', '.join(ENGINES)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return EngineProcess(order(package, own, engine, options.cache))


def order(package: Package, own: Options, engine: str, cache: str) -> EngineOrder:
    """What the process of one engine is told."""
    package.path(package.manifest.file)  # stays inside the folder
    return EngineOrder(
        model=package.name,
        engine=engine,
        folder=str(package.folder.resolve()),
        file=package.manifest.file,
        version=package.version,
        options=own,
        cache=cache,
        threads=own.threads,
    )


def _first_guess(package: Package) -> str:
    return "llama.cpp" if package.file.suffix == ".gguf" else "openvino"
