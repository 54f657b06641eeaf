"""The contract of loaded language models: an engine in a process of its own, as the server sees it.

Every engine, one that Pelton drives step by step and one that brings streams of its own, is the same from here: orders
go in, step reports come back, tokens are ids of the model's own vocabulary. What text is, a `pelton.language` knows.

    engine = load(package, options)             # slow: starts the process and loads the weights; in a thread
    engine.attach(loop, listener)               # from now on reports come, on the loop
    engine.add(Order(LmRequest(...), grammar))  # never blocks, never raises: what cannot run comes back as "failed"
    engine.cancel(request_id)
    engine.close()
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from pelton.packages import Package
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.step_engine import GrammarSpec, LmRequest, StepReport

RUNTIME: Final = "language"  # in pelton.toml


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured of a model on this machine. A step of b streams that decode takes `decode[b]` seconds."""

    prefill: float  # prompt tokens per second
    decode: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """What an engine says of itself once it is loaded. What is False here must be refused, not ignored."""

    engine: str  # "openvino", "llama.cpp", "torch", "echo", or several with "+"
    context: int  # tokens of prompt and output together
    streams: int  # that run at once
    kv_tokens: int  # tokens that the KV cache holds
    speed: Speed
    why: str = ""  # why this engine, in a sentence for people
    grammar: bool = True
    bias: bool = True
    penalties: bool = True
    top_logprobs: int = 20  # most likely tokens that it can tell beside the chosen one
    prompt_logprobs: bool = True
    fair: bool = True  # it shares its steps between tenants itself


@dataclass(frozen=True, slots=True)
class Order:
    """A request and the grammar of its output, which the engine's process compiles."""

    request: LmRequest
    grammar: GrammarSpec | None = None


class Listener(Protocol):
    """Who is told what the engine does. All methods are called on the event loop and must not raise."""

    def reported(self, report: StepReport) -> None:
        """A step was done. The last output of a request has a finish reason."""

    def lost(self, reason: str) -> None:
        """The engine's process ended: nothing of what it was given will be answered. It is started again."""

    def back(self, facts: Facts) -> None:
        """The process runs again and takes orders."""


class LanguageEngine(Protocol):
    """A loaded engine. Orders that come while its process is away come back as "failed"."""

    @property
    def facts(self) -> Facts: ...

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the engine's processes that are up."""

    @property
    def restarts(self) -> int:
        """How often a process of it has ended by itself since it was loaded."""

    def attach(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None: ...

    def add(self, order: Order) -> None: ...

    def cancel(self, request_id: str) -> None: ...

    def close(self) -> None:
        """Ends the process. May be called from any thread; nothing is reported after it."""


# option `engine` of pelton.toml -> module of this room that builds the step engine in the engine's process
ENGINES: Final = {
    "openvino": "pelton.runtimes.openvino",
    "llama.cpp": "pelton.runtimes.llama_cpp",
    "torch": "pelton.runtimes.lm.serving",
    "echo": "pelton.testing.echo_engine",  # without weights: repeats its prompt
}


def load(package: Package, options: RuntimeOptions) -> LanguageEngine:
    """Starts the engine that the package asks for, or the best for this model on this machine. Slow.

    Raises PackageInvalid, ExtraMissing, ModelFailed."""
    engine: LanguageEngine = importlib.import_module("pelton.runtimes.engine_process").load(package, options)
    return engine
