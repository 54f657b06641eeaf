"""Calls of models whose rows differ in length: cut by length, run with others, put together in order."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest

from pelton import packages
from pelton.engine import Engine
from pelton.errors import Cancelled, ModelFailed, Overloaded, PeltonError
from pelton.packages import Manifest, Slo
from pelton.replicas import Replica
from pelton.scheduling import LatencyModel, LengthBatcher
from pelton.testing import FaultyModel
from pelton.transforms import Prepared
from pelton.types import Call, Signature, TensorSpec

IDS, MASK = TensorSpec("ids", "INT64", (-1,), pad=0), TensorSpec("mask", "INT64", (-1,), pad=0)
SUMS = Signature((IDS, MASK), (TensorSpec("sums", "INT64", (2,)),))
TOKENS = Signature((IDS, MASK), (TensorSpec("each", "INT64", (-1,)),))
POINTS = [(8, 0.002), (64, 0.004), (512, 0.02)]  # padded tokens, seconds


class Sums(FaultyModel):
    """Tells the sum of a row's ids and how many the mask shows; or, with TOKENS, its ids doubled. Knows poison."""

    def __init__(self, signature: Signature = SUMS, poison: tuple[int, ...] = ()) -> None:
        self.signature = signature
        self.poison = frozenset(poison)
        self.shapes: list[tuple[int, ...]] = []
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def run(self, inputs):
        ids, mask = inputs
        self.shapes.append(ids.shape)
        self.entered.set()
        assert self.gate.wait(20)
        if self.poison & set(ids[:, 0].tolist()):
            raise ValueError("poison")
        if self.signature is TOKENS:
            return [ids * 2]
        return [np.stack([(ids * mask).sum(axis=1), mask.sum(axis=1)], axis=1)]


def arrays(rows: list[list[int]]) -> list[np.ndarray]:
    width = -(-max(map(len, rows)) // 8) * 8
    ids, mask = np.zeros((2, len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return [ids, mask]


def prepare(fields: dict) -> Prepared:
    return Prepared(arrays(fields["text"]), lengths=tuple(map(len, fields["text"])))


class Texts:
    """An engine with one such model."""

    def __init__(self, tools, model: Sums, target_ms: float = 60_000) -> None:
        self.h = tools.harness()
        self.engine: Engine = self.h.engine
        folder = Path(self.h.folder) / "texts"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"none")
        packages.save(Manifest("m", "onnx", "model.onnx", model.signature, slo=Slo(target_ms)), folder)
        replica = Replica(packages.load(folder, "t" * 64), model, self.h.clock)
        replica.prepare = tools.Preparation(prepare, heavy=False)
        self.served = self.engine.serve(replica, LatencyModel(POINTS))
        self.model = model
        self.calls: list[tuple[Call, list[list[int]]]] = []
        self.done: list[Call] = []

    def send(self, rows: list[list[int]], allowed: float = 60.0, own: bool = False, **kwargs) -> Call:
        now = self.h.clock()
        call = Call([], len(rows), self.done.append, now, now + allowed, {"text": rows}, own_deadline=own, **kwargs)
        self.calls.append((call, rows))
        self.engine.submit(self.served, call)
        return call

    def check(self) -> None:
        """Every call that was answered has its own rows, in order; the lane has forgotten all of them."""
        assert self.engine.in_flight == 0
        assert sorted(map(id, self.done)) == sorted(id(call) for call, _ in self.calls if not call.abandoned)
        for call, rows in self.calls:
            if isinstance(call.outcome, list):
                assert call.outcome[0].tolist() == [[sum(row), len(row)] for row in rows]
        batcher = self.served.scheduler.batcher
        assert isinstance(batcher, LengthBatcher)
        assert (batcher.rows, batcher.queued_rows, batcher.head()) == (0, 0, None)


def text(dice: random.Random, most: int = 60) -> list[int]:
    return [dice.randint(1, 999) for _ in range(dice.choice([1, 3, 7, 8, 9, 20, most]))]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_random_calls_get_their_own_rows_in_order(tools, run, seed):
    async def scenario():
        dice = random.Random(seed)
        texts = Texts(tools, Sums())
        for turn in range(150):
            texts.send([text(dice) for _ in range(dice.choice([1, 1, 1, 2, 5, 30]))], tenant=str(turn))
            if turn % 10 == 0:
                await texts.h.until(texts.model.entered)
        await texts.h.idle()
        texts.check()
        assert all(isinstance(call.outcome, list) for call, _ in texts.calls)
        assert all(call.tokens == sum(map(len, rows)) for call, rows in texts.calls)
        assert len(texts.h.records) == 150  # one record a call, pieces have none
        batcher = texts.served.scheduler.batcher
        assert batcher.real_tokens == sum(call.tokens for call, _ in texts.calls)
        assert batcher.padded_tokens == sum(rows * width for rows, width in texts.model.shapes)

    run(scenario)


def test_short_texts_of_a_call_are_not_filled_up_to_its_longest(tools, run):
    async def scenario():
        texts = Texts(tools, Sums())
        texts.send([[1] * 200, *[[2] * 5] * 9, [3] * 199])
        await texts.h.idle()
        texts.check()
        assert sum(rows * width for rows, width in texts.model.shapes) <= 2 * 200 + 9 * 8

    run(scenario)


def test_a_poisoned_text_fails_its_own_call_only(tools, run):
    async def scenario():
        texts = Texts(tools, Sums(poison=(666,)))
        texts.model.gate.clear()
        first = texts.send([[1, 2]])
        await texts.h.until(texts.model.entered)
        bad = texts.send([[1], [666, 1], [5] * 30])
        good = [texts.send([[i], [i] * 20]) for i in range(1, 20)]
        texts.model.gate.set()
        await texts.h.idle()
        texts.check()
        assert isinstance(bad.outcome, ModelFailed)
        assert all(isinstance(call.outcome, list) for call in [first, *good])

    run(scenario)


def test_a_caller_that_leaves_takes_all_its_pieces_along(tools, run):
    async def scenario():
        texts = Texts(tools, Sums())
        texts.model.gate.clear()
        texts.send([[1, 2]])
        texts.send([[1, 2, 3]])  # both slots are taken
        await texts.h.until(texts.model.entered)
        large = texts.send([[7] * n for n in range(1, 120)])
        small = texts.send([[1], [2] * 30])
        texts.engine.cancel(texts.served, large)
        texts.model.gate.set()
        await texts.h.idle()
        texts.check()
        assert isinstance(large.outcome, Cancelled)
        assert isinstance(small.outcome, list)
        assert max(width for _, width in texts.model.shapes) <= 32

    run(scenario)


@pytest.mark.parametrize("lengths", ["texts", "rows"])
def test_pieces_that_become_late_together_leave_the_lane_in_order(tools, run, lengths):
    """Mutant: late calls stay QUEUED. The first late piece settles the whole, which takes the others out again; the count
    of the queue falls below zero, and nothing is ever woken."""

    async def scenario():
        if lengths == "texts":
            texts = Texts(tools, Sums(), target_ms=100)
            h, model, served = texts.h, texts.model, texts.served
            send = lambda n, allowed: texts.send([[1] * 8] * n, allowed, own=True)  # noqa: E731
        else:
            h, model = tools.harness(), tools.GatedModel()
            served = h.serve(model, slo=100)
            send = lambda n, allowed: h.send(served, n, allowed=allowed, own_deadline=True)  # noqa: E731
            model.gate.set()
        model.gate.clear()
        for _ in range(2):
            send(1, 60.0)  # both slots are taken
        await h.until(model.entered)
        late = send(2000 if lengths == "texts" else 40, 1.0)  # admitted, and then its time passes
        assert late.outcome is None
        late.deadline = 0.0
        for piece in h.engine._pieces[id(late)].calls:
            piece.deadline = 0.0
        model.gate.set()
        await h.idle()
        assert isinstance(late.outcome, PeltonError)
        assert served.scheduler.batcher.rows == 0
        after = send(1, 60.0)
        await h.idle()
        assert isinstance(after.outcome, list)

    run(scenario)


def test_outputs_with_a_number_for_each_token_have_no_filling_from_the_company(tools, run):
    async def scenario():
        texts = Texts(tools, Sums(TOKENS))
        texts.model.gate.clear()
        texts.send([[1]])
        texts.send([[1]])
        await texts.h.until(texts.model.entered)
        calls = [texts.send([[n] * n]) for n in (3, 17, 5, 20)]
        many = texts.send([[9] * 9, [2] * 30])
        texts.model.gate.set()
        await texts.h.idle()
        for call, n in zip(calls, (3, 17, 5, 20), strict=True):
            width = -(-n // 8) * 8
            assert call.outcome[0].tolist() == [[2 * n] * n + [0] * (width - n)]
        assert many.outcome[0].shape == (2, 32)
        assert many.outcome[0][0, :10].tolist() == [18] * 9 + [0]

    run(scenario)


def test_what_would_be_late_by_its_tokens_is_refused_at_once(tools, run):
    async def scenario():
        texts = Texts(tools, Sums(), target_ms=200)
        texts.model.gate.clear()
        texts.send([[1] * 8], 0.2)
        texts.send([[1] * 8], 0.2)
        await texts.h.until(texts.model.entered)
        sent = [texts.send([[1] * 400], 0.2) for _ in range(40)]
        refused = [call for call in sent if isinstance(call.outcome, Overloaded)]
        texts.model.gate.set()
        await texts.h.idle()
        texts.check()
        assert 20 <= len(refused) < 40
        assert all(call.outcome.retry_after > 0 for call in refused)

    run(scenario)
