"""Engines in real processes: orders, reports, crashes, restarts, ends."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from engine_ear import LIMIT, Ear, order, talk

from pelton.errors import ExtraMissing, ModelFailed, PackageInvalid
from pelton.packages import Package
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.engine_process import wire
from pelton.runtimes.engine_process.process import rebuilt
from pelton.runtimes.language import LanguageEngine, load
from pelton.runtimes.step_engine import GrammarSpec, LmOutput, Sampling, StepReport

Start = Callable[..., LanguageEngine]


def gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def wait_gone(pid: int) -> None:
    end = time.monotonic() + LIMIT
    while not gone(pid):
        assert time.monotonic() < end, f"process {pid} lives"
        time.sleep(0.005)


def test_an_order_comes_back_token_by_token(engine: Start):
    async def work(engine, ear):
        engine.add(order("a", (5, 6, 7), 5))
        await ear.finished("a")

    ear = talk(engine(), work)
    assert ear.tokens("a") == [5, 6, 7, 5, 6]
    assert ear.finish("a") == "length"
    assert [report.number for report in ear.reports] == [1, 2, 3, 4, 5]
    assert sum(report.prefill_tokens for report in ear.reports) == 3
    assert sum(report.decode_tokens for report in ear.reports) == 4


def test_everything_of_an_order_crosses_to_the_engine(engine: Start):
    async def work(engine, ear):
        engine.add(order("stop", (5, 6, 7), 100, stop_tokens=frozenset({7})))
        engine.add(order("bias", (5, 6), 2, sampling=Sampling(bias=((9, 100.0),), logprobs=2)))
        engine.add(order("told", (5, 6, 8), 1, prompt_logprobs=True))
        engine.add(order("drawn", tuple(range(50)), 20, sampling=Sampling(temperature=1.0, seed=3)))
        engine.add(order("again", tuple(range(50)), 20, sampling=Sampling(temperature=1.0, seed=3)))
        engine.add(order("other", tuple(range(50)), 20, sampling=Sampling(temperature=1.0, seed=4)))
        await ear.finished("stop", "bias", "told", "drawn", "again", "other")

    ear = talk(engine(), work)
    assert (ear.tokens("stop"), ear.finish("stop")) == ([5, 6, 7], "stop")
    assert ear.tokens("bias") == [9, 9]
    assert [len(output.logprobs[0].top) for output in ear.outputs["bias"]] == [2, 2]
    assert [entry is None for entry in ear.outputs["told"][0].prompt_logprobs] == [True, False, False]
    assert ear.tokens("drawn") == ear.tokens("again") != ear.tokens("other")


def test_a_shared_beginning_is_cached_for_its_salt_only(engine: Start):
    async def work(engine, ear):
        for request_id, salt in (("first", "me"), ("mine", "me"), ("theirs", "you")):
            engine.add(order(request_id, tuple(range(40)), 1, salt=salt))
            await ear.finished(request_id)

    ear = talk(engine(), work)
    cached = {share.request_id: share.cached_tokens for report in ear.reports for share in report.shares}
    assert cached == {"first": 0, "mine": 32, "theirs": 0}


def test_an_order_that_cannot_run_fails_alone_and_says_why(engine: Start):
    async def work(engine, ear):
        engine.add(order("good", (5, 6), 50))
        engine.add(order("long", tuple(range(90)), 20))
        engine.add(order("good", (5, 6), 50))
        await ear.finished("long")
        engine.add(order("next", (5, 6), 2))
        await ear.finished("next")

    ear = talk(engine(context=100), work)
    assert ear.finish("long") == "failed"
    assert "needs 110 tokens of context, the engine has 100" in ear.error("long")
    assert ear.tokens("next") == [5, 6]


def test_an_order_that_cannot_be_read_fails_alone(engine: Start):
    """The other side of the wire may be of another opinion than this one: the order fails, the process lives."""

    class Strange(msgspec.Struct):
        request: dict[str, object]

    async def work(engine, ear):
        pid = engine.pid
        body = msgspec.msgpack.encode(("add", Strange({"id": "odd", "prompt": [], "max_tokens": 1})))
        engine._link.running.add("odd")
        engine._link._send(len(body).to_bytes(4, "little") + body)
        await ear.finished("odd")
        engine.add(order("even"))
        await ear.finished("even")
        assert engine.pid == pid

    ear = talk(engine(), work)
    assert "empty prompt" in ear.error("odd")
    assert ear.tokens("even") == [5, 6, 7, 5]


def test_garbage_on_the_wire_ends_the_process_and_another_takes_over(engine: Start):
    async def work(engine, ear):
        engine._link._send(b"\x03\x00\x00\x00abc")
        await ear.until(lambda: ear.lives == ["lost", "back"])
        engine.add(order("a"))
        await ear.finished("a")

    ear = talk(engine(), work)
    assert "an order cannot be read" in ear.reasons[0]
    assert ear.tokens("a") == [5, 6, 7, 5]


def test_a_grammar_that_cannot_be_compiled_fails_its_request_only(engine: Start):
    async def work(engine, ear):
        engine.add(order("bad", grammar=GrammarSpec("regex", "[")))
        engine.add(order("good", max_tokens=3))
        await ear.finished("bad", "good")

    ear = talk(engine(), work)
    assert ear.finish("bad") == "failed"
    assert "grammar" in ear.error("bad")
    assert ear.tokens("good") == [5, 6, 7]


def test_a_cancelled_request_ends_and_frees_its_stream(engine: Start):
    async def work(engine, ear):
        engine.add(order("endless", max_tokens=8000))
        engine.add(order("waits", max_tokens=2))
        await ear.until(lambda: len(ear.tokens("endless")) > 3)
        assert not ear.outputs["waits"]
        engine.cancel("endless")
        await ear.finished("endless", "waits")
        engine.cancel("endless")
        engine.cancel("never heard of")

    ear = talk(engine(streams=1, seconds=0.001), work)
    assert ear.finish("endless") == "cancelled"
    assert ear.tokens("waits") == [5, 6]


def test_500_random_cancellations_leave_nothing_behind(engine: Start):
    rng = random.Random(7)
    names = [f"r{i}" for i in range(500)]

    async def work(engine, ear):
        waiting = list(names)
        open_ones: list[str] = []
        while waiting or open_ones:
            while waiting and len(open_ones) < 40:
                open_ones.append(waiting.pop())
                engine.add(order(open_ones[-1], (5, 6), rng.randrange(1, 60)))
            for name in rng.sample(open_ones, min(len(open_ones), rng.randrange(4))):
                engine.cancel(name)  # before it began, while it runs, or when its end is already on its way
            await ear.until(lambda: any(ear.finish(name) for name in open_ones))
            open_ones = [name for name in open_ones if not ear.finish(name)]
        assert not engine._link.running
        engine.add(order("last", max_tokens=1))
        await ear.finished("last")

    ear = talk(engine(seconds=0.0005), work)
    assert {ear.finish(name) for name in names} == {"cancelled", "length"}
    assert (ear.reports[-1].running, ear.reports[-1].waiting) == (0, 0)


@pytest.mark.parametrize(("token", "words"), [(13, "exit code 3; token 13 makes this engine exit"), (14, "SIGKILL")])
def test_an_engine_that_dies_is_told_about_and_comes_back(engine: Start, token: int, words: str):
    async def work(engine, ear):
        first = engine.pid
        engine.add(order("running", max_tokens=8000))
        await ear.until(lambda: ear.tokens("running"))
        engine.add(order("deadly", (token,)))
        await ear.until(lambda: ear.lives == ["lost"])
        assert engine.pid == 0
        engine.add(order("too early"))
        await ear.finished("too early")
        await ear.until(lambda: ear.lives == ["lost", "back"])
        assert engine.pid not in (0, first)
        engine.add(order("after"))
        await ear.finished("after")

    ear = talk(engine(exit_token=13, kill_token=14, seconds=0.001), work)
    assert words in ear.reasons[0]
    assert ear.finish("running") is None  # what was lost is not answered
    assert ear.finish("too early") == "failed"
    assert "away" in ear.error("too early")
    assert ear.tokens("after") == [5, 6, 7, 5]


def test_what_was_said_before_the_end_is_heard_before_the_loss(engine: Start):
    async def work(engine, ear):
        pid = engine.pid
        engine.add(order("a", max_tokens=3))
        engine.add(order("b", max_tokens=5))
        engine.add(order("end", (14,)))
        wait_gone(pid)  # the loop stands still: it is busy with something else
        await ear.until(lambda: ear.lives[:1] == ["lost"])
        assert ear.tokens("a") == [5, 6, 7]
        assert ear.tokens("b") == [5, 6, 7, 5, 6]

    talk(engine(streams=1, kill_token=14), work)


def test_an_exception_in_a_step_fails_its_requests_with_its_words(engine: Start):
    async def work(engine, ear):
        engine.add(order("running", max_tokens=8000))
        await ear.until(lambda: ear.tokens("running"))
        engine.add(order("wrong", (13,)))
        await ear.finished("running", "wrong")
        await ear.until(lambda: ear.lives == ["lost", "back"])
        engine.add(order("after"))
        await ear.finished("after")

    ear = talk(engine(raise_token=13, seconds=0.001), work)
    for name in ("running", "wrong"):
        assert ear.finish(name) == "failed"
        assert "token 13 makes this engine raise" in ear.error(name)
    assert ear.tokens("after") == [5, 6, 7, 5]


def test_a_process_that_hangs_is_ended(engine: Start):
    async def work(engine, ear):
        engine.add(order("stuck", (13,)))
        await ear.until(lambda: ear.lives == ["lost", "back"])
        engine.add(order("after"))
        await ear.finished("after")

    ear = talk(engine(hang_token=13, stall_seconds=0.2), work)
    assert "no sign of life for 0.2 s" in ear.reasons[0]


def test_an_idle_process_is_left_alone_and_does_nothing(engine: Start):
    def used(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def work(engine, ear):
        engine.add(order("a", max_tokens=1))
        await ear.finished("a")
        pid, before = engine.pid, used(engine.pid)
        await asyncio.sleep(0.5)  # five times the stall limit
        assert engine.pid == pid
        assert used(pid) - before <= 0.02

    assert talk(engine(stall_seconds=0.1), work).lives == []


def test_the_loop_may_stand_still_without_losing_a_report(engine: Start):
    """Back-pressure: the engine waits for its reader; nothing is dropped, nothing out of order."""

    async def work(engine, ear):
        for i in range(16):
            engine.add(order(f"r{i}", (5, 6), 400))
        await ear.until(lambda: len(ear.reports) > 2)
        time.sleep(0.3)
        await ear.finished(*(f"r{i}" for i in range(16)))

    ear = talk(engine(), work)
    assert all(len(ear.tokens(f"r{i}")) == 400 for i in range(16))
    numbers = [report.number for report in ear.reports]
    assert numbers == sorted(set(numbers))


def test_orders_are_kept_while_the_engine_does_not_read(engine: Start):
    async def work(engine, ear):
        pid = engine.pid
        os.kill(pid, signal.SIGSTOP)
        begin = time.monotonic()
        for i in range(60):
            engine.add(order(f"r{i}", tuple(range(8000)), 1))  # 20 KB each: more than the socket takes
        assert time.monotonic() - begin < 5
        engine.cancel("r3")
        os.kill(pid, signal.SIGCONT)
        await ear.finished(*(f"r{i}" for i in range(60)))

    ear = talk(engine(prefill_tokens=10_000_000), work)
    assert [ear.finish(f"r{i}") for i in (0, 1, 2, 59)] == ["length"] * 4


def test_closing_is_quick_and_silent(engine: Start):
    async def work(engine, ear):
        engine.add(order("running", max_tokens=8000))
        await ear.until(lambda: ear.tokens("running"))
        pid, begin = engine.pid, time.monotonic()
        await asyncio.to_thread(engine.close)
        seen = len(ear.reports)
        assert time.monotonic() - begin < 5
        assert gone(pid)
        engine.add(order("late"))
        engine.cancel("running")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (len(ear.reports), ear.lives) == (seen, [])

    talk(engine(seconds=0.001), work)


def test_closing_ends_a_process_that_hangs(engine: Start):
    async def work(engine, ear):
        pid = engine.pid
        engine.add(order("stuck", (13,)))
        engine.add(order("next"))
        await asyncio.to_thread(engine.close)
        assert gone(pid)

    talk(engine(hang_token=13), work)


def test_the_process_ends_when_its_server_is_killed(package: Callable[..., Package], tmp_path: Path):
    folder = package(hang_token=13).folder
    code = f"""
import asyncio, pathlib
from pelton.packages import load as read
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.language import Order, load
from pelton.runtimes.step_engine import LmRequest
engine = load(read(pathlib.Path({str(folder)!r})), RuntimeOptions())
class Ear:
    reported = lost = back = lambda self, _: None
async def main():
    engine.attach(asyncio.get_running_loop(), Ear())
    engine.add(Order(LmRequest("stuck", (13,), 1)))
    print(engine.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        server.kill()
    wait_gone(pid)


def test_signals_of_a_terminal_or_a_service_manager_are_for_the_server(engine: Start):
    async def work(engine, ear):
        pid = engine.pid
        assert os.getpgid(pid) == pid != os.getpgrp()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        engine.add(order("a", max_tokens=20))
        await ear.finished("a")
        assert engine.pid == pid

    assert talk(engine(), work).lives == []


def test_an_engine_that_cannot_be_built_says_why(package: Callable[..., Package]):
    with pytest.raises(ModelFailed, match="no such weights"):
        load(package(load_error="no such weights"), RuntimeOptions())
    with pytest.raises(PackageInvalid, match=r"options\.engine_options \(echo\): .*colour"):
        load(package(colour="red"), RuntimeOptions())
    with pytest.raises(PackageInvalid, match="did you mean 'echo'"):
        load(package(engine="ecko"), RuntimeOptions())


def test_errors_of_building_cross_as_what_they_are():
    missing = rebuilt(wire.Failed("ExtraMissing", str(ExtraMissing("the engine", "chat")), "chat"))
    assert isinstance(missing, ExtraMissing)
    assert (missing.extra, str(missing)) == ("chat", str(ExtraMissing("the engine", "chat")))
    assert type(rebuilt(wire.Failed("PackageInvalid", "no"))) is PackageInvalid
    assert type(rebuilt(wire.Failed("KeyboardInterrupt", "no"))) is ModelFailed


def test_an_end_while_loading_is_told_with_its_last_words(package: Callable[..., Package]):
    broken = package(load_exit=True)
    with pytest.raises(ModelFailed, match=r"could not be loaded: .*exit code 5; loading makes this engine exit"):
        load(broken, RuntimeOptions())


def test_events_before_the_listener_came_are_not_lost(engine: Start):
    one = engine()
    one.add(order("early"))

    async def work(engine, ear):
        await ear.finished("early")

    ear = talk(one, work)
    assert ear.finish("early") == "failed"
    assert "attached" in ear.error("early")


def test_a_death_before_the_listener_came_is_told(engine: Start):
    one = engine()
    pid = one.pid
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)

    async def work(engine, ear):
        await ear.until(lambda: engine.pid not in (0, pid))
        engine.add(order("a"))
        await ear.finished("a")
        if ear.finish("a") == "failed":
            await ear.until(lambda: ear.lives == ["lost", "back"])

    ear = talk(one, work)
    assert ear.lives in ([], ["lost", "back"])


def test_a_listener_that_raises_does_not_stop_the_reports(engine: Start, caplog: pytest.LogCaptureFixture):
    class Clumsy(Ear):
        def reported(self, report: StepReport) -> None:
            super().reported(report)
            if len(self.reports) == 2:
                raise RuntimeError("clumsy")

    async def main() -> Clumsy:
        ear, one = Clumsy(), engine()
        one.attach(asyncio.get_running_loop(), ear)
        one.add(order("a"))
        await ear.finished("a")
        await asyncio.to_thread(one.close)
        return ear

    assert asyncio.run(main()).tokens("a") == [5, 6, 7, 5]
    assert "clumsy" in caplog.text


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000, 10**6])
def test_frames_are_cut_wherever_the_stream_was_cut(size: int):
    reports = [StepReport(i, (), (LmOutput("a", tuple(range(i * 50))),), 0.5, (), 0, 1, 9) for i in range(9)]
    stream = b"".join(wire.encode(wire.Report(report)) for report in reports)
    frames, found = wire.Frames(), []
    for at in range(0, len(stream), size):
        for frame in frames.take(stream[at : at + size]):
            message = wire.read_report(frame)
            assert isinstance(message, wire.Report)
            found.append(message.report)
    assert found == reports


def test_a_frame_over_the_limit_is_refused():
    with pytest.raises(wire.Broken, match="at most"):
        list(wire.Frames().take((wire.FRAME_LIMIT + 1).to_bytes(4, "little")))
    with pytest.raises(wire.Broken, match="cannot be read"):
        wire.read_report(memoryview(b"\x92\xa6report\x01"))
