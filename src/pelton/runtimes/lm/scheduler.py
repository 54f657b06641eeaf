"""What runs in the next step. Pure: no tensor, no clock, no token is looked at except to find guesses.

There is no prefill phase and no decode phase. Each sequence has a `length` (tokens that exist or were ordered)
and `computed` (positions whose KV exists or was ordered); `plan` gives each running sequence as many positions as
the budget allows, so that `computed` catches up with `length`. When it does, one new token is ordered.

`plan` may be called again before the tokens of the last plan are known (the engine overlaps the two): a plan
needs counts, not values. `commit` brings the values, one plan later.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum

from pelton.runtimes.lm.blocks import BlockPool, Digest, next_digest, root_digest
from pelton.runtimes.lm.prompt_lookup import LookupState, propose
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


@dataclass(frozen=True, slots=True)
class Progress:
    """What one commit changed for one sequence: its new tokens and, on its last one, why it ended."""

    sequence: Sequence
    tokens: tuple[int, ...]
    finish: FinishReason | None


class Scheduler:
    """First come, first served within a priority; the last to come gives its memory back first."""

    def __init__(self, pool: BlockPool, limits: Limits) -> None:
        if limits.token_budget < limits.max_seqs:
            raise ValueError(f"token_budget {limits.token_budget} must be at least max_seqs {limits.max_seqs}")
        self.pool, self.limits = pool, limits
        self.waiting: list[Sequence] = []  # a heap by order
        self.running: list[Sequence] = []  # sorted by order
        self.sequences: dict[str, Sequence] = {}
        self._slots = list(range(limits.max_seqs - 1, -1, -1))
        self._arrivals = 0
        self._plans = 0

    def add(self, request: LmRequest) -> Sequence:
        if request.id in self.sequences:
            raise ValueError(f"a request with id {request.id!r} is already here: ids must be unique")
        need = self.pool.blocks_for(len(request.prompt) + request.max_tokens)
        if need > self.pool.count:
            raise ValueError(
                f"request {request.id!r} may need {need} blocks of {self.pool.size} tokens, the engine has "
                f"{self.pool.count}: send a shorter prompt or ask for fewer tokens"
            )
        self._arrivals += 1
        sequence = Sequence(request, self._arrivals, list(request.prompt), len(request.prompt))
        self.sequences[request.id] = sequence
        heapq.heappush(self.waiting, sequence)
        return sequence

    # ---- planning

    def plan(self) -> Plan:
        """Order the next step. An empty plan means: nothing can run before the last plan is committed."""
        self._plans += 1
        plan = Plan(self._plans)
        prefill_budget = self.limits.token_budget - sum(1 for s in self.running if s.decodable)
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            if sequence.in_prefill:
                prefill_budget -= self._plan_prefill(plan, sequence, prefill_budget)
            elif sequence.length < sequence.limit:
                prefill_budget -= max(0, self._plan_decode(plan, sequence, prefill_budget) - 1)
            if sequence.state is State.RUNNING:
                index += 1
        self._admit(plan, prefill_budget)
        return plan

    def _plan_decode(self, plan: Plan, sequence: Sequence, spare: int) -> int:
        """One position, or one and some guessed ones. Returns how many positions were ordered."""
        if sequence.computed != sequence.length - 1:
            return 0  # guesses are in flight: how many hold is not known yet
        if sequence.pending and self._needs_values(sequence):
            return 0
        guesses = self._guess(sequence, spare)
        start, count = sequence.computed, 1 + len(guesses)
        if not self._grow(plan, sequence, start + count):
            return 0
        plan.parts.append(Part(sequence, start, count, True, 0, guesses))
        sequence.computed += count
        sequence.length += 1
        return count

    def _plan_prefill(self, plan: Plan, sequence: Sequence, budget: int) -> int:
        count = min(sequence.prefill_until - sequence.computed, budget)
        if count <= 0:
            return 0
        start = sequence.computed
        samples = start + count == sequence.prefill_until
        plan.parts.append(Part(sequence, start, count, samples, count, cached=sequence.cached_tokens))
        sequence.cached_tokens = 0
        sequence.computed += count
        sequence.length += samples
        self._publish(sequence)
        return count

    def _needs_values(self, sequence: Sequence) -> bool:
        """Whether the last token's value decides about the next step: it then waits for the commit."""
        return sequence.request.grammar is not None or self._may_guess(sequence)

    def _may_guess(self, sequence: Sequence) -> bool:
        limits = self.limits
        if not limits.guesses or len(self.running) > limits.guess_max_seqs:
            return False
        request = sequence.request
        if request.grammar is not None or request.sampling.penalized or request.sampling.logprobs is not None:
            return False
        return sequence.lookup.active(sequence.length - len(request.prompt))

    def _guess(self, sequence: Sequence, spare: int) -> tuple[int, ...]:
        if sequence.pending or not self._may_guess(sequence):
            return ()
        count = min(self.limits.guesses, spare, sequence.limit - sequence.length - 1)
        guesses = propose(sequence.tokens, count) if count > 0 else ()
        if not guesses:
            sequence.lookup.record(0, 0, sequence.length - len(sequence.request.prompt))
        return guesses

    def _grow(self, plan: Plan, sequence: Sequence, tokens: int) -> bool:
        """Make room for `tokens` positions, if need be by preempting the last in line; False if that was itself."""
        need = self.pool.blocks_for(tokens) - len(sequence.blocks)
        if need <= 0:
            return True
        while (blocks := self.pool.allocate(need)) is None:
            victim = self.running[-1]
            self._preempt(plan, victim)
            if victim is sequence:
                return False
        self._place(plan, sequence, blocks)
        return True

    def _place(self, plan: Plan, sequence: Sequence, blocks: Seq[int]) -> None:
        for block in blocks:
            plan.placed.append((sequence.slot, len(sequence.blocks), block))
            sequence.blocks.append(block)

    def _preempt(self, plan: Plan, victim: Sequence) -> None:
        """Take its memory; it will be computed again from its tokens (or found in the prefix cache)."""
        self._leave(victim)
        victim.state = State.WAITING
        heapq.heappush(self.waiting, victim)
        plan.preempted.append(victim.request.id)

    def _admit(self, plan: Plan, budget: int) -> None:
        """Start waiting sequences in order while budget, slots and memory last."""
        while self.waiting and budget > 0 and self._slots and not plan.preempted:
            sequence = self.waiting[0]
            if sequence.pending:
                return  # preempted with a token still on the device
            self._digest_known(sequence)
            reusable = (len(sequence.tokens) - 1) // self.pool.size  # the last token must be computed
            shared = self.pool.match(sequence.digests[:reusable])
            need = self.pool.blocks_for(sequence.length) - len(shared)
            spare = self.pool.free - self.pool.idle_among(shared) - need
            if spare < len(self.running):
                return  # leaves each running sequence one more block, or it would soon be preempted
            heapq.heappop(self.waiting)
            self._start(plan, sequence, shared, need)
            budget -= self._plan_prefill(plan, sequence, budget)

    def _start(self, plan: Plan, sequence: Sequence, shared: list[int], need: int) -> None:
        self.pool.hold(shared)
        blocks = self.pool.allocate(need)
        if blocks is None:
            raise AssertionError("admission counted blocks that were not there")
        sequence.slot = self._slots.pop()
        self._place(plan, sequence, [*shared, *blocks])
        sequence.computed = len(shared) * self.pool.size
        sequence.prefill_until = sequence.length
        sequence.published = len(shared)
        sequence.cached_tokens = min(sequence.computed, len(sequence.request.prompt))
        sequence.state = State.RUNNING
        if self.running and sequence < self.running[-1]:
            self.running.append(sequence)
            self.running.sort()
        else:
            self.running.append(sequence)

    # ---- results

    def commit(self, plan: Plan, sampled: Seq[Seq[int]]) -> list[Progress]:
        """Take the new tokens of a plan: one list per part, empty for a part that samples nothing.

        A part with guesses brings one token per guess and one more; guesses are accepted up to the first that
        differs. Tokens of a sequence that ended meanwhile are dropped.
        """
        progress: list[Progress] = []
        for part, values in zip(plan.parts, sampled, strict=True):
            if part.samples and part.sequence.state is not State.FINISHED:
                progress.append(self._take(part, values))
        return progress

    def _take(self, part: Part, values: Seq[int]) -> Progress:
        sequence = part.sequence
        new = [values[0]]
        for guess, value in zip(part.guesses, values[1:], strict=True):
            if guess != new[-1]:
                break
            new.append(value)
        if part.guesses:
            self._settle_guesses(part, len(new) - 1)
        finish: FinishReason | None = None
        for i, token in enumerate(new):
            if token in sequence.request.stop_tokens:
                new, finish = new[: i + 1], "stop"
                break
        sequence.tokens.extend(new)
        if finish is None and len(sequence.tokens) >= sequence.limit:
            finish = "length"
        if finish is not None:
            self._finish(sequence)
        elif sequence.state is State.RUNNING:
            self._publish(sequence)
        return Progress(sequence, tuple(new), finish)

    def _settle_guesses(self, part: Part, accepted: int) -> None:
        """Positions of refused guesses do not count as computed; their KV is overwritten later."""
        sequence = part.sequence
        sequence.length += accepted
        sequence.lookup.record(len(part.guesses), accepted, sequence.length - len(sequence.request.prompt))
        if sequence.state is State.RUNNING:
            sequence.computed = part.start + 1 + accepted

    def cancel(self, request_id: str) -> bool:
        sequence = self.sequences.get(request_id)
        if sequence is None:
            return False
        self._finish(sequence)
        return True

    def stop_early(self, sequence: Sequence) -> None:
        """End a sequence for a reason of its own, such as a grammar that is complete."""
        self._finish(sequence)

    def _finish(self, sequence: Sequence) -> None:
        if sequence.state is State.RUNNING:
            self._publish(sequence)
            self._leave(sequence)
        else:
            self.waiting.remove(sequence)
            heapq.heapify(self.waiting)
        sequence.state = State.FINISHED
        del self.sequences[sequence.request.id]

    def _leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)
        self._slots.append(sequence.slot)
        sequence.blocks, sequence.slot = [], -1
        sequence.computed = sequence.published = sequence.cached_tokens = 0

    # ---- prefix cache

    def _digest_known(self, sequence: Sequence) -> None:
        size = self.pool.size
        while (len(sequence.digests) + 1) * size <= len(sequence.tokens):
            at = len(sequence.digests) * size
            parent = sequence.digests[-1] if sequence.digests else root_digest(sequence.request.salt)
            sequence.digests.append(next_digest(parent, sequence.tokens[at : at + size]))

    def _publish(self, sequence: Sequence) -> None:
        """Offer full blocks to others. Ordered is as good as computed: steps run in order on the device."""
        size = self.pool.size
        full = min(sequence.computed, len(sequence.tokens)) // size
        if full <= sequence.published or not self.pool.prefix_cache:
            return
        self._digest_known(sequence)
        for index in range(sequence.published, full):
            self.pool.publish(sequence.blocks[index], sequence.digests[index])
        sequence.published = full

    def check(self) -> None:
        """Raise AssertionError unless every invariant holds. For tests, and for when the engine is idle."""
        self.pool.check([s.blocks for s in self.running])
        slots = [s.slot for s in self.running] + self._slots
        if sorted(slots) != list(range(self.limits.max_seqs)):
            raise AssertionError("a slot is lost or used twice")
        if self.running != sorted(self.running):
            raise AssertionError("running sequences are out of order")
        if {id(s) for s in self.sequences.values()} != {id(s) for s in (*self.running, *self.waiting)}:
            raise AssertionError("a sequence is neither running nor waiting, or forgotten")
        for s in self.waiting:
            if s.blocks or s.slot != -1 or s.computed:
                raise AssertionError(f"{s.request.id!r} waits and holds memory")
        for s in self.running:
            ordered = s.computed <= s.length + self.limits.guesses and s.length <= s.limit
            if not ordered or len(s.blocks) < self.pool.blocks_for(s.computed):
                raise AssertionError(f"{s.request.id!r} has KV that no block holds")
