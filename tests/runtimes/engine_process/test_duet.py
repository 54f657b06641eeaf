"""Two echo engines as one: mostly on the loop itself, once in real processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from engine_ear import Ear, order

from pelton.packages import Package
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.duet import Duet, Pace, Seen, beginning, continued, movable
from pelton.runtimes.language import LanguageEngine, Speed, load
from pelton.runtimes.step_engine import GrammarSpec, Sampling, Share, StepReport
from pelton.testing.echo_engine import EchoEngine
from pelton.testing.local_engine import LocalEngine, echo_facts


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


def make(crowd: int = 2, quiet: float = 0.0, solo: dict | None = None, many: dict | None = None) -> Duet:
    """A duet of two local engines; `solo` and `many` are the arguments of each."""
    halves = []
    for options in (solo, many):
        size = {"streams": 4, "context": 8192, **(options or {})}
        speed = size.pop("speed", None)
        facts = echo_facts(**size)
        halves.append(
            LocalEngine(lambda size=size: EchoEngine(**size), replace(facts, speed=speed or facts.speed), pause=0.0002)
        )
    return Duet(*halves, crowd, quiet=quiet)


def play(duet: Duet, work: Callable[[Duet, Ear, Told], Any]) -> tuple[Ear, Told]:
    async def main() -> tuple[Ear, Told]:
        ear, told = Ear(), Told(duet)
        duet.attach(asyncio.get_running_loop(), ear)
        await work(duet, ear, told)
        await asyncio.to_thread(duet.close)
        return ear, told

    return asyncio.run(main())


def echo(prompt: tuple[int, ...], count: int) -> list[int]:
    return [prompt[i % len(prompt)] for i in range(count)]


def test_it_is_a_language_engine():
    one: LanguageEngine = make(solo={"context": 100}, many={"context": 500, "streams": 9})
    assert (one.facts.engine, one.facts.context, one.facts.streams) == ("echo+echo", 500, 9)
    assert set(one.facts.speed.decode) == {1, 9}
    assert (one.pids, one.restarts) == ((), 0)


def test_a_lone_request_runs_on_the_first_and_many_on_the_second():
    async def work(duet, ear, told):
        duet.add(order("alone"))
        await ear.finished("alone")
        for i in range(5):
            duet.add(order(f"r{i}"))
        await ear.finished(*(f"r{i}" for i in range(5)))

    ear, told = play(make(), work)
    assert told.seen["solo"] == {"alone"}
    assert told.seen["many"] == {f"r{i}" for i in range(5)}
    assert all(ear.tokens(name) == [5, 6, 7, 5] for name in ("alone", "r0", "r4"))


def test_a_running_request_follows_the_crowd_and_its_output_goes_on():
    """The echo of what was made so far shows where the second engine began: prompt + output is its prompt."""

    async def work(duet, ear, told):
        duet.add(order("first", (5, 6), 300))
        await ear.until(lambda: len(ear.tokens("first")) > 3)
        duet.add(order("second", (8, 9), 10))
        await ear.finished("first", "second")

    ear, told = play(make(), work)
    assert "first" in told.seen["solo"] & told.seen["many"]
    assert told.seen["solo"] == {"first"}
    made = ear.tokens("first")
    assert len(made) == 300
    assert ear.finish("first") == "length"
    moved_at = next(
        at for at in range(1, 300) if made == (start := echo((5, 6), at)) + echo((5, 6, *start), 300 - at)
    )  # fmt: skip
    assert 0 < moved_at < 300
    assert ear.tokens("second") == echo((8, 9), 10)
    assert not any(output.finish_reason == "cancelled" for output in ear.outputs["first"])


def test_cached_tokens_of_a_request_that_moved_are_counted_once():
    prompt = tuple(range(40))

    async def work(duet, ear, told):
        for name in ("crowd-a", "crowd-b"):  # the second engine knows the prompt
            duet.add(order(name, prompt, 2))
        await ear.finished("crowd-a", "crowd-b")
        duet.add(order("first", prompt, 300))
        await ear.until(lambda: len(ear.tokens("first")) > 3)
        duet.add(order("second", (8, 9), 10))
        await ear.finished("first", "second")

    slow = Speed(1.0, {1: 1.0})  # no place for a lone request, whatever it knows
    ear, told = play(make(many={"speed": slow}), work)
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
def test_a_request_with_a_state_begins_where_it_can_stay(more: dict):
    assert not movable(order("a", **more))

    async def work(duet, ear, told):
        duet.add(order("a", **more))
        await ear.finished("a")

    _, told = play(make(), work)
    assert told.seen["solo"] == set()


def test_what_the_first_cannot_hold_runs_on_the_second():
    async def work(duet, ear, told):
        duet.add(order("long", tuple(range(90)), 20))
        await ear.finished("long")

    ear, told = play(make(solo={"context": 100}), work)
    assert ear.finish("long") == "length"
    assert told.seen["solo"] == set()


def test_a_long_prompt_runs_where_it_is_read_faster_until_the_other_knows_it():
    """The second reads ten times as fast and writes half as fast."""
    duet = make(solo={"speed": Speed(100.0, {1: 0.01})}, many={"speed": Speed(1000.0, {1: 0.02})})
    for half in (duet._solo, duet._many):
        half.pace.saw = lambda report: None  # an echo takes no time at all
    long = tuple(range(1000))

    async def work(duet, ear, told):
        for name, prompt in (("short", (1, 2, 3)), ("long", long), ("another", long[:500])):
            duet.add(order(name, prompt, 100, salt="me"))
            await ear.finished(name)
        duet._seen.append(Seen(True, "me", long))
        for name, salt in (("next turn", "me"), ("of another", "you")):
            duet.add(order(name, (*long, 1), 100, salt=salt))
            await ear.finished(name)

    _, told = play(duet, work)
    assert told.seen["solo"] == {"short", "next turn"}
    assert told.seen["many"] == {"long", "another", "of another"}


def test_how_fast_a_half_is_is_learned_from_what_it_does():
    pace = Pace(Speed(100.0, {1: 0.1}))
    for _ in range(200):
        pace.saw(StepReport(1, (Share("a", 0, 1, 0),), (), 0.02, (), 0, 1, 0))
        pace.saw(StepReport(1, (Share("a", 100, 0, 0),), (), 0.5, (), 0, 1, 0))
        pace.saw(StepReport(1, (Share("a", 0, 1, 0), Share("b", 0, 1, 0)), (), 9.0, (), 0, 2, 0))  # not alone
    assert pace.seconds(0, 1) == pytest.approx(0.02, rel=0.01)
    assert pace.seconds(1, 0) == pytest.approx(0.005, rel=0.01)


def test_a_half_that_was_measured_at_a_bad_moment_gets_its_chance():
    duet = make(solo={"speed": Speed(1e6, {1: 0.03})}, many={"speed": Speed(1e6, {1: 0.02})})

    async def work(duet, ear, told):
        for i in range(100):
            duet.add(order(f"r{i}", max_tokens=1))
            await ear.finished(f"r{i}")
            if told.seen["solo"]:
                break

    _, told = play(duet, work)
    assert told.seen["solo"]
    assert len(told.seen["many"]) > 5


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [((), (1,), 0), ((1, 2, 3), (1, 2, 4), 2), ((1, 2), (1, 2, 3), 2), ((2,), (1,), 0), (range(99), range(99), 99)],
)
def test_what_two_prompts_begin_with(a, b, expected: int):
    assert beginning(tuple(a), tuple(b)) == beginning(tuple(b), tuple(a)) == expected


def test_after_a_crowd_the_first_waits_until_it_is_quiet():
    async def work(duet, ear, told):
        for name in ("a", "b"):
            duet.add(order(name))
        await ear.finished("a", "b")
        duet.add(order("soon"))
        await ear.finished("soon")

    _, told = play(make(quiet=60.0), work)
    assert told.seen == {"solo": set(), "many": {"a", "b", "soon"}}


def test_requests_can_be_cancelled_wherever_they_are():
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

    ear, _ = play(make(), work)
    assert {name: ear.finish(name) for name in ("not begun", "solo", "many")} == dict.fromkeys(
        ("not begun", "solo", "many"), "cancelled"
    )
    assert not ear.tokens("not begun")


def test_where_the_second_dies_its_requests_fail_and_the_first_goes_on():
    async def work(duet, ear, told):
        duet.add(order("a", max_tokens=5000))
        duet.add(order("b", max_tokens=5000))
        await ear.until(lambda: ear.tokens("a") and ear.tokens("b"))
        duet._many.engine.kill("killed by SIGKILL")
        await ear.finished("a", "b")
        for name in ("c", "d", "e"):
            duet.add(order(name))
        await ear.finished("c", "d", "e")

    ear, told = play(make(), work)
    assert ear.finish("a") == ear.finish("b") == "failed"
    assert "SIGKILL" in ear.error("a")
    assert {"c", "d", "e"} <= told.seen["solo"]
    assert ear.tokens("e") == [5, 6, 7, 5]
    assert ear.lives == []


def test_where_both_die_the_engine_is_lost_until_one_is_back():
    async def work(duet, ear, told):
        duet.add(order("a", max_tokens=5000))
        await ear.until(lambda: ear.tokens("a"))
        for half in (duet._many, duet._solo):
            half.engine.kill()
        duet.add(order("too early"))
        await ear.finished("too early")
        assert ear.lives == ["lost"]
        for half in (duet._many, duet._solo):
            half.engine.revive()
        duet.add(order("after"))
        await ear.finished("after")

    ear, _ = play(make(), work)
    assert ear.lives == ["lost", "back"]
    assert ear.finish("too early") == "failed"
    assert ear.finish("after") == "length"


def test_a_drawn_text_that_moves_does_not_draw_the_same_again():
    drawn = order("a", (1, 2), 10, sampling=Sampling(temperature=1.0, seed=7))
    rest = continued(drawn, [3, 4, 5]).request
    assert (rest.prompt, rest.max_tokens, rest.sampling.seed) == ((1, 2, 3, 4, 5), 7, 10)


def test_it_works_with_real_processes(package: Callable[..., Package]):
    async def work(duet, ear, told):
        duet.add(order("first", (5, 6, 7), 400))
        await ear.until(lambda: len(ear.tokens("first")) > 3)
        duet.add(order("second", (8, 9), 10))
        await ear.finished("first", "second")

    halves = [load(package(seconds=0.001), RuntimeOptions()) for _ in range(2)]
    duet = Duet(*halves, 2)
    ear, told = play(duet, work)
    assert "first" in told.seen["solo"] & told.seen["many"]
    assert (len(ear.tokens("first")), ear.finish("first"), ear.finish("second")) == (400, "length", "length")
    assert [half.pids for half in halves] == [(), ()]
