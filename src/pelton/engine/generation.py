"""A generation: one prompt and its continuation, on its way through the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pelton.errors import PeltonError
from pelton.runtimes.step_engine import GREEDY, GrammarSpec, LmOutput, Sampling


@dataclass(slots=True, eq=False)
class Receipt:
    """What a generation took. Times are seconds; `device` is its share of the engine's steps, by tokens."""

    engine: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue: float = 0.0  # from its arrival to its first step
    prefill: float = 0.0  # from its first step to its first token
    decode: float = 0.0  # from its first to its last token
    device: float = 0.0


@dataclass(slots=True, eq=False)
class Generation:
    """What a protocol asks of `Engine.generate`. Times are seconds of the engine's monotonic clock.

    `heard` gets every output that carries tokens or logprobs, in order, on the event loop; then `done` is called exactly
    once: with None for a generation that ended by itself ("stop" or "length" was in its last output), else with why not.
    After `Engine.hang_up`, for a caller that left or has enough, neither is called again.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    heard: Callable[[LmOutput], None]
    done: Callable[[PeltonError | None], None]
    received: float
    sampling: Sampling = GREEDY
    stop_tokens: frozenset[int] = frozenset()
    grammar: GrammarSpec | None = None
    prompt_logprobs: bool = False
    tenant: str = ""
    salt: str | None = None  # None: the tenant; prefixes are shared between requests of one salt only
    priority: int = 0  # larger is more urgent
    timeout: float = 0.0  # the caller's own deadline for the whole answer; 0: none
    protocol: str = ""
    request_id: str = ""
    trace: str = ""
    route: int = 0
    key: int = 0
    part: bool = False  # one of several that answer a call together: the record is the call's
    satisfied: bool = False  # a caller that hangs up after a stop string has its answer: no cancellation
    receipt: Receipt = field(default_factory=Receipt)
