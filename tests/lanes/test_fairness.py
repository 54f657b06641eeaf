"""Who gets what when many ask, in simulated time: minutes of load in a second, and the same every time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from simulated import Caller, House, decode, one_by_one

from pelton.engine.company import LINGER


def alone(speed: float, decode: Callable[[int], float] = decode) -> Caller:
    """One caller on a machine of its own."""
    house = House(speed=speed, decode=decode)
    caller = Caller(house, "lone", 64, 60)
    house.loop.run(until=30.0)
    return caller


@pytest.mark.parametrize(("decode", "answers"), [(decode, 100), (one_by_one, 60)])
def test_one_stream_beside_sixty_four_of_another_tenant_gets_at_least_half_of_its_fair_share(decode, answers):
    """Its fair share is a machine of half the speed; twice the times that it has there are the bound."""
    house = House(decode=decode)
    flood = [Caller(house, "flood", 64, 100) for _ in range(64)]
    house.loop.run(until=20.0)
    lone = Caller(house, "lone", 64, 60, pause=0.5)
    house.loop.run(until=35.0)
    for times in (lone.first, lone.each):
        times.clear()  # of the time in which streams that ran already come to their end
    house.loop.run(until=115.0)
    fair = alone(0.5, decode)
    assert len(lone.first) > 12
    assert not lone.errors
    assert sorted(lone.first)[int(0.9 * len(lone.first))] < 2 * median(fair.first)
    assert sorted(lone.each)[int(0.9 * len(lone.each))] < 2 * median(fair.each)
    assert sum(len(caller.first) for caller in flood) > answers  # and the others go on


def test_without_fair_shares_it_would_wait_for_a_round_of_the_flood():
    """The test above is one that can fail: as one tenant, the same caller waits its turn."""
    house = House()
    for _ in range(64):
        Caller(house, "flood", 64, 100)
    house.loop.run(until=20.0)
    lone = Caller(house, "flood", 64, 60, pause=0.5)
    house.loop.run(until=100.0)
    assert median(lone.first) > 10 * median(alone(speed=0.5).first)


def test_an_engine_is_full_but_for_a_tenant_that_asks_for_little():
    house = House(decode=one_by_one)
    for number in range(64):
        Caller(house, f"flood {number % 2}", 64, 100)
    house.loop.run(until=30.0)
    assert house.lane.running >= 16  # who has many streams has them slow by its own doing
    lone = Caller(house, "lone", 64, 60, pause=0.5)
    house.loop.run(until=80.0)
    assert house.lane.running <= 6
    lone.ask_no_more()
    house.loop.run(until=80.0 + 3 * LINGER)
    assert house.lane.running >= 16
    assert house.lane.busy_seconds > 0.98 * house.loop.now


def test_tenants_with_many_streams_each_get_their_weight_in_tokens():
    house = House()
    house.lane.queue.weight = lambda tenant: 3.0 if tenant == "big" else 1.0
    big = [Caller(house, "big", 64, 100) for _ in range(32)]
    small = [Caller(house, "small", 64, 100) for _ in range(32)]
    house.loop.run(until=150.0)
    shares = [sum(len(caller.first) for caller in callers) for callers in (big, small)]
    assert shares[0] / shares[1] == pytest.approx(3.0, rel=0.2)


def test_many_tenants_with_one_stream_each_are_served_alike():
    house = House()
    callers = [Caller(house, f"tenant {i}", 64, 100) for i in range(40)]
    house.loop.run(until=150.0)
    answers = [len(caller.first) for caller in callers]
    assert max(answers) - min(answers) <= 2


def test_what_is_taken_keeps_its_target_and_the_machine_stays_busy():
    """Twenty times more callers than places: what is refused is told so at once, what is taken comes in time."""
    house = House(target=5.0, stated=True)
    callers = [Caller(house, f"tenant {i % 5}", 64, 100) for i in range(320)]
    house.loop.run(until=90.0)
    first = sorted(seconds for caller in callers for seconds in caller.first)
    assert len(first) > 100
    assert first[int(0.95 * len(first))] < 1.15 * 5.0
    assert {type(error).__name__ for caller in callers for error in caller.errors} == {"Overloaded"}
    assert house.lane.busy_seconds > 0.95 * 90
