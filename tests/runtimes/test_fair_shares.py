"""Steps shared between tenants, in simulated time: who waits how long beside whom."""

from __future__ import annotations

import random
from collections import Counter
from statistics import median

import pytest

from pelton.runtimes.lm.blocks import BlockPool
from pelton.runtimes.lm.fair_shares import Demand, Tenants, Tokens, deal, longest_step, prompt_tokens
from pelton.runtimes.lm.scheduler import Limits, Plan, Scheduler
from pelton.runtimes.step_engine import LmRequest


class Machine:
    """Two cores with a small model, about: 20 ms for one stream, 113 ms for 32; 1.1 ms for a prompt's token."""

    def step(self, streams: int) -> float:
        return 0.017 + 0.003 * streams if streams else 0.0

    def prefill(self, tokens: int) -> float:
        return 0.0011 * tokens


MACHINE = Machine()


class Seen:
    """What one tenant saw. Times in seconds."""

    def __init__(self) -> None:
        self.first: list[float] = []  # until the first token of each request
        self.gaps: list[float] = []  # between tokens of a request
        self.tokens = 0


class Clients:
    """Callers that send their next request when they have an answer."""

    def __init__(self, seconds: float, limits: Limits | None = None, blocks: int = 512) -> None:
        self.scheduler = Scheduler(BlockPool(blocks, 32), limits or Limits(256, 32, step_seconds=0.5), MACHINE)
        self.seconds = seconds
        self.seen: dict[str, Seen] = {}
        self.steps: list[tuple[int, int]] = []  # streams and prompt tokens
        self._random = random.Random(1)
        self._arrivals: list[tuple[float, str, int, int, float]] = []
        self._number = 0

    def come(self, tenant: str, callers: int, prompt: int = 66, weight: float = 1.0, after: float = 0.0) -> None:
        self.seen[tenant] = Seen()
        self._arrivals += [(after, tenant, prompt, 48, weight)] * callers

    def run(self) -> Clients:
        now = 0.0
        born: dict[str, tuple[float, int]] = {}
        last: dict[str, float] = {}
        while now < self.seconds:
            for arrival in [a for a in self._arrivals if a[0] <= now]:
                self._arrivals.remove(arrival)
                born[self._add(*arrival[1:])] = (arrival[0], arrival[2])
            plan = self.scheduler.plan()
            if not plan.parts:
                now = min(arrival[0] for arrival in self._arrivals)
                continue
            now += self._time(plan)
            for item in self.scheduler.commit(plan, [[1] if part.samples else [] for part in plan.parts]):
                request = item.sequence.request
                seen = self.seen[request.tenant]
                seen.tokens += 1
                start, prompt = born[request.id]
                if request.id in last:
                    seen.gaps.append(now - last[request.id])
                else:
                    seen.first.append(now - start)
                last[request.id] = now
                if item.finish:
                    pause = 0.3 * self._random.random()
                    self._arrivals.append((now + pause, request.tenant, prompt, 48, request.weight))
            self.scheduler.check()
        return self

    def _add(self, tenant: str, prompt: int, tokens: int, weight: float) -> str:
        self._number += 1
        ids = tuple(self._random.randrange(9999) for _ in range(prompt))
        count = tokens + self._random.randint(-8, 8)
        self.scheduler.add(LmRequest(str(self._number), ids, count, tenant=tenant, weight=weight, salt=tenant))
        return str(self._number)

    def _time(self, plan: Plan) -> float:
        streams = sum(1 for part in plan.parts if not part.prefill)
        prompt = sum(part.prefill for part in plan.parts)
        self.steps.append((streams, prompt))
        return MACHINE.step(streams) + MACHINE.prefill(prompt) + (0.0 if streams else 0.017)


def alone(prompt: int = 66) -> Seen:
    clients = Clients(20.0)
    clients.come("one", 1, prompt)
    return clients.run().seen["one"]


def worst(values: list[float], share: float = 0.95) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


@pytest.mark.parametrize("blocks", [512, 110])
def test_a_stream_beside_a_flood_keeps_within_twice_what_half_the_machine_would_give_it(blocks: int) -> None:
    free = alone()
    clients = Clients(30.0, blocks=blocks)
    clients.come("flood", 64)
    clients.come("one", 1)
    seen = clients.run().seen["one"]
    assert len(seen.first) > 8
    assert median(seen.gaps) <= 2.0 * median(free.gaps)
    assert worst(seen.gaps) <= 2.2 * median(free.gaps)
    assert median(seen.first) <= 3.0 * median(free.first)
    assert worst(seen.first) <= 4.0 * median(free.first)
    assert clients.seen["flood"].tokens > 30 * 80, "the flood has its half"


def test_long_prompts_of_one_tenant_do_not_freeze_the_streams_of_another() -> None:
    clients = Clients(30.0)
    clients.come("long", 8, prompt=1500)
    clients.come("one", 1)
    seen = clients.run().seen["one"]
    assert worst(seen.gaps, 0.99) <= 2.2 * median(alone().gaps)
    assert clients.seen["long"].first, "they are computed all the same"


def test_a_long_prompt_beside_a_flood_is_computed_at_half_the_speed() -> None:
    clients = Clients(30.0)
    clients.come("flood", 64)
    clients.come("long", 1, prompt=1500)
    seen = clients.run().seen
    assert median(seen["long"].first) <= 2.5 * median(alone(1500).first)
    assert worst(seen["flood"].gaps) < 1.0


def test_two_floods_share_by_weight() -> None:
    clients = Clients(30.0)
    clients.come("heavy", 64, weight=3.0)
    clients.come("light", 64, weight=1.0)
    seen = clients.run().seen
    assert 2.2 < seen["heavy"].tokens / seen["light"].tokens < 3.8


def test_a_tenant_that_was_away_has_saved_nothing_up() -> None:
    clients = Clients(30.0)
    clients.come("early", 64)
    clients.come("late", 64, after=15.0)
    seen = clients.run().seen
    both = seen["late"].tokens
    assert 0.8 * both < seen["early"].tokens - 15 * 190 < 1.25 * both


def test_ten_tenants_are_all_served() -> None:
    clients = Clients(30.0)
    clients.come("flood", 64)
    for number in range(9):
        clients.come(f"one {number}", 1)
    seen = clients.run().seen
    tokens = [seen[f"one {number}"].tokens for number in range(9)]
    assert min(tokens) > 0.8 * max(tokens)
    assert max(worst(seen[f"one {number}"].gaps) for number in range(9)) < 0.25


def test_one_tenant_alone_has_every_stream_in_every_step_and_is_served_in_order() -> None:
    scheduler = Scheduler(BlockPool(512, 32), Limits(256, 8), MACHINE)
    for number in range(12):
        scheduler.add(LmRequest(str(number), (number,) * 40, 20, tenant="only"))
    firsts: list[str] = []
    while scheduler.sequences:
        ready = {s.request.id for s in scheduler.running if s.decodable}
        plan = scheduler.plan()
        assert ready <= {part.sequence.request.id for part in plan.parts}
        firsts += [part.sequence.request.id for part in plan.parts if part.start == 0]
        scheduler.commit(plan, [[1] if part.samples else [] for part in plan.parts])
    assert firsts == [str(number) for number in range(12)]


def test_a_long_prompt_makes_steps_of_the_same_tenant_at_most_three_times_as_long() -> None:
    clients = Clients(20.0)
    clients.come("only", 4)
    clients.come("only", 1, prompt=2000, after=1.0)
    clients.run()
    mixed = [(s, p) for s, p in clients.steps if s >= 4 and p]
    assert any(p > 10 for _, p in mixed)
    assert all(MACHINE.step(s) + MACHINE.prefill(p) < 3.0 * MACHINE.step(s) for s, p in mixed)


def test_a_prompt_has_the_whole_step_while_nobody_decodes() -> None:
    clients = Clients(2.0)
    clients.come("only", 1, prompt=2000)
    clients.run()
    assert clients.steps[0] == (0, 256)


def test_many_who_wait_for_a_first_token_weigh_more_than_few_who_decode() -> None:
    few, many = (prompt_tokens(MACHINE, 3, prompts, 0.5) for prompts in (1, 13))
    assert 16 < few < 40
    assert many > 3 * few
    assert MACHINE.step(3) + MACHINE.prefill(many) < 0.5
    assert prompt_tokens(MACHINE, 0, 1, 0.5) > 256


def test_a_large_request_is_not_starved_by_small_ones_of_another_tenant() -> None:
    scheduler = Scheduler(BlockPool(32, 4), Limits(64, 8), MACHINE)
    for number in range(4):
        scheduler.add(LmRequest(f"small {number}", (number,) * 20, 20, tenant="many"))
    plan = scheduler.plan()
    scheduler.commit(plan, [[1] if part.samples else [] for part in plan.parts])
    scheduler.add(LmRequest("large", (9,) * 90, 4, tenant="one"))
    for step in range(300):
        if "large" not in scheduler.sequences:
            break
        if len(scheduler.sequences) < 8:
            scheduler.add(LmRequest(f"next {step}", (step,) * 20, 20, tenant="many"))
        plan = scheduler.plan()
        scheduler.commit(plan, [[1] if part.samples else [] for part in plan.parts])
    assert "large" not in scheduler.sequences


def test_a_tenant_within_its_share_takes_a_slot_from_one_above() -> None:
    scheduler = Scheduler(BlockPool(512, 4), Limits(64, 4), MACHINE)
    for number in range(6):
        scheduler.add(LmRequest(f"many {number}", (number,) * 8, 100, tenant="many"))
    for _ in range(3):
        plan = scheduler.plan()
        scheduler.commit(plan, [[1] if part.samples else [] for part in plan.parts])
    scheduler.add(LmRequest("one", (7,) * 8, 10, tenant="one"))
    plan = scheduler.plan()
    assert plan.preempted == ["many 3"]
    assert "one" in {part.sequence.request.id for part in plan.parts}
    scheduler.check()


def test_what_is_dealt_fits_the_step_and_everybody_who_decodes_has_something() -> None:
    rng = random.Random(3)
    for _ in range(300):
        shares = [rng.choice((1.0, 1.0, 5.0)) for _ in range(rng.randint(2, 6))]
        demands = [Demand(s / sum(shares), rng.randint(0, 6), rng.choice((0, 10, 500))) for s in shares]
        if not any(d.streams or d.tokens for d in demands):
            continue
        bound = longest_step(demands, MACHINE)
        deal(demands, MACHINE, 64, bound, rng.random() < 0.5)
        streams, tokens = sum(d.given_streams for d in demands), sum(d.given_tokens for d in demands)
        assert 0 < streams + tokens <= 64
        assert all(0 <= d.given_streams <= d.streams and 0 <= d.given_tokens <= d.tokens for d in demands)
        if streams + tokens > 1:
            assert MACHINE.step(streams) + MACHINE.prefill(tokens) <= bound + 1e-9


def test_without_a_pace_everybody_decodes_and_prompts_share_the_rest_by_weight() -> None:
    demands = [Demand(0.25, 3, 1000), Demand(0.75, 2, 1000)]
    deal(demands, Tokens(), 165, float("inf"), True)
    assert [d.given_streams for d in demands] == [3, 2]
    assert sum(d.given_tokens for d in demands) == 160
    assert 2.0 < demands[1].given_tokens / demands[0].given_tokens < 4.0


def test_counters_of_tenants_that_left_are_kept_and_never_fall() -> None:
    tenants = Tenants()
    first = tenants.enter("a", 1.0)
    first.served = 5.0
    second = tenants.enter("b", 2.0)
    assert second.served == 5.0
    tenants.leave(first)
    second.served = 3.0
    assert tenants.enter("a", 1.0).served == 5.0
    assert [tenant.name for tenant in tenants.in_turn()] == ["b", "a"]
    assert Counter(tenant.requests for tenant in tenants.here.values()) == {1: 2}
