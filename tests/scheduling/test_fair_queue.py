"""Who is next, and how many places each tenant may hold. Pure: replayed, without a clock."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from pelton.scheduling.fair_queue import GENERATED, REMEMBERED, FairQueue, shares


@dataclass(eq=False)
class Item:
    tenant: str
    number: int = 0
    priority: int = 0


def anyone(item: Item) -> bool:
    return True


def nobody(item: Item) -> bool:
    return False


def pushed(queue: FairQueue, *items: Item) -> None:
    for item in items:
        queue.enter(item.tenant)
        queue.push(item)


def taken(queue: FairQueue) -> list[tuple[str, int]]:
    order = []
    while (item := queue.pop(anyone, nobody)) is not None:
        order.append((item.tenant, item.number))
        queue.charge(item.tenant, 100, 0)
    return order


def test_a_flood_takes_turns_with_the_others():
    queue: FairQueue[Item] = FairQueue()
    pushed(queue, *(Item("flood", i) for i in range(6)), Item("lone", 0), Item("lone", 1))
    assert [tenant for tenant, _ in taken(queue)][:4].count("lone") == 2
    assert queue.count == 0


def test_within_a_tenant_the_first_comes_first():
    queue: FairQueue[Item] = FairQueue()
    pushed(queue, *(Item("a", i) for i in range(5)))
    assert taken(queue) == [("a", i) for i in range(5)]


def test_weights_are_shares_of_tokens():
    queue: FairQueue[Item] = FairQueue(lambda tenant: {"big": 3.0}.get(tenant, 1.0))
    pushed(queue, *(Item(tenant, i) for i in range(40) for tenant in ("big", "small")))
    assert [tenant for tenant, _ in taken(queue)][:40].count("big") == pytest.approx(30, abs=1)


def test_what_is_urgent_goes_before_what_is_fair_and_priority_before_both():
    queue: FairQueue[Item] = FairQueue()
    pushed(queue, Item("a", 1), Item("b", 2), Item("c", 3), Item("c", 4, priority=1))
    queue.charge("c", 1000, 0)
    order = [queue.pop(anyone, lambda item: item.number == 3).number for _ in range(2)]
    assert order == [4, 3]


def test_one_that_may_not_go_leaves_its_tenants_place_to_others():
    queue: FairQueue[Item] = FairQueue()
    pushed(queue, Item("a", 1), Item("b", 2))
    assert queue.pop(lambda item: item.tenant == "b", nobody).number == 2
    assert queue.pop(lambda item: item.tenant == "b", nobody) is None
    assert queue.count == 1


def test_who_was_away_saves_nothing_up_and_does_not_lose_its_debt():
    queue: FairQueue[Item] = FairQueue()
    pushed(queue, Item("busy"), Item("busy", 1))
    queue.charge("busy", 1000, 50)
    queue.enter("new")
    assert queue.counter("new") == queue.counter("busy") == 1000 + 50 * GENERATED
    queue.charge("new", 500, 0)
    queue.leave("new")
    queue.enter("new")
    assert queue.counter("new") == queue.counter("busy") + 500


def test_counters_of_tenants_that_are_away_are_bounded():
    queue: FairQueue[Item] = FairQueue()
    for number in range(REMEMBERED + 500):
        queue.enter(str(number))
        queue.leave(str(number))
    assert len(queue._away) == REMEMBERED
    assert not queue._counters
    assert not queue._active


def test_what_was_taken_out_early_stands_in_front_again():
    queue: FairQueue[Item] = FairQueue()
    pushed(queue, Item("a", 1), Item("a", 2))
    first = queue.pop(anyone, nobody)
    queue.push(first, front=True)
    assert taken(queue) == [("a", 1), ("a", 2)]
    with pytest.raises(ValueError, match="does not wait"):
        queue.remove(first)


def test_ahead_are_ones_own_the_more_urgent_and_one_turn_of_the_others():
    queue: FairQueue[Item] = FairQueue()
    pushed(queue, *(Item("a", i) for i in range(9)), *(Item("b", i) for i in range(9)), Item("c", 0, priority=2))
    assert len(queue.ahead("new", 0)) == 1 + 1 + 1  # one turn of a and b each, and what is more urgent
    assert len(queue.ahead("a", 0)) == 9 + 9 + 1
    assert len(queue.ahead("new", 5)) == 0


@pytest.mark.parametrize(
    ("wanted", "places", "expected"),
    [
        ({"a": 64, "b": 1}, 16, {"a": 15.0, "b": 1.0}),
        ({"a": 64, "b": 64}, 16, {"a": 8.0, "b": 8.0}),
        ({"a": 2, "b": 3}, 16, {"a": 2.0, "b": 3.0}),
        ({"a": 64, "b": 64, "c": 2}, 16, {"a": 7.0, "b": 7.0, "c": 2.0}),
        ({"a": 1, "b": 0}, 4, {"a": 1.0}),
        ({}, 4, {}),
    ],
)
def test_places_nobody_else_wants_are_everybodys(wanted, places, expected):
    assert shares(wanted, places) == expected


def test_shares_never_exceed_the_places_or_what_is_wanted():
    dice = random.Random(1)
    for _ in range(500):
        wanted = {str(i): dice.randrange(40) for i in range(dice.randrange(1, 12))}
        weights = {tenant: dice.choice([0.5, 1.0, 4.0]) for tenant in wanted}
        places = dice.randrange(1, 33)
        found = shares(wanted, places, weights.__getitem__)
        assert sum(found.values()) == pytest.approx(min(places, sum(wanted.values())))
        assert all(share <= wanted[tenant] + 1e-9 for tenant, share in found.items())
