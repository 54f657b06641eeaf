"""Two echo engines in real processes as one. They tell themselves apart by the bias that one of them is given."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engine_ear import Ear, order

from pelton.packages import Package
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.duet import Duet, continued, movable
from pelton.runtimes.language import LanguageEngine, load
from pelton.runtimes.step_engine import GrammarSpec, Sampling, StepReport

Make = Callable[..., Duet]


class Told:
    """Counts what each half reported, between it and the duet."""

    def __init__(self, duet: Duet) -> None:
        self.seen: dict[str, set[str]] = {"solo": set(), "many": set()}
        for name, half in (("solo", duet._solo), ("many", duet._many)):
            self._watch(name, half)

    def _watch(self, name: str, half: Any) -> None:
        report_on = half.reported

        def reported(report: StepReport) -> None:
            self.seen[name].update(share.request_id for share in report.shares)
            report_on(report)

        half.reported = reported


@pytest.fixture
def duet(package: Callable[..., Package]) -> Iterator[Make]:
    """duet(crowd=2, solo=..., many=..., quiet=...): the options of the halves."""
    made: list[Duet] = []

    def make(crowd: int = 2, quiet: float = 0.0, solo: dict | None = None, many: dict | None = None) -> Duet:
        halves = [
            load(package(**{"seconds": 0.002, "streams": 4, **(options or {})}), RuntimeOptions())
            for options in (solo, many)
        ]
        made.append(Duet(*halves, crowd, quiet=quiet))
        return made[-1]

    yield make
    for one in made:
        one.close()


def play(duet: Duet, work: Callable[[Duet, Ear, Told], Any]) -> tuple[Ear, Told]:
    async def main() -> tuple[Ear, Told]:
        ear, told = Ear(), Told(duet)
        duet.attach(asyncio.get_running_loop(), ear)
        await work(duet, ear, told)
        await asyncio.to_thread(duet.close)
        return ear, told

    return asyncio.run(main())


def kill(pid: int) -> None:
    assert pid > 1  # 0 would be this process and its neighbours
    os.kill(pid, signal.SIGKILL)


def echo(prompt: tuple[int, ...], count: int) -> list[int]:
    return [prompt[i % len(prompt)] for i in range(count)]


def test_it_is_a_language_engine(duet: Make):
    one: LanguageEngine = duet(solo={"context": 100}, many={"context": 500, "streams": 9})
    assert (one.facts.engine, one.facts.context, one.facts.streams) == ("echo+echo", 500, 9)
    assert set(one.facts.speed.decode) == {1, 9}
    assert one.pid > 0


def test_a_lone_request_runs_on_the_first_and_many_on_the_second(duet: Make):
    async def work(duet, ear, told):
        duet.add(order("alone"))
        await ear.finished("alone")
        for i in range(5):
            duet.add(order(f"r{i}"))
        await ear.finished(*(f"r{i}" for i in range(5)))

    ear, told = play(duet(), work)
    assert told.seen["solo"] == {"alone"}
    assert told.seen["many"] == {f"r{i}" for i in range(5)}
    assert all(ear.tokens(name) == [5, 6, 7, 5] for name in ("alone", "r0", "r4"))


def test_a_running_request_follows_the_crowd_and_its_output_goes_on(duet: Make):
    """The echo of what was made so far shows where the second engine began: prompt + output is its prompt."""

    async def work(duet, ear, told):
        duet.add(order("first", (5, 6), 300))
        await ear.until(lambda: len(ear.tokens("first")) > 3)
        duet.add(order("second", (8, 9), 10))
        await ear.finished("first", "second")

    ear, told = play(duet(), work)
    assert "first" in told.seen["solo"] & told.seen["many"]
    assert told.seen["solo"] == {"first"}
    made = ear.tokens("first")
    assert len(made) == 300
    assert ear.finish("first") == "length"
    moved_at = next(
        at for at in range(1, 300) if made == (start := echo((5, 6), at)) + echo((5, 6, *start), 300 - at)
    )  # fmt: skip
    assert moved_at >= 4
    assert ear.tokens("second") == echo((8, 9), 10)
    assert not any(output.finish_reason == "cancelled" for output in ear.outputs["first"])


def test_cached_tokens_of_a_request_that_moved_are_counted_once(duet: Make):
    prompt = tuple(range(40))

    async def work(duet, ear, told):
        for name in ("crowd-a", "crowd-b"):  # the second engine knows the prompt
            duet.add(order(name, prompt, 2))
        await ear.finished("crowd-a", "crowd-b")
        duet.add(order("first", prompt, 300))
        await ear.until(lambda: len(ear.tokens("first")) > 3)
        duet.add(order("second", (8, 9), 10))
        await ear.finished("first", "second")

    ear, told = play(duet(), work)
    assert "first" in told.seen["solo"] & told.seen["many"]
    shares = [share for report in ear.reports for share in report.shares if share.request_id == "first"]
    assert sum(share.cached_tokens for share in shares) == 0


@pytest.mark.parametrize(
    "more",
    [
        {"grammar": GrammarSpec("regex", "a")},
        {"sampling": Sampling(presence=1.0)},
        {"sampling": Sampling(logprobs=1)},
        {"prompt_logprobs": True},
    ],
)
def test_a_request_with_a_state_begins_where_it_can_stay(duet: Make, more: dict):
    assert not movable(order("a", **more))

    async def work(duet, ear, told):
        duet.add(order("a", **more))
        await ear.finished("a")

    _, told = play(duet(), work)
    assert told.seen["solo"] == set()


def test_what_the_first_cannot_hold_runs_on_the_second(duet: Make):
    async def work(duet, ear, told):
        duet.add(order("long", tuple(range(90)), 20))
        await ear.finished("long")

    ear, told = play(duet(solo={"context": 100}), work)
    assert ear.finish("long") == "length"
    assert told.seen["solo"] == set()


def test_after_a_crowd_the_first_waits_until_it_is_quiet(duet: Make):
    async def work(duet, ear, told):
        for name in ("a", "b"):
            duet.add(order(name))
        await ear.finished("a", "b")
        duet.add(order("soon"))
        await ear.finished("soon")

    _, told = play(duet(quiet=60.0), work)
    assert told.seen == {"solo": set(), "many": {"a", "b", "soon"}}


def test_requests_can_be_cancelled_wherever_they_are(duet: Make):
    async def work(duet, ear, told):
        duet.add(order("not begun", max_tokens=5000))
        duet.cancel("not begun")
        await ear.finished("not begun")
        duet.add(order("solo", max_tokens=5000))
        await ear.until(lambda: ear.tokens("solo"))
        duet.add(order("many", max_tokens=5000))
        duet.cancel("solo")  # it is on its way to the second
        await ear.finished("solo")
        await ear.until(lambda: ear.tokens("many"))
        duet.cancel("many")
        await ear.finished("many")
        duet.cancel("many")
        duet.cancel("nobody")
        duet.add(order("next"))
        await ear.finished("next")

    ear, _ = play(duet(), work)
    assert {name: ear.finish(name) for name in ("not begun", "solo", "many")} == dict.fromkeys(
        ("not begun", "solo", "many"), "cancelled"
    )
    assert not ear.tokens("not begun")


def test_where_the_second_dies_its_requests_fail_and_the_first_goes_on(duet: Make):
    async def work(duet, ear, told):
        duet.add(order("a", max_tokens=5000))
        duet.add(order("b", max_tokens=5000))
        await ear.until(lambda: ear.tokens("a") and ear.tokens("b"))
        kill(duet._many.engine.pid)
        await ear.finished("a", "b")
        for name in ("c", "d", "e"):
            duet.add(order(name))
        await ear.finished("c", "d", "e")

    ear, told = play(duet(many={"load_seconds": 0.3}), work)
    assert ear.finish("a") == ear.finish("b") == "failed"
    assert "SIGKILL" in ear.error("a")
    assert {"c", "d", "e"} <= told.seen["solo"]
    assert ear.tokens("e") == [5, 6, 7, 5]
    assert ear.lives == []


def test_where_both_die_the_engine_is_lost_until_one_is_back(duet: Make):
    async def work(duet, ear, told):
        duet.add(order("a", max_tokens=5000))
        await ear.until(lambda: ear.tokens("a"))
        for half in (duet._many, duet._solo):
            kill(half.engine.pid)
        await ear.until(lambda: ear.lives[:2] == ["lost", "back"])
        duet.add(order("after"))
        await ear.finished("after")

    slow = {"load_seconds": 0.5}
    ear, _ = play(duet(solo=slow, many=slow), work)
    assert ear.lives == ["lost", "back"]
    assert ear.finish("after") == "length"


def test_a_drawn_text_that_moves_does_not_draw_the_same_again():
    drawn = order("a", (1, 2), 10, sampling=Sampling(temperature=1.0, seed=7))
    rest = continued(drawn, [3, 4, 5]).request
    assert (rest.prompt, rest.max_tokens, rest.sampling.seed) == ((1, 2, 3, 4, 5), 7, 10)


def test_closing_ends_both(duet: Make):
    async def work(duet, ear, told):
        duet.add(order("a", max_tokens=5000))
        await ear.until(lambda: ear.tokens("a"))

    one = duet()
    play(one, work)
    assert (one._solo.engine.pid, one._many.engine.pid) == (0, 0)
