"""An engine on the real loop, with models that are made of Python and packages that have no weights."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pelton import packages
from pelton.engine import Engine
from pelton.packages import Manifest, Slo
from pelton.records import Ledger
from pelton.replicas import Replica
from pelton.scheduling import Executor, LatencyModel
from pelton.testing import EchoModel
from pelton.transforms import Prepared
from pelton.types import Call, Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),))
POINTS = [(1, 0.002), (8, 0.003)]  # seconds: too long for the loop, so batches run in threads
INLINE = [(1, 0.00001), (8, 0.00002)]  # short enough for the loop


class Preparation:
    """Stands for a compiled preprocessing: `work` gets the fields."""

    def __init__(self, work: Callable[[dict], Prepared], heavy: bool) -> None:
        self.work = work
        self.heavy = heavy

    def __call__(self, fields: dict) -> Prepared:
        return self.work(fields)


class GatedModel(EchoModel):
    """An echo that waits in its thread until it is let go. `entered` is set when a batch is in."""

    def __init__(self) -> None:
        super().__init__(SIGNATURE)
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.sizes: list[int] = []

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.sizes.append(len(inputs[0]))
        self.entered.set()
        assert self.gate.wait(20)
        return super().run(inputs)


class Harness:
    """One engine; `serve` gives it a model, `send` a call whose rows carry their own numbers."""

    def __init__(self, folder: Path, slots: int = 2) -> None:
        self.folder = folder
        self.records: list = []
        self.loop = asyncio.get_running_loop()
        self.clock = time.perf_counter
        self.ledger = Ledger(self.clock, [self.records.extend])
        self.engine = Engine(self.loop, Executor(self.loop, slots, self.clock), self.ledger, self.clock)
        self.calls: list[Call] = []
        self.done: list[Call] = []
        self._number = 0.0

    def serve(
        self,
        model,
        version: str = "a",
        max_rows: int = 8,
        points=POINTS,
        prepare: Preparation | None = None,
        slo=60_000,
    ):
        path = self.folder / version
        path.mkdir(exist_ok=True)
        (path / "model.onnx").write_bytes(b"none")
        manifest = Manifest("m", "onnx", "model.onnx", model.signature, slo=Slo(slo))
        packages.save(manifest, path)
        replica = Replica(packages.load(path, version * 64), model, self.clock)
        replica.max_rows = max_rows
        if prepare is not None:
            replica.prepare = prepare  # type: ignore[assignment]
        return self.engine.serve(replica, LatencyModel(points))

    def send(self, served, rows: int = 1, fields: dict | None = None, x: np.ndarray | None = None, **kwargs) -> Call:
        if x is None:
            x = np.arange(self._number, self._number + rows, dtype=np.float32).reshape(rows, 1)
            self._number += rows
        now = self.clock()
        deadline = now + kwargs.pop("allowed", 60.0)
        call = Call([x], rows, self.done.append, now, deadline, fields=fields, **kwargs)
        call.request_id = str(len(self.calls))
        self.calls.append(call)
        call.trace = x.tobytes().hex()  # what was sent, whatever becomes of the inputs
        self.engine.submit(served, call)
        return call

    async def idle(self) -> None:
        async with asyncio.timeout(30):
            await self.engine.idle()
        self.ledger.fold()

    async def until(self, event: threading.Event) -> None:
        assert await asyncio.to_thread(event.wait, 20)

    def check(self) -> None:
        """The promises: every call settled once, with one record; no answer holds a row of somebody else."""
        assert self.engine.in_flight == 0
        assert sorted(r.request_id for r in self.records) == sorted(c.request_id for c in self.calls)
        answered = [call.request_id for call in self.done]
        assert len(answered) == len(set(answered))
        gone = {call.request_id for call in self.calls if call.abandoned}
        assert {call.request_id for call in self.calls} - gone <= set(answered)
        for call in self.calls:
            if isinstance(call.outcome, list):
                assert call.outcome[0].astype(np.float32).tobytes().hex() == call.trace
        assert not self.engine._pieces


@pytest.fixture
def tools(tmp_path: Path) -> SimpleNamespace:
    """What the tests of this room are made of."""
    return SimpleNamespace(
        harness=lambda slots=2: Harness(tmp_path, slots),
        GatedModel=GatedModel,
        Preparation=Preparation,
        SIGNATURE=SIGNATURE,
        POINTS=POINTS,
        INLINE=INLINE,
    )


@pytest.fixture
def run():
    """Runs a coroutine function on a fresh loop."""
    return lambda scenario: asyncio.run(scenario())
