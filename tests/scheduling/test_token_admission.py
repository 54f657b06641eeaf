"""Predictions of steps, first tokens and answers, out of what was seen."""

from __future__ import annotations

import random

import pytest

from pelton.scheduling.token_admission import (
    Ahead,
    answer_seconds,
    first_token_seconds,
    has_room,
    place_steps,
    tokens_left,
)
from pelton.scheduling.token_speed import TokenSpeed


def test_the_speed_of_a_machine_is_learned_from_its_steps():
    """Although something else was believed before: a step of b streams takes 15 + 3b ms, a token of a prompt 1 ms."""
    speed, dice = TokenSpeed(prefill=10_000.0, decode={1: 0.006, 16: 0.02}), random.Random(1)
    for _ in range(600):
        streams, prefill = dice.randrange(0, 17), dice.choice([0, 0, 0, 128, 256])
        if streams or prefill:
            took = (0.015 + 0.003 * streams if streams else 0.0) + 0.001 * prefill
            speed.observe(prefill, streams, took * dice.uniform(0.95, 1.05))
    for streams in (1, 4, 16):
        assert speed.step(streams) == pytest.approx(0.015 + 0.003 * streams, rel=0.2)
    assert speed.prefill(1000) == pytest.approx(1.0, rel=0.2)
    assert speed.first_token(512, 16) == pytest.approx(0.512 + 2 * 0.063 + 0.018, rel=0.25)


def test_one_outlier_changes_little():
    speed = TokenSpeed(1000.0, {1: 0.02, 16: 0.065})
    for _ in range(20):
        speed.observe(0, 4, 0.03)
    before = speed.step(4)
    speed.observe(0, 4, 3.0)
    speed.observe(256, 4, 30.0)
    assert speed.step(4) < 1.3 * before
    assert speed.prefill(1000) < 2.0


def test_the_parts_of_a_step_add_up_to_it():
    speed = TokenSpeed(1000.0, {1: 0.02, 16: 0.065})
    for prefill, decode, streams in [(100, 8, 8), (0, 5, 5), (64, 0, 0), (1, 30, 10)]:
        of_prefill, of_decode = speed.split(prefill, decode, streams, 0.5)
        assert prefill * of_prefill + decode * of_decode == pytest.approx(0.5)
    assert speed.split(0, 0, 0, 0.5) == (0.0, 0.0)
    of_prefill, of_decode = speed.split(64, 8, 8, 0.1)
    assert of_decode > 2 * of_prefill  # a new token costs more than one of a prompt


def test_the_usual_length_follows_the_answers():
    speed = TokenSpeed()
    for _ in range(100):
        speed.ended(30)
    assert speed.length == pytest.approx(30, rel=0.1)


def test_who_has_a_place_waits_for_none():
    assert place_steps(Ahead(0, 4, free=2, waiting=[100.0])) == 0.0
    assert place_steps(Ahead(0, 16, free=1, waiting=[100.0], left=[40.0, 9.0])) == 9.0
    assert place_steps(Ahead(0, 16, free=-1, left=[9.0, 40.0, 50.0])) == 40.0  # the first end makes room for others


def test_a_queue_is_a_matter_of_rounds():
    speed = TokenSpeed(1000.0, {1: 0.02, 16: 0.065})
    for _ in range(200):
        speed.ended(100)
    full = Ahead(prefill=0, streams=16, free=0, waiting=[100.0] * 48, left=[100.0] * 16)
    assert place_steps(full) == 4 * 100  # three rounds, and what runs
    first = first_token_seconds(full, 50, speed)
    assert first > 400 * 0.065 + 0.05
    assert answer_seconds(first, 20, 15, speed) == pytest.approx(first + 19 * 0.065)
    assert answer_seconds(first, 900, 15, speed) == pytest.approx(first + 99 * 0.065, rel=0.05)


@pytest.mark.parametrize(
    ("made", "most", "expected"), [(0, 300, 100.0), (0, 20, 20.0), (80, 300, 25.0), (290, 300, 10.0)]
)
def test_what_a_stream_has_left_is_a_guess_within_its_bounds(made, most, expected):
    assert tokens_left(made, most, 100.0) == expected


def test_one_tenant_fills_half_of_a_queue_and_a_new_one_finds_room():
    mine = 0
    while has_room(mine, mine, 1, 100):
        mine += 1
    assert mine == 50
    assert has_room(0, mine, 1, 100)
    other = 0
    while has_room(other, mine + other, 1, 100):
        other += 1
    assert other == 25
    assert not has_room(0, 100, 1, 100)
