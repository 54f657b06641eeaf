"""How many streams an engine runs that gives each of them a part of every step."""

from __future__ import annotations

from pelton.engine.company import LINGER, Company, bearable
from pelton.scheduling.token_speed import TokenSpeed

CROWDED = TokenSpeed(0.0, {1: 0.01, 16: 0.16})  # a crowd brings nothing
BATCHED = TokenSpeed(0.0, {1: 0.01, 16: 0.011})


def test_one_tenant_has_all_places():
    assert bearable(16, {"a": 64}, CROWDED) == 16
    assert bearable(16, {}, CROWDED) == 16


def test_tenants_that_all_ask_for_much_have_all_places():
    assert bearable(16, {"a": 64, "b": 8}, CROWDED) == 16
    assert bearable(16, {"a": 64, "b": 7}, CROWDED) < 16


def test_beside_a_tenant_that_asks_for_little_fewer_run_as_far_as_that_makes_it_faster():
    assert bearable(16, {"a": 64, "b": 1}, CROWDED) == 2
    assert bearable(16, {"a": 64, "b": 1, "c": 1, "d": 1}, CROWDED) == 5
    assert bearable(16, {"a": 64, "b": 1}, BATCHED) == 16


def test_every_tenant_has_a_place():
    assert bearable(16, {str(number): 1 for number in range(6)}, TokenSpeed(0.0, {1: 0.01, 2: 1.0})) == 6


def test_a_place_is_kept_for_who_is_expected():
    assert bearable(16, {"a": 64, "b": 0}, BATCHED) == 15
    assert bearable(16, {"a": 64, "b": 0}, CROWDED) == 1
    assert bearable(1, {"a": 64, "b": 0}, CROWDED) == 1


def test_a_tenant_is_expected_for_a_while_after_its_last_stream():
    company = Company()
    company.left("b", 1.0)
    company.left("a", 2.0)
    company.left("b", 3.0)
    assert company.wanted({"a": 5}, 4.0) == {"a": 5, "b": 0}
    assert company.wanted({}, 2.0 + LINGER) == {"a": 0, "b": 0}
    assert company.wanted({}, 2.5 + LINGER) == {"b": 0}
    assert company.wanted({"b": 1}, 3.5 + LINGER) == {"b": 1}
