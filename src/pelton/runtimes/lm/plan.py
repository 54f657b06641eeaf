"""What the scheduler speaks of: sequences, the parts that they have in a step, the limits of steps. Pure data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from pelton.runtimes.lm.blocks import Digest
from pelton.runtimes.lm.fair_shares import Tenant
from pelton.runtimes.lm.prompt_lookup import LookupState
from pelton.runtimes.step_engine import FinishReason, LmRequest


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """One request's progress. Lengths are in tokens and count the prompt."""

    request: LmRequest
    arrival: int
    tenant: Tenant
    tokens: list[int]  # known values; `length - len(tokens)` more are on the device
    length: int
    state: State = State.WAITING
    computed: int = 0
    prefill_until: int = 0  # positions below were known when it (re)started: computing them is prefill
    slot: int = -1  # row of the device's tables
    blocks: list[int] = field(default_factory=list)
    digests: list[Digest] = field(default_factory=list)  # of the full blocks of known tokens, from the first
    published: int = 0
    cached_tokens: int = 0  # to be reported with the next share
    turn: int = 0  # the plan that it decoded in last
    lookup: LookupState = field(default_factory=LookupState)

    @property
    def order(self) -> tuple[int, int]:
        return (self.request.priority, self.arrival)

    @property
    def pending(self) -> int:
        return self.length - len(self.tokens)

    @property
    def limit(self) -> int:
        return len(self.request.prompt) + self.request.max_tokens

    @property
    def in_prefill(self) -> bool:
        return self.computed < self.prefill_until

    @property
    def decodable(self) -> bool:
        return not self.in_prefill and self.length < self.limit

    def __lt__(self, other: Sequence) -> bool:
        return self.order < other.order


@dataclass(slots=True)
class Part:
    """One sequence's positions `start .. start + count` in one step."""

    sequence: Sequence
    start: int
    count: int
    samples: bool  # the last position's logits give a new token
    prefill: int  # how many of the positions are prefill
    guesses: tuple[int, ...] = ()  # the last len(guesses) positions hold guessed tokens
    cached: int = 0


@dataclass(slots=True)
class Plan:
    """One step. `placed` are (slot, index in the sequence, block): new entries of the block tables."""

    number: int
    parts: list[Part] = field(default_factory=list)
    placed: list[tuple[int, int, int]] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Limits:
    """`token_budget`: positions per step, decodes included; `max_seqs`: sequences that run at once."""

    token_budget: int = 2048
    max_seqs: int = 256
    guesses: int = 0  # prompt lookup: tokens guessed per step; 0: off
    guess_max_seqs: int = 8  # above so many running sequences the device is busy anyway
    step_seconds: float = math.inf  # a step with prompts in it aims to stay below, where the pace is known


@dataclass(frozen=True, slots=True)
class Progress:
    """What one commit changed for one sequence: its new tokens and, on its last one, why it ended."""

    sequence: Sequence
    tokens: tuple[int, ...]
    finish: FinishReason | None
