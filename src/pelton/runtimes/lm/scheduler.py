"""What runs in the next step. Pure: no tensor, no clock, no token is looked at except to find guesses.

There is no prefill phase and no decode phase. Each sequence has a `length` (tokens that exist or were ordered)
and `computed` (positions whose KV exists or was ordered); `plan` gives each running sequence as many positions as
the budget allows, so that `computed` catches up with `length`. When it does, one new token is ordered.

`plan` may be called again before the tokens of the last plan are known (the engine overlaps the two): a plan
needs counts, not values. `commit` brings the values, one plan later.

As long as one tenant is here, all that can run does, first come, first served. Several share each step
(`fair_shares`): then some streams of a tenant with many may pause for a step, which costs them nothing but time.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq

from pelton.runtimes.lm.blocks import BlockPool, next_digest, root_digest
from pelton.runtimes.lm.fair_shares import (
    LONE_CHUNK,
    Demand,
    Pace,
    Tenant,
    Tenants,
    Tokens,
    deal,
    longest_step,
    prompt_tokens,
)
from pelton.runtimes.lm.plan import Limits as Limits
from pelton.runtimes.lm.plan import Part as Part
from pelton.runtimes.lm.plan import Plan as Plan
from pelton.runtimes.lm.plan import Progress as Progress
from pelton.runtimes.lm.plan import Sequence as Sequence
from pelton.runtimes.lm.plan import State as State
from pelton.runtimes.lm.prompt_lookup import propose
from pelton.runtimes.step_engine import FinishReason, LmRequest


class Scheduler:
    """First come, first served within a tenant and priority; the last to come gives its memory back first.

    `pace`: how long steps take. Without it steps are bounded in positions only.
    """

    def __init__(self, pool: BlockPool, limits: Limits, pace: Pace | None = None) -> None:
        if limits.token_budget < limits.max_seqs:
            raise ValueError(f"token_budget {limits.token_budget} must be at least max_seqs {limits.max_seqs}")
        self.pool, self.limits = pool, limits
        self.tenants = Tenants()
        self._pace = pace
        self._weights: Pace = pace or Tokens()
        self._queues: dict[Tenant, list[Sequence]] = {}  # who waits: heaps by order, none of them empty
        self.running: list[Sequence] = []  # sorted by order
        self.sequences: dict[str, Sequence] = {}
        self._slots = list(range(limits.max_seqs - 1, -1, -1))
        self._arrivals = 0
        self._plans = 0

    def add(self, request: LmRequest) -> Sequence:
        if request.id in self.sequences:
            raise ValueError(f"a request with id {request.id!r} is already here: ids must be unique")
        if not request.weight > 0.0:
            raise ValueError(f"request {request.id!r} has the weight {request.weight}: it must be above 0")
        need = self.pool.blocks_for(len(request.prompt) + request.max_tokens)
        if need > self.pool.count:
            raise ValueError(
                f"request {request.id!r} may need {need} blocks of {self.pool.size} tokens, the engine has "
                f"{self.pool.count}: send a shorter prompt or ask for fewer tokens"
            )
        self._arrivals += 1
        tenant = self.tenants.enter(request.tenant, request.weight)
        sequence = Sequence(request, self._arrivals, tenant, list(request.prompt), len(request.prompt))
        self.sequences[request.id] = sequence
        self._enqueue(sequence)
        return sequence

    @property
    def waiting(self) -> list[Sequence]:
        """Who holds no memory; of one tenant, a heap by order."""
        return [sequence for queue in self._queues.values() for sequence in queue]

    def _enqueue(self, sequence: Sequence) -> None:
        heapq.heappush(self._queues.setdefault(sequence.tenant, []), sequence)

    def _dequeue(self, sequence: Sequence) -> None:
        queue = self._queues[sequence.tenant]
        if queue[0] is sequence:
            heapq.heappop(queue)
        else:
            queue.remove(sequence)
            heapq.heapify(queue)
        if not queue:
            del self._queues[sequence.tenant]

    # ---- planning

    def plan(self) -> Plan:
        """Order the next step. An empty plan means: nothing can run before the last plan is committed."""
        self._plans += 1
        plan = Plan(self._plans)
        if len(self.tenants.here) > 1:
            self._plan_shared(plan)
        else:
            self._plan_all(plan)
        self._charge(plan)
        return plan

    def _plan_all(self, plan: Plan) -> None:
        """Everything that can run, in order."""
        streams = sum(1 for s in self.running if s.decodable)
        budget = self.limits.token_budget - streams
        if self._pace is not None:
            waiting = sum(len(queue) for queue in self._queues.values())
            prompts = sum(1 for s in self.running if s.in_prefill) + min(waiting, len(self._slots))
            budget = min(budget, prompt_tokens(self._pace, streams, prompts, self.limits.step_seconds))
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            if sequence.in_prefill:
                budget -= self._plan_prefill(plan, sequence, budget)
            else:
                budget -= max(0, self._plan_decode(plan, sequence, budget) - 1)
            if sequence.state is State.RUNNING:
                index += 1
        for queue in list(self._queues.values()):
            while queue and budget > 0 and not plan.preempted:
                count = self._admit(plan, queue[0], budget)
                if not count:
                    return
                budget -= count

    def _charge(self, plan: Plan) -> None:
        """What each tenant had of this step."""
        streams = sum(1 for part in plan.parts if not part.prefill)
        each = self._weights.step(streams) / streams if streams else 0.0
        for part in plan.parts:
            tenant = part.sequence.tenant
            tenant.served += (self._weights.prefill(part.prefill) if part.prefill else each) / tenant.weight

    # ---- planning for several tenants

    def _plan_shared(self, plan: Plan) -> None:
        """To each tenant what it is dealt: for its streams, its prompts that have begun, and those that wait."""
        line = self.tenants.in_turn()
        favoured = self._make_room(plan, line)
        ready: dict[Tenant, list[Sequence]] = {tenant: [] for tenant in line}
        prompts: dict[Tenant, list[Sequence]] = {tenant: [] for tenant in line}
        for sequence in self.running:
            if sequence.in_prefill:
                prompts[sequence.tenant].append(sequence)
            elif self._can_decode(sequence):
                ready[sequence.tenant].append(sequence)
        for tenant in line if favoured is None else [favoured]:
            if queue := self._queues.get(tenant):
                if not self._has_room(queue[0]):
                    break  # nobody who is behind it takes the room that it waits for
                prompts[tenant] += heapq.nsmallest(len(self._slots), queue)
        demands = [
            Demand(
                self.tenants.share(tenant),
                len(ready[tenant]),
                sum((s.prefill_until or s.length) - s.computed for s in prompts[tenant]),
            )
            for tenant in line
        ]
        deal(demands, self._weights, self.limits.token_budget, self._bound(demands), plan.number % 2 == 0)
        for tenant, demand in zip(line, demands, strict=True):
            ready[tenant].sort(key=lambda s: (s.request.priority, s.turn, s.arrival))
            for sequence in ready[tenant][: demand.given_streams]:
                if sequence.state is State.RUNNING and self._plan_decode(plan, sequence, 0):
                    sequence.turn = plan.number
        for tenant, demand in zip(line, demands, strict=True):
            self._plan_prompts(plan, prompts[tenant], demand.given_tokens)

    def _bound(self, demands: Seq[Demand]) -> float:
        """Seconds of the step to come."""
        if self._pace is None:
            return math.inf
        bound = longest_step(demands, self._pace)
        return bound if math.isfinite(bound) else max(self.limits.step_seconds, self._pace.prefill(LONE_CHUNK))

    def _plan_prompts(self, plan: Plan, prompts: list[Sequence], budget: int) -> None:
        for sequence in prompts:
            if budget <= 0:
                return
            if sequence.state is State.RUNNING:
                budget -= self._plan_prefill(plan, sequence, budget)
            elif sequence.request.id not in plan.preempted:
                count = self._admit(plan, sequence, budget)
                if not count:
                    return
                budget -= count

    def _make_room(self, plan: Plan, line: Seq[Tenant]) -> Tenant | None:
        """If who is next waits for a slot or memory within its share, take it from those that hold more than theirs.

        Returns for whom."""
        tenant = next((tenant for tenant in line if tenant in self._queues), None)
        if tenant is None or self._queues[tenant][0].pending:
            return None
        shared, need = self._needs(self._queues[tenant][0])
        share, held = self.tenants.share(tenant), self._held()
        slots, blocks = tenant.running + 1, held[tenant] + len(shared) + need
        if slots > max(1, int(share * self.limits.max_seqs)) or blocks > share * self.pool.count:
            return None
        if not self._slots:
            victim = self._over(lambda t: t.running - self.tenants.share(t) * self.limits.max_seqs)
            if victim is not None:
                self._preempt(plan, victim)
        while self._spare(shared, need) < len(self.running):
            held = self._held()
            victim = self._over(lambda t, held=held: held[t] - self.tenants.share(t) * self.pool.count)  # type: ignore[misc]
            if victim is None:
                break
            self._preempt(plan, victim)
        return tenant if plan.preempted else None

    def _over(self, excess: Callable[[Tenant], float]) -> Sequence | None:
        """The last in line of the tenant that has most more than its share; None if nobody has more."""
        most = max(self.tenants.here.values(), key=lambda tenant: excess(tenant) / tenant.weight)
        if excess(most) <= 0.0:
            return None
        return next((s for s in reversed(self.running) if s.tenant is most), None)

    def _held(self) -> Counter[Tenant]:
        """Blocks by tenant."""
        held: Counter[Tenant] = Counter()
        for sequence in self.running:
            held[sequence.tenant] += len(sequence.blocks)
        return held

    # ---- one sequence

    def _plan_decode(self, plan: Plan, sequence: Sequence, spare: int) -> int:
        """One position, or one and some guessed ones. Returns how many positions were ordered."""
        if not self._can_decode(sequence):
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

    def _can_decode(self, sequence: Sequence) -> bool:
        if sequence.computed != sequence.length - 1 or sequence.length >= sequence.limit:
            return False  # guesses are in flight, and how many hold is not known yet; or its last token is
        return not (sequence.pending and self._needs_values(sequence))

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
            victim = self._last_in_line(plan, sequence)
            self._preempt(plan, victim)
            if victim is sequence:
                return False
        self._place(plan, sequence, blocks)
        return True

    def _last_in_line(self, plan: Plan, sequence: Sequence) -> Sequence:
        """Who gives its memory to `sequence`: nobody who takes part in this step already. May be itself."""
        if len(self.tenants.here) == 1:
            return self.running[-1]
        held, planned = self._held(), {id(part.sequence) for part in plan.parts}
        free = [s for s in self.running if id(s) not in planned]
        return max(free, key=lambda s: (held[s.tenant] / s.tenant.weight, s.tenant is sequence.tenant, s.order))

    def _place(self, plan: Plan, sequence: Sequence, blocks: Seq[int]) -> None:
        for block in blocks:
            plan.placed.append((sequence.slot, len(sequence.blocks), block))
            sequence.blocks.append(block)

    def _preempt(self, plan: Plan, victim: Sequence) -> None:
        """Take its memory; it will be computed again from its tokens (or found in the prefix cache)."""
        self._leave(victim)
        victim.state = State.WAITING
        self._enqueue(victim)
        plan.preempted.append(victim.request.id)

    def _admit(self, plan: Plan, sequence: Sequence, budget: int) -> int:
        """Start a waiting sequence. Returns how many positions were ordered: 0 if there is no room for it yet."""
        if not self._has_room(sequence):
            return 0
        shared, need = self._needs(sequence)
        self._dequeue(sequence)
        self._start(plan, sequence, shared, need)
        return self._plan_prefill(plan, sequence, budget)

    def _has_room(self, sequence: Sequence) -> bool:
        """Leaves each running sequence one more block, or it would soon be preempted."""
        if not self._slots or sequence.pending:  # pending: preempted with a token still on the device
            return False
        return self._spare(*self._needs(sequence)) >= len(self.running)

    def _needs(self, sequence: Sequence) -> tuple[list[int], int]:
        """Blocks that a waiting sequence can share, and how many more it needs."""
        if sequence.request.prompt_logprobs:
            return [], self.pool.blocks_for(sequence.length)  # all of its positions must be computed
        self._digest_known(sequence)
        reusable = (len(sequence.tokens) - 1) // self.pool.size  # the last token must be computed
        shared = self.pool.match(sequence.digests[:reusable])
        return shared, self.pool.blocks_for(sequence.length) - len(shared)

    def _spare(self, shared: Seq[int], need: int) -> int:
        return self.pool.free - self.pool.idle_among(shared) - need

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
        sequence.tenant.running += 1
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
            self._dequeue(sequence)
        sequence.state = State.FINISHED
        self.tenants.leave(sequence.tenant)
        del self.sequences[sequence.request.id]

    def _leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        sequence.tenant.running -= 1
        self.pool.release(sequence.blocks)
        self._slots.append(sequence.slot)
        sequence.blocks, sequence.slot = [], -1
        sequence.computed = sequence.published = sequence.cached_tokens = sequence.prefill_until = 0

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
        if any(t.running != sum(s.tenant is t for s in self.running) for t in self.tenants.here.values()):
            raise AssertionError("a tenant's running sequences are miscounted")
        for s in self.waiting:
            if s.blocks or s.slot != -1 or s.computed:
                raise AssertionError(f"{s.request.id!r} waits and holds memory")
        for s in self.running:
            ordered = s.computed <= s.length + self.limits.guesses and s.length <= s.limit
            if not ordered or len(s.blocks) < self.pool.blocks_for(s.computed):
                raise AssertionError(f"{s.request.id!r} has KV that no block holds")
