"""The engine "auto": what can run the model is measured once for each version and machine; the decision is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from pelton.errors import ExtraMissing, ModelFailed, PackageInvalid, PeltonError
from pelton.packages import Package
from pelton.runtimes import engine_choice
from pelton.runtimes.duet import Duet
from pelton.runtimes.engine_choice import LOG, Choice
from pelton.runtimes.engine_process.client import EngineProcess
from pelton.runtimes.engine_process.order import EngineOrder, Options
from pelton.runtimes.language import LanguageEngine

SOLO_STREAMS: Final = 4  # of the half of a duet that runs few


@dataclass(frozen=True, slots=True)
class Wanted:
    """A package that asks for the best engine, and where decisions are kept ("": nowhere)."""

    package: Package
    options: Options
    cache: str

    def start(self, engine: str, streams: int = 0) -> EngineProcess:
        options = msgspec.structs.replace(self.options, streams=streams) if streams else self.options
        return EngineProcess(engine_order(self.package, options, engine, self.cache))

    def few(self) -> int:
        return min(self.options.streams or SOLO_STREAMS, SOLO_STREAMS)


def engine_order(package: Package, own: Options, engine: str, cache: str) -> EngineOrder:
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


def load_best(package: Package, own: Options, cache: str) -> LanguageEngine:
    """One engine, or two as a duet. Raises PackageInvalid, ExtraMissing, ModelFailed."""
    wanted = Wanted(package, own, cache)
    names = engine_choice.candidates(
        package.file, engine_choice.installed(package.file), gpu=engine_choice.GPU.exists()
    )
    if not names:
        raise _nothing(package)
    if len(names) == 1:
        return wanted.start(names[0])
    key = engine_choice.key(package.version, own, names)
    kept = Path(cache) / "engine-choice" / f"{package.version}.json" if cache and package.version else None
    choice = engine_choice.recall(kept, key) if kept is not None else None
    if choice is not None:
        return _chosen(wanted, choice)
    busy = engine_choice.busy()
    engine, choice = _measured(wanted, names[0], names[1])
    if kept is not None and choice is not None and not busy:
        engine_choice.remember(kept, key, choice)
    return engine


def _nothing(package: Package) -> PeltonError:
    suffix = package.file.suffix
    if suffix in (".gguf", ".xml"):
        return ExtraMissing(f"model {package.name!r}, a language model,", "chat")
    if suffix == ".safetensors":
        return ExtraMissing(f"model {package.name!r}, a language model of PyTorch,", "lm")
    return PackageInvalid(
        f"model {package.name!r}: no engine reads {package.manifest.file!r}: .gguf, .xml (OpenVINO) and .safetensors work"
    )


def _chosen(wanted: Wanted, choice: Choice) -> LanguageEngine:
    if len(choice.engines) == 1:
        engine = wanted.start(choice.engines[0])
        engine.explain(choice.why)
        return engine
    solo = wanted.start(choice.engines[0], wanted.few())
    try:
        many = wanted.start(choice.engines[1])
    except PeltonError:
        solo.close()
        raise
    return Duet(solo, many, choice.crowd, choice.why)


def _measured(wanted: Wanted, few: str, more: str) -> tuple[LanguageEngine, Choice | None]:
    """Loads both, one after the other: each measures itself while the other one rests. No choice to be kept where one
    of them does not load."""
    try:
        solo = wanted.start(few, wanted.few())
    except (PackageInvalid, ModelFailed) as error:
        return _only(wanted, more, f"{more}, because {few} cannot load it: {error}"), None
    try:
        many = wanted.start(more)
    except (PackageInvalid, ModelFailed) as error:
        solo.close()
        return _only(wanted, few, f"{few}, because {more} cannot load it: {error}"), None
    choice = engine_choice.decide(solo.facts, many.facts, engine_choice.room_for_both(wanted.package.file))
    LOG.info("[%s] %s", wanted.package.name, choice.why)
    if len(choice.engines) == 2:
        return Duet(solo, many, choice.crowd, choice.why), choice
    solo.close()
    if choice.engines == (more,):
        many.explain(choice.why)
        return many, choice
    many.close()
    return _only(wanted, few, choice.why), choice


def _only(wanted: Wanted, engine: str, why: str) -> LanguageEngine:
    LOG.info("[%s] %s", wanted.package.name, why)
    process = wanted.start(engine)
    process.explain(why)
    return process
