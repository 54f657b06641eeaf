"""A generation on its way through its lane: what it has got so far, when, and what is asked of the engine for it."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Final

from pelton.engine.generation import Generation
from pelton.errors import PeltonError
from pelton.runtimes.language import Order
from pelton.runtimes.step_engine import LmOutput, LmRequest, Share

NEVER: Final = float("inf")


class State(Enum):
    WAITING = "waiting"  # in the lane's queue
    SENT = "sent"  # in the engine
    RETURNING = "returning"  # in the engine, which was told to drop it; it will wait again
    LEAVING = "leaving"  # in the engine, which was told to drop it; its caller has its answer, or has left
    OUT = "out"  # nowhere


class Stream:
    """One generation. Times are seconds of the engine's clock, 0.0 for what has not happened."""

    __slots__ = (
        "asked", "begun", "computed", "deadline", "ended", "engine_id", "error", "finish", "first", "generation", "last",
        "priority", "runs", "state", "tenant", "timer", "tokens", "told_prompt",
    )  # fmt: skip

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.tenant = generation.tenant
        self.priority = generation.priority
        self.deadline = generation.received + generation.timeout if generation.timeout > 0.0 else NEVER
        self.state = State.OUT
        self.tokens: list[int] = []
        self.engine_id = ""
        self.runs = 0  # how often it was given to the engine
        self.asked = 0  # tokens that the engine was given it with...
        self.computed = 0  # ... and of these, those whose KV it has
        self.begun = 0.0  # when its first step began
        self.first = 0.0  # when its first token came
        self.last = 0.0  # ... and its latest
        self.ended = 0.0  # when its caller's part was over
        self.error: PeltonError | None = None
        self.finish = ""  # why it ended by itself
        self.told_prompt = False  # the prompt's logprobs were handed on
        self.timer: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        """Tokens that an engine has to compute before it makes a new one."""
        return len(self.generation.prompt) + len(self.tokens)

    @property
    def most(self) -> int:
        """Tokens of KV memory that it may need."""
        return len(self.generation.prompt) + self.generation.max_tokens

    @property
    def uncomputed(self) -> int:
        """Tokens that it was given to the engine with and whose KV the engine has not computed yet."""
        return max(0, self.asked - self.computed)

    @property
    def movable(self) -> bool:
        """Whether it may be taken out and go on later as a new request: nothing else depends on its first part."""
        generation, sampling = self.generation, self.generation.sampling
        return (
            generation.grammar is None
            and not (sampling.frequency or sampling.presence)
            and (not generation.prompt_logprobs or self.told_prompt)
        )

    def order(self, engine_id: str, weight: float) -> Order:
        """What the engine is asked for: the prompt and what is there of the answer already."""
        generation = self.generation
        salt = generation.tenant if generation.salt is None else generation.salt
        request = LmRequest(
            engine_id,
            (*generation.prompt, *self.tokens) if self.tokens else generation.prompt,
            generation.max_tokens - len(self.tokens),
            generation.sampling,
            generation.stop_tokens,
            salt,
            generation.tenant,
            weight,
            generation.prompt_logprobs and not self.told_prompt,
            -generation.priority,
        )
        return Order(request, generation.grammar)

    def sent(self, engine_id: str) -> None:
        """The engine has got it."""
        self.engine_id = engine_id
        self.state = State.SENT
        self.runs += 1
        self.asked, self.computed = self.size, 0

    def took_part(self, share: Share, began: float, device: float) -> int:
        """It was part of a step. Returns how many tokens of its prompt a cache has saved."""
        receipt = self.generation.receipt
        if not self.begun:
            self.begun = max(began, self.generation.received)
            receipt.queue = self.begun - self.generation.received
        receipt.device += device
        self.computed += share.prefill_tokens + share.cached_tokens
        if self.runs > 1:  # what is computed again was no prompt
            return 0
        receipt.cached_tokens += share.cached_tokens
        return share.cached_tokens

    def got(self, output: LmOutput, now: float) -> None:
        """New tokens came."""
        receipt = self.generation.receipt
        if output.prompt_logprobs is not None:
            self.told_prompt = True
        if not output.tokens:
            return
        self.tokens.extend(output.tokens)
        self.last = now
        receipt.completion_tokens = len(self.tokens)
        if not self.first:
            self.first = now
            self.begun = self.begun or self.generation.received
            receipt.prefill = now - self.begun
        else:
            receipt.decode = now - self.first
