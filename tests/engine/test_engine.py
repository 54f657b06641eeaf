"""Every accepted call ends exactly once, with exactly one record, and with nobody else's rows.

Mutants that these tests were seen to kill by hand: `_settle` without its check of SETTLED; `_settle_batch` that zips
outcomes in reverse; bisecting that gives the error to both halves, or that forgets the second half; pieces joined in
the order in which they came back; `cancel` that leaves the rows in the queue; a release that does not wait for calls
in preparation; a call without rows that is queued.
"""

from __future__ import annotations

import asyncio
import random
import threading

import numpy as np
import pytest

from pelton.errors import Cancelled, InvalidInput, ModelFailed, Overloaded, PeltonError
from pelton.testing import EchoModel, FaultyModel
from pelton.transforms import Prepared


class Chaos(EchoModel):
    """Negative rows are poison; now and then a batch has the wrong shape, or does not fit into memory."""

    def __init__(self, signature, seed):
        super().__init__(signature)
        self.dice = random.Random(seed)
        self.lock = threading.Lock()

    def run(self, inputs):
        with self.lock:
            fate = self.dice.random()
        if (inputs[0] < 0).any():
            raise ValueError("poison")
        if fate < 0.02:
            return [inputs[0][:-1]]
        if fate < 0.04:
            raise MemoryError
        if fate < 0.05:
            return None
        if fate < 0.06:
            return []
        return super().run(inputs)


@pytest.mark.parametrize("points", ["POINTS", "INLINE"])
@pytest.mark.parametrize("seed", [1, 2])
def test_thousands_of_random_calls_end_once_each_with_their_own_rows(tools, run, points, seed):
    async def scenario():
        h, dice = tools.harness(), random.Random(seed)
        versions = [h.serve(Chaos(tools.SIGNATURE, seed), "a", points=getattr(tools, points))]
        heavy = tools.Preparation(lambda fields: Prepared([fields["x"]]), heavy=True)
        light = tools.Preparation(lambda fields: Prepared([fields["x"]]), heavy=False)
        sent = []
        for turn in range(2000):
            served = versions[-1]
            kind, rows = dice.random(), dice.choice([0, 1, 1, 1, 1, 2, 5, 8, 9, 40])
            x = np.full((rows, 1), turn, np.float32) + np.arange(rows, dtype=np.float32).reshape(rows, 1) / 64
            if kind < 0.05:
                x = -x - 1
            kwargs = {"priority": dice.choice([0, 0, 0, 1, -1])}
            if kind > 0.9:
                served.replica.prepare = heavy if kind > 0.95 else light
                kwargs["fields"] = {"x": x}
            call = h.send(served, rows, x=x, **kwargs)
            sent.append((served, call))
            if dice.random() < 0.1:
                h.engine.cancel(served, call)
            if dice.random() < 0.3:
                await asyncio.sleep(0)
                owner, victim = dice.choice(sent[-20:])
                if dice.random() < 0.3 and victim.state != 3:
                    h.engine.cancel(owner, victim)
            if turn % 400 == 399:
                name = chr(ord("a") + len(versions))
                versions.append(h.serve(Chaos(tools.SIGNATURE, seed + turn), name, points=getattr(tools, points)))
        await h.idle()
        h.check()
        for served in versions:
            await served.scheduler.drained()
            assert served.scheduler.batcher.rows == 0
        poisoned = [c for c in h.calls if c.rows and np.frombuffer(bytes.fromhex(c.trace), np.float32).min() < 0]
        assert poisoned
        assert not any(isinstance(call.outcome, list) for call in poisoned)
        answered = sum(isinstance(call.outcome, list) for call in h.calls)
        assert answered > 1200
        h.engine.close()

    run(scenario)


@pytest.mark.parametrize("points", ["POINTS", "INLINE"])
def test_one_poisoned_call_of_eight_fails_alone(tools, run, points):
    async def scenario():
        h = tools.harness(slots=1)
        model = FaultyModel({3.0}, tools.SIGNATURE)
        served = h.serve(model, points=getattr(tools, points))
        for _ in range(8):
            h.send(served)
        await h.idle()
        h.check()
        assert [isinstance(call.outcome, ModelFailed) for call in h.calls] == [i == 3 for i in range(8)]
        assert "poisoned row: 3.0" in str(h.calls[3].outcome)
        h.engine.close()

    run(scenario)


@pytest.mark.parametrize("guilty", range(32))
def test_a_healthy_neighbour_of_one_poisoned_call_never_fails(tools, run, guilty):
    async def scenario():
        h = tools.harness(slots=1)
        served = h.serve(FaultyModel({float(guilty)}, tools.SIGNATURE), max_rows=32, points=[(1, 0.002), (32, 0.003)])
        for _ in range(32):
            h.send(served)
        await h.idle()
        assert [i for i, call in enumerate(h.calls) if not isinstance(call.outcome, list)] == [guilty]
        h.engine.close()

    run(scenario)


def test_a_model_that_fails_for_everyone_is_not_run_for_everyone(tools, run):
    async def scenario():
        h = tools.harness(slots=1)
        model = FaultyModel(range(1000), tools.SIGNATURE)
        served = h.serve(model, max_rows=128, points=[(1, 0.002), (128, 0.003)])
        for _ in range(128):
            h.send(served)
        await h.idle()
        h.check()
        assert all(isinstance(call.outcome, ModelFailed) for call in h.calls)
        assert len(model.batches) <= 20  # 255 without the bound
        h.engine.close()

    run(scenario)


def test_many_poisoned_calls_leave_the_healthy_ones_answered_while_one_was_answered_before(tools, run):
    async def scenario():
        h = tools.harness(slots=1)
        bad = {float(i) for i in range(64) if i % 4}
        served = h.serve(FaultyModel(bad, tools.SIGNATURE), max_rows=64, points=[(1, 0.002), (64, 0.003)])
        for _ in range(64):
            h.send(served)
        await h.idle()
        assert {float(i) for i, call in enumerate(h.calls) if not isinstance(call.outcome, list)} == bad
        h.engine.close()

    run(scenario)


class Answers(EchoModel):
    """Gives back what it is told to."""

    def __init__(self, signature, answer):
        super().__init__(signature)
        self.answer = answer

    def run(self, inputs):
        return self.answer(inputs[0])


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x: None, "NoneType"),
        (lambda x: [], "got 0"),
        (lambda x: [x, x], "got 2"),
        (lambda x: x, "ndarray"),
        (lambda x: [x[:0]], "shape"),
        (lambda x: [np.float32(1)], "shape"),
        (lambda x: [3], "AttributeError"),
        (lambda x: exec("raise SystemExit(3)"), "SystemExit"),
        (lambda x: exec("raise MemoryError"), "memory"),
    ],
)
@pytest.mark.parametrize("points", ["POINTS", "INLINE"])
def test_whatever_a_model_answers_its_callers_get_an_error_that_says_so(tools, run, answer, says, points):
    async def scenario():
        h = tools.harness(slots=1)
        served = h.serve(Answers(tools.SIGNATURE, answer), points=getattr(tools, points))
        for rows in (1, 2, 1):
            h.send(served, rows)
        await h.idle()
        h.check()
        for call in h.calls:
            assert isinstance(call.outcome, ModelFailed)
            assert says in str(call.outcome)
        assert {record.error for record in h.records} == {"model_failed"}
        h.send(h.serve(EchoModel(tools.SIGNATURE), "b"))  # the slot and the loop are still there
        await h.idle()
        assert isinstance(h.calls[-1].outcome, list)
        h.engine.close()

    run(scenario)


def test_a_call_without_rows_is_refused_as_input(tools, run):
    async def scenario():
        h = tools.harness()
        served = h.serve(EchoModel(tools.SIGNATURE))
        h.send(served, 0)
        await h.idle()
        h.check()
        assert isinstance(h.calls[0].outcome, InvalidInput)
        h.engine.close()

    run(scenario)


@pytest.mark.parametrize("rows", [9, 16, 17, 100])
def test_a_call_larger_than_a_batch_comes_back_whole_and_in_order(tools, run, rows):
    async def scenario():
        h = tools.harness(slots=4)
        served = h.serve(EchoModel(tools.SIGNATURE))
        assert served.scheduler.batcher.cap == 8
        call = h.send(served, rows)
        await h.idle()
        h.check()
        assert len(call.outcome[0]) == rows
        assert len(h.records) == 1
        h.engine.close()

    run(scenario)


def test_one_bad_piece_fails_the_whole_call_once_and_frees_the_queue(tools, run):
    async def scenario():
        h = tools.harness(slots=1)
        served = h.serve(FaultyModel({20.0}, tools.SIGNATURE))
        h.send(served, 80)
        await h.idle()
        await served.scheduler.drained()
        h.check()
        assert isinstance(h.calls[0].outcome, ModelFailed)
        assert served.scheduler.batcher.rows == 0
        h.engine.close()

    run(scenario)


def test_a_caller_that_leaves_is_taken_out_in_every_state_and_neighbours_are_answered(tools, run):
    async def scenario():
        h, model = tools.harness(slots=1), tools.GatedModel()
        served = h.serve(model)
        running = h.send(served)
        await h.until(model.entered)
        queued, neighbour, large = h.send(served), h.send(served), h.send(served, 30)
        for call in (running, queued, large):
            h.engine.cancel(served, call)
            h.engine.cancel(served, call)  # twice is once
        assert isinstance(queued.outcome, Cancelled)
        assert isinstance(large.outcome, Cancelled)
        assert served.scheduler.batcher.rows == 1
        model.gate.set()
        await h.idle()
        h.check()
        assert isinstance(neighbour.outcome, list)
        assert model.sizes == [1, 1]  # nothing was computed for those who left
        assert h.done == [neighbour]
        assert sorted(r.error for r in h.records) == ["", "cancelled", "cancelled", "cancelled"]
        h.engine.close()

    run(scenario)


def test_a_lane_is_drained_when_its_last_waiting_call_leaves(tools, run):
    async def scenario():
        h, model = tools.harness(slots=1), tools.GatedModel()
        busy, other = h.serve(model, "a"), h.serve(EchoModel(tools.SIGNATURE), "b")
        h.send(busy)
        await h.until(model.entered)
        waiting = h.send(other)
        drained = asyncio.ensure_future(other.scheduler.drained())
        await asyncio.sleep(0)
        assert not drained.done()
        h.engine.cancel(other, waiting)
        async with asyncio.timeout(10):
            await drained
        model.gate.set()
        await h.idle()
        h.check()
        h.engine.close()

    run(scenario)


def test_a_version_is_released_only_after_calls_in_preparation_were_answered(tools, run):
    async def scenario():
        h, inside, gate = tools.harness(), threading.Event(), threading.Event()

        def work(fields):
            inside.set()
            assert gate.wait(20)
            return Prepared([fields["x"]])

        model = EchoModel(tools.SIGNATURE)
        old = h.serve(model, "a", prepare=tools.Preparation(work, heavy=True))
        call = h.send(old, fields={"x": np.zeros((1, 1), np.float32)})
        await h.until(inside)
        h.serve(EchoModel(tools.SIGNATURE), "b")
        released = asyncio.ensure_future(old.scheduler.drained())
        await asyncio.sleep(0)
        assert not released.done()
        gate.set()
        async with asyncio.timeout(10):
            await released
        old.replica.close()
        await h.idle()
        assert isinstance(call.outcome, list)
        h.check()
        h.engine.close()

    run(scenario)


@pytest.mark.parametrize("heavy", [False, True])
def test_preprocessing_that_raises_fails_its_own_call_only(tools, run, heavy):
    async def scenario():
        h = tools.harness()

        def work(fields):
            if "bad" in fields:
                raise KeyError("a defect")
            if "wrong" in fields:
                raise InvalidInput("field 'x': not a picture")
            return Prepared([np.zeros((1, 1), np.float32)])

        served = h.serve(EchoModel(tools.SIGNATURE), prepare=tools.Preparation(work, heavy))
        calls = [h.send(served, fields={name: [1]}, x=np.zeros((1, 1), np.float32)) for name in ("ok", "bad", "wrong")]
        await h.idle()
        h.check()
        assert [type(call.outcome) for call in calls] == [list, ModelFailed, InvalidInput]
        h.engine.close()

    run(scenario)


def test_preprocessing_that_falls_behind_refuses_at_once(tools, run):
    """Mutant: no bound. Then 1,000 pictures queue behind two threads and all of them are late."""

    async def scenario():
        h, inside, gate = tools.harness(), threading.Event(), threading.Event()

        def work(fields):
            inside.set()
            assert gate.wait(20)
            return Prepared([np.zeros((1, 1), np.float32)])

        served = h.serve(EchoModel(tools.SIGNATURE), prepare=tools.Preparation(work, heavy=True))
        h.engine._preparation._seconds["m"] = 0.5  # as learned
        x = np.zeros((1, 1), np.float32)
        calls = [h.send(served, fields={"x": [1]}, x=x, allowed=5.0) for _ in range(1000)]
        refused = [call for call in calls if isinstance(call.outcome, Overloaded)]
        assert 970 <= len(refused) <= 990  # two threads do about 20 of half a second in 5 s
        assert all(call.outcome.retry_after > 0 for call in refused)
        await h.until(inside)
        gate.set()
        await h.idle()
        h.check()
        h.engine.close()

    run(scenario)


def test_an_answer_that_cannot_be_handed_on_does_not_stop_the_others(tools, run):
    async def scenario():
        h = tools.harness()
        served = h.serve(EchoModel(tools.SIGNATURE))
        first, second = h.send(served), h.send(served)

        def broken(call):
            h.done.append(call)
            raise OSError("the socket is gone")

        first.done = broken
        await h.idle()
        h.check()
        assert isinstance(second.outcome, list)
        h.engine.close()

    run(scenario)


def test_a_second_outcome_for_the_same_call_changes_nothing(tools, run):
    async def scenario():
        h = tools.harness()
        served = h.serve(EchoModel(tools.SIGNATURE))
        call = h.send(served)
        await h.idle()
        h.engine._settle(served.replica, call, ModelFailed("too late"))
        h.ledger.fold()
        h.check()
        assert isinstance(call.outcome, list)
        h.engine.close()

    run(scenario)


def test_errors_are_ours(tools, run):
    """Whatever happens, an outcome is a list of arrays or an error of pelton.errors."""

    async def scenario():
        h = tools.harness()
        served = h.serve(Chaos(tools.SIGNATURE, 7))
        for i in range(300):
            h.send(served, 1 + i % 12)
        await h.idle()
        h.check()
        assert all(isinstance(call.outcome, (list, PeltonError)) for call in h.calls)
        h.engine.close()

    run(scenario)
