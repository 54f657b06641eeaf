"""The scheduler and the block pool by themselves: no model, no tensor, no clock."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from pelton.runtimes.lm.blocks import BlockPool, next_digest, root_digest
from pelton.runtimes.lm.fair_shares import Pace
from pelton.runtimes.lm.prompt_lookup import LookupState, propose
from pelton.runtimes.lm.scheduler import Limits, Plan, Scheduler, Sequence, State
from pelton.runtimes.step_engine import LmRequest

pytestmark = pytest.mark.lm


def truth(history: tuple[int, ...]) -> int:
    """A stand-in for a model: the next token is a function of all before it, and repeats often."""
    return (sum(history[-3:]) * 7 + len(history) // 9) % 11


class Simulation:
    """Runs plans against a shadow of the device: which token's KV lies where.

    A block's lines remember (whole history up to the token); reading a line whose history differs from the
    sequence's own is the error that a wrong share, a leak or a late release would cause.
    """

    def __init__(self, blocks: int, size: int, limits: Limits, seed: int, pace: Pace | None = None) -> None:
        self.random = random.Random(seed)
        self.scheduler = Scheduler(BlockPool(blocks, size), limits, pace)
        self.size = size
        self.memory: dict[tuple[int, int], int] = {}
        self.tables: dict[int, dict[int, int]] = {}
        self.device: dict[Sequence, list[int]] = {}  # the device's own idea of each sequence's tokens
        self.outputs: dict[str, list[int]] = {}
        self.finished: Counter[str] = Counter()
        self.flights: list[tuple[Plan, list[list[int]]]] = []
        self.prefilled: Counter[str] = Counter()
        self.preemptions = 0

    def history(self, sequence: Sequence) -> list[int]:
        """Known tokens, and those that are still on the device."""
        return self.device.setdefault(sequence, list(sequence.request.prompt))

    def execute(self, plan: Plan) -> list[list[int]]:
        for slot, index, block in plan.placed:
            self.tables.setdefault(slot, {})[index] = block
        sampled: list[list[int]] = []
        budget = 0
        for part in plan.parts:
            sequence = part.sequence
            tokens = self.history(sequence)
            fed = [*tokens[: part.start + part.count - len(part.guesses)], *part.guesses]
            assert len(fed) == part.start + part.count, "a position was skipped or computed twice"
            budget += part.count
            for at in range(part.start, part.start + part.count):
                block = self.tables[sequence.slot][at // self.size]
                assert block in sequence.blocks
                self.memory[block, at % self.size] = hash((*fed[: at + 1], sequence.request.salt))
        assert budget <= self.scheduler.limits.token_budget
        for part in plan.parts:
            sequence = part.sequence
            tokens = self.history(sequence)
            fed = [*tokens[: part.start + part.count - len(part.guesses)], *part.guesses]
            for at in range(part.start + part.count):
                line = self.memory[self.tables[sequence.slot][at // self.size], at % self.size]
                assert line == hash((*fed[: at + 1], sequence.request.salt)), "read another's KV"
            values: list[int] = []
            if part.samples:
                first = part.start + part.count - len(part.guesses)
                values = [truth(tuple(fed[: first + i])) for i in range(1 + len(part.guesses))]
                accepted = 0
                while accepted < len(part.guesses) and part.guesses[accepted] == values[accepted]:
                    accepted += 1
                tokens.extend(values[: accepted + 1])
            sampled.append(values)
        return sampled

    def step(self) -> None:
        if len(self.flights) < 2:
            plan = self.scheduler.plan()
            self.preemptions += len(plan.preempted)
            if plan.parts:
                self.flights.append((plan, self.execute(plan)))
        self.scheduler.check()
        if self.flights and (len(self.flights) == 2 or self.random.random() < 0.7):
            self.commit()
        self.scheduler.check()

    def commit(self) -> None:
        plan, sampled = self.flights.pop(0)
        for item in self.scheduler.commit(plan, sampled):
            name = item.sequence.request.id
            self.outputs.setdefault(name, []).extend(item.tokens)
            assert item.tokens
            if item.finish:
                self.finished[name] += 1


def expected(request: LmRequest) -> list[int]:
    tokens = list(request.prompt)
    while len(tokens) < len(request.prompt) + request.max_tokens:
        tokens.append(truth(tuple(tokens)))
        if tokens[-1] in request.stop_tokens:
            break
    return tokens[len(request.prompt) :]


class Steady:
    """Steps whose time is known."""

    def step(self, streams: int) -> float:
        return 0.02 + 0.003 * streams if streams else 0.0

    def prefill(self, tokens: int) -> float:
        return 0.001 * tokens


@pytest.mark.parametrize("tenants", ["a", "ab", "abcd"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 5, 6, 24])
def test_random_traffic_in_tiny_memory_keeps_every_invariant(seed: int, tenants: str) -> None:
    limits = Limits(token_budget=12, max_seqs=6, guesses=3 * (seed % 2), guess_max_seqs=4, step_seconds=0.05)
    pace = Steady() if seed >= 3 else None
    simulation = Simulation(blocks=14 + seed % 3, size=4, limits=limits, seed=seed, pace=pace)
    rng, scheduler = simulation.random, simulation.scheduler
    requests: dict[str, LmRequest] = {}
    cancelled: set[str] = set()
    for step in range(1000):
        if rng.random() < 0.25 and len(scheduler.sequences) < 12:
            shared = (1, 2, 3, 4, 5, 6, 7, 8)[: rng.choice((0, 4, 8))]
            prompt = (*shared, *(rng.randrange(11) for _ in range(rng.randint(1, 18))))
            request = LmRequest(
                f"r{step}", prompt, rng.randint(1, 24), stop_tokens=frozenset({rng.randrange(30)}),
                salt=rng.choice("ab"), priority=rng.choice((0, 0, 0, 1)), tenant=rng.choice(tenants),
                weight=rng.choice((1.0, 1.0, 4.0)), prompt_logprobs=rng.random() < 0.1,
            )  # fmt: skip
            scheduler.add(request)
            requests[request.id] = request
        if rng.random() < 0.03 and scheduler.sequences:
            name = rng.choice(sorted(scheduler.sequences))
            assert scheduler.cancel(name)
            cancelled.add(name)
        simulation.step()
    for _ in range(5000):
        if not scheduler.sequences and not simulation.flights:
            break
        simulation.step()
    assert not scheduler.sequences, "a request never finished"
    assert scheduler.pool.free == scheduler.pool.count, "a block leaked"
    assert simulation.preemptions > 0
    for name, request in requests.items():
        if name in cancelled:
            assert simulation.finished[name] == 0
            assert expected(request)[: len(simulation.outputs.get(name, []))] == simulation.outputs.get(name, [])
        else:
            assert simulation.finished[name] == 1
            assert simulation.outputs[name] == expected(request)


def scheduler(blocks: int = 32, **limits: int) -> Scheduler:
    return Scheduler(BlockPool(blocks, 4), Limits(**{"token_budget": 16, "max_seqs": 4, **limits}))


def test_running_streams_take_part_in_every_step_while_a_long_prompt_is_computed() -> None:
    s = scheduler(blocks=64)
    s.add(LmRequest("short", (1, 2, 3), 50))
    s.commit(s.plan(), [[1]])
    s.add(LmRequest("long", tuple(range(100)), 2))
    for _ in range(7):
        plan = s.plan()
        parts = {part.sequence.request.id: part for part in plan.parts}
        assert parts["short"].count == 1
        assert sum(part.count for part in plan.parts) <= 16
        s.commit(plan, [[1] if part.samples else [] for part in plan.parts])


def test_a_plan_needs_no_values_of_the_plan_before() -> None:
    s = scheduler()
    s.add(LmRequest("a", (1, 2, 3), 4))
    plans = [s.plan() for _ in range(5)]
    assert [len(plan.parts) for plan in plans] == [1, 1, 1, 1, 0]
    assert [part.start for plan in plans for part in plan.parts] == [0, 3, 4, 5]


def test_the_last_to_come_is_preempted_and_goes_first_among_the_waiting() -> None:
    s = scheduler(blocks=6)
    for i, name in enumerate(("first", "second", "third")):
        s.add(LmRequest(name, (i,) * 7, 17))
    preempted: list[str] = []
    while not preempted:
        plan = s.plan()
        preempted += plan.preempted
        s.commit(plan, [[9] if part.samples else [] for part in plan.parts])
    assert preempted == ["second"]
    assert s.waiting[0].request.id == "second"
    assert s.sequences["first"].state is State.RUNNING


def test_what_can_never_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks"):
        scheduler(blocks=4).add(LmRequest("a", (1,) * 10, 7))
    with pytest.raises(ValueError, match="weight"):
        scheduler().add(LmRequest("a", (1,), 1, weight=0.0))
    with pytest.raises(ValueError, match="token_budget"):
        scheduler(token_budget=3)


def test_equal_prefixes_share_blocks_within_a_salt_only() -> None:
    pool = BlockPool(8, 4)
    chain = [next_digest(root_digest("a"), (1, 2, 3, 4))]
    chain.append(next_digest(chain[0], (5, 6, 7, 8)))
    blocks = pool.allocate(2)
    assert blocks is not None
    for block, digest in zip(blocks, chain, strict=True):
        pool.publish(block, digest)
    assert pool.match(chain) == blocks
    assert pool.match([next_digest(root_digest("b"), (1, 2, 3, 4))]) == []
    pool.hold(blocks)
    pool.release(blocks)
    pool.check([blocks])
    pool.release(blocks)
    assert pool.free == 8
    assert pool.match(chain) == blocks
    assert pool.allocate(7) is not None
    assert pool.match(chain) == blocks[:1], "the end of a prefix is forgotten before its beginning"
    pool.clear()
    assert pool.match(chain) == []


def test_a_pool_notices_a_block_released_twice() -> None:
    pool = BlockPool(2, 4)
    blocks = pool.allocate(1)
    assert blocks is not None
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released"):
        pool.release(blocks)


def test_guesses_are_what_followed_the_last_occurrence() -> None:
    assert propose([1, 2, 3, 4, 9, 2, 3], 2) == (4, 9)
    assert propose([1, 2, 3, 8, 2, 3, 7, 5, 2, 3], 3) == (7, 5, 2)
    assert propose([1, 2, 3, 4, 5], 3) == ()


def test_a_sequence_that_guesses_badly_pauses() -> None:
    state = LookupState()
    for length in range(1, 5):
        assert state.active(length)
        state.record(3, 0, length)
    assert not state.active(5)
    assert state.active(36)
