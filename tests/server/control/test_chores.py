"""The thread beside the event loop: what fails is said once, tried again, and keeps nothing else from its turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from pelton.errors import PeltonError
from pelton.server.control.chores import Chore, Chores

BOUND = 20.0


def until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + BOUND
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def test_a_chore_that_fails_is_told_of_once_and_once_more_when_it_works_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    broken = True

    def work() -> None:
        if broken:
            raise PeltonError("the store is away")

    chore = Chore("looking", 0.25, work)
    pauses = []
    for _ in range(8):
        begin = time.monotonic()
        chore.run()
        pauses.append(round(chore.due - begin, 1))
    assert [line.message for line in caplog.records] == ["looking failed, serving goes on as it is: the store is away"]
    assert pauses == sorted(pauses)
    assert pauses[-1] < 4.5, "it must be back within a moment"
    broken = False
    chore.run()
    chore.run()
    assert [line.message for line in caplog.records][1:] == ["looking works again"]


def test_one_that_fails_keeps_no_other_from_its_turn() -> None:
    done = threading.Event()

    def fail() -> None:
        raise ZeroDivisionError

    chores = Chores("test", [Chore("failing", 0.001, fail), Chore("working", 0.001, done.set)])
    chores.start()
    assert done.wait(BOUND)
    assert chores.close(BOUND)


def test_a_chore_can_be_hurried_and_the_end_waits_for_nothing() -> None:
    turns: list[float] = []
    chore = Chore("seldom", 3600.0, lambda: turns.append(time.monotonic()), first=3600.0)
    chores = Chores("test", [chore])
    chores.start()
    chores.hurry(chore)
    until(lambda: turns, "the hurried chore was not done")
    assert chores.close(BOUND)
    assert len(turns) == 1


def test_a_chore_that_hangs_does_not_hold_up_the_end() -> None:
    leave = threading.Event()
    began = threading.Event()

    def hang() -> None:
        began.set()
        leave.wait(BOUND)

    chores = Chores("test", [Chore("hanging", 1.0, hang)])
    chores.start()
    assert began.wait(BOUND)
    assert not chores.close(0.05)
    leave.set()
