"""What an engine's process is told to build, and what building gives. Every module of `language.ENGINES` has

    def build(order: EngineOrder) -> Built: ...

which runs in the engine's own process, once. It may raise PackageInvalid, ExtraMissing or ModelFailed; anything else is
shown as ModelFailed. It may print: standard output and error go to the server's log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from pelton.errors import PackageInvalid
from pelton.packages import Package
from pelton.runtimes.language import Facts
from pelton.runtimes.step_engine import Grammar, GrammarSpec, StepEngine

Own = TypeVar("Own")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`options` of pelton.toml. 0 leaves a number to the engine.

    `engine`: "auto" takes the best for this model on this machine. `context`: tokens of prompt and output together.
    `streams`: that run at once. `threads`: of the engine. `kv_tokens`: what the KV cache holds, for all streams.
    `prefix_cache`: prompts share their beginnings within a tenant, between all, or never. `start_seconds`: until the
    weights are loaded, conversions included. `stall_seconds`: without a sign of life while requests run, after which the
    process is ended. `engine_options`: what only this engine knows.
    """

    engine: str = "auto"
    context: int = 0
    streams: int = 0
    threads: int = 0
    kv_tokens: int = 0
    prefix_cache: Literal["tenant", "shared", "off"] = "tenant"
    start_seconds: float = 1800.0
    stall_seconds: float = 120.0
    engine_options: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class EngineOrder:
    """Which weights to load and how. All of it crosses to the engine's process as data."""

    model: str  # the package's name
    engine: str  # a key of `language.ENGINES`
    folder: str  # of the package; `tokenizer.json` and `language.json` lie there
    file: str  # the weights, relative to the folder
    version: str = ""  # digest of the package's files; "" for a package that is not stored yet
    options: Options = field(default_factory=Options)
    cache: str = (
        ""  # folder for derived files: "<engine>-<release>/<version>" inside is the engine's; "": do not keep any
    )
    threads: int = 0  # of the engine; 0: it decides

    @property
    def path(self) -> Path:
        """The weights."""
        return Path(self.folder) / self.file

    def own(self, kind: type[Own]) -> Own:
        """`options.engine_options` as a Struct of the engine. Raises PackageInvalid that names the key."""
        try:
            return msgspec.convert(self.options.engine_options, kind)
        except msgspec.ValidationError as error:
            raise PackageInvalid(f"model {self.model!r}: options.engine_options ({self.engine}): {error}") from None


@dataclass(frozen=True, slots=True)
class Built:
    """A step engine that has loaded its weights and is warm.

    `grammars` turns a spec into what the engine expects as `LmRequest.grammar`, in a thread of its own while the engine
    steps; it raises ValueError for one that cannot be. None: `pelton.language.grammar` with the package's tokenizer.

    `close` is called when the process ends in good order.

    An engine that waits inside of `step` may have a method `interrupt(fds)`: it is called once, before the first step,
    and from then on `step` returns early, without outputs if need be, when one of these files becomes readable.
    """

    engine: StepEngine
    facts: Facts
    grammars: Callable[[GrammarSpec], Grammar] | None = None
    close: Callable[[], None] | None = None


def read_options(package: Package) -> Options:
    """Raises PackageInvalid with the option's name."""
    where = f"model {package.name!r}: options"
    try:
        own = msgspec.convert(package.manifest.options, Options)
    except msgspec.ValidationError as error:
        raise PackageInvalid(f"{where}: {error}") from None
    for key in ("context", "streams", "threads", "kv_tokens"):
        if getattr(own, key) < 0:
            raise PackageInvalid(f"{where}.{key} must be 0 (the engine decides) or more, not {getattr(own, key)}")
    for key in ("start_seconds", "stall_seconds"):
        if not 0 < getattr(own, key) <= 86400:
            raise PackageInvalid(f"{where}.{key} must be above 0 and at most 86400, not {getattr(own, key)}")
    return own
