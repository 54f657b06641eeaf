"""An engine of Pelton on the real loop, with a language model that needs no weights and no process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pelton import packages
from pelton.engine import Engine, Generation
from pelton.errors import PeltonError
from pelton.packages import Manifest, Slo
from pelton.records import Ledger
from pelton.replicas.language import LanguageReplica
from pelton.runtimes.language import Facts, Order, Speed
from pelton.runtimes.step_engine import LmOutput, LmRequest, StepReport
from pelton.scheduling import Executor
from pelton.testing.echo_engine import EchoEngine, EchoOptions
from pelton.types import Call, Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("prompt", "BYTES"),), (TensorSpec("text", "BYTES"),))


def chain(tokens: tuple[int, ...]) -> int:
    """The token after `tokens`: it depends on every one of them, so a stream that was cut or mixed up is seen."""
    value = 17
    for token in tokens:
        value = (value * 31 + token + 1) % 49_999
    return value


def continued(prompt: tuple[int, ...], count: int) -> list[int]:
    """What the model says to a prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(chain(tuple(tokens)))
    return tokens[len(prompt) :]


class ChainEngine(EchoEngine):
    """A step engine whose next token depends on all before it, wherever these stand in the request. It begins nothing
    that its memory, `kv_tokens` (0: any), does not hold to the end."""

    kv_tokens = 0

    def step(self):
        if self.kv_tokens:
            running = [stream.request for stream in self._running]
            left = self.kv_tokens - sum(len(request.prompt) + request.max_tokens for request in running)
            fits = 0
            for stream in self._waiting:
                left -= len(stream.request.prompt) + stream.request.max_tokens
                if left < 0:
                    break
                fits += 1
            all_, self.streams = self.streams, min(self.streams, len(running) + fits)
            try:
                return super().step()
            finally:
                self.streams = all_
        return super().step()

    def _choose(self, stream) -> int:
        return chain((*stream.request.prompt, *stream.made))


class InProcess:
    """A `LanguageEngine` on the loop: a step, then its report `seconds` later. `kill` and `revive` are those of a process."""

    pids: tuple[int, ...] = ()
    restarts = 0

    def __init__(self, facts: Facts, seconds: float = 0.0, prefill_tokens: int = 2048) -> None:
        self.facts = facts
        self.seconds = seconds
        self.options = EchoOptions(seconds=seconds or 1e-6, prefill_tokens=prefill_tokens)
        self.steps = 0
        self.added: list[LmRequest] = []
        self.most_running = 0
        self.dead = False
        self.paused = False
        self._new()

    def _new(self) -> None:
        self.engine = ChainEngine(self.options, self.facts.streams, self.facts.context, lambda _: None)
        self.engine.kv_tokens = self.facts.kv_tokens
        self._turning = False

    def attach(self, loop: asyncio.AbstractEventLoop, listener) -> None:
        self.loop, self.listener = loop, listener

    def add(self, order: Order) -> None:
        self.added.append(order.request)
        if self.dead:
            self._fail(order.request.id, "the engine is away")
            return
        try:
            self.engine.add(replace(order.request))
        except ValueError as error:
            self._fail(order.request.id, str(error))
        self._go_on()

    def cancel(self, request_id: str) -> None:
        self.engine.cancel(request_id)
        self._go_on()

    def close(self) -> None:
        self.dead = True

    def pause(self) -> None:
        """No step begins until `resume`."""
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._go_on()

    def kill(self, reason: str = "killed by signal 9") -> None:
        self.dead = True
        self.restarts += 1
        self._new()
        self.listener.lost(reason)

    def revive(self) -> None:
        self.dead = False
        self.listener.back(self.facts)

    def _fail(self, request_id: str, why: str) -> None:
        output = LmOutput(request_id, (), "failed", error=why)
        report = StepReport(0, (), (output,), 0.0, (), 0, 0, 0)
        self.loop.call_soon(self.listener.reported, report)

    def _go_on(self) -> None:
        if not self._turning and not self.dead and not self.paused and self.engine.has_work():
            self._turning = True
            self.loop.call_soon(self._step, self.engine)

    def _step(self, engine: ChainEngine) -> None:
        report = engine.step()
        self.steps += 1
        self.most_running = max(self.most_running, report.running)
        if self.seconds:
            self.loop.call_later(self.seconds, self._report, engine, report)
        else:
            self.loop.call_soon(self._report, engine, report)

    def _report(self, engine: ChainEngine, report: StepReport) -> None:
        if engine is not self.engine:
            return  # it died meanwhile
        self._turning = False
        self.listener.reported(report)
        self._go_on()


class Words:
    """A `Language` whose tokens are bytes."""

    template = None
    stop_tokens: frozenset[int] = frozenset()
    card = SimpleNamespace(architecture="chain", parameters=0, quantization="")

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def text_stream(self, start: bool = False) -> SimpleNamespace:
        return SimpleNamespace(push=lambda ids: " ".join(map(str, ids)), finish=lambda: "")


class Ask:
    """A generation and what its caller heard."""

    def __init__(self, house: House, served, prompt, most: int, **how) -> None:
        self.house, self.served = house, served
        self.tokens: list[int] = []
        self.at: list[float] = []
        self.errors: list[PeltonError | None] = []
        self.finish: str | None = None
        self.ended = house.loop.create_future()
        self.on_heard: Callable[[Ask], None] = lambda ask: None
        self.hung_up = False
        self.generation = Generation(
            tuple(prompt), most, self._heard, self._done, house.clock(), request_id=str(len(house.asks)), **how
        )

    def _heard(self, output: LmOutput) -> None:
        assert not self.hung_up
        assert not self.errors
        self.tokens.extend(output.tokens)
        self.at.append(self.house.clock())
        self.finish = output.finish_reason
        self.on_heard(self)

    def _done(self, error: PeltonError | None) -> None:
        assert not self.hung_up
        self.errors.append(error)
        if not self.ended.done():
            self.ended.set_result(error)

    def hang_up(self, satisfied: bool = False) -> None:
        self.hung_up = True
        self.generation.satisfied = satisfied
        self.house.engine.hang_up(self.served, self.generation)
        if not self.ended.done():
            self.ended.set_result(None)

    @property
    def right(self) -> bool:
        """Whether every token is the one that follows this prompt and the tokens before."""
        return self.tokens == continued(self.generation.prompt, len(self.tokens))


class House:
    """One engine; `serve` gives it a model, `ask` a generation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: list = []
        self.loop = asyncio.get_running_loop()
        self.clock = time.perf_counter
        self.ledger = Ledger(self.clock, [self.records.extend])
        self.weights: dict[str, float] = {}
        self.engine = Engine(
            self.loop,
            Executor(self.loop, 1, self.clock),
            self.ledger,
            self.clock,
            weight=lambda tenant: self.weights.get(tenant, 1.0),
        )
        self.asks: list[Ask] = []

    def serve(
        self,
        name="m",
        version="a",
        streams=4,
        fair=False,
        seconds=0.0,
        slo=Slo(),
        speed=Speed(1e6, {1: 1e-4, 8: 2e-4}),
        **facts,
    ):
        path = self.folder / f"{name}-{version}"
        path.mkdir(exist_ok=True)
        (path / "weights").write_bytes(b"")
        packages.save(Manifest(name, "language", "weights", SIGNATURE, slo=slo), path)
        prefill = facts.pop("prefill_tokens", 2048)
        known = {"engine": "chain", "context": 4096, "kv_tokens": 0, **facts}
        engine = InProcess(Facts(streams=streams, speed=speed, fair=fair, **known), seconds, prefill)
        replica = LanguageReplica(packages.load(path, version * 64), engine, Words(), self.clock)  # type: ignore[arg-type]
        served = self.engine.prepare_language(replica)
        self.engine.admit(served)
        return served

    def ask(self, served, prompt=(1, 2, 3), most=8, **how) -> Ask:
        ask = self._made(served, prompt, most, **how)
        self.engine.generate(served, ask.generation)
        return ask

    def _made(self, served, prompt, most, **how) -> Ask:
        ask = Ask(self, served, prompt, most, **how)
        self.asks.append(ask)
        return ask

    def submit(self, served, texts: list[str], **how) -> tuple[Call, asyncio.Future]:
        ended = self.loop.create_future()
        now = self.clock()
        call = Call([], len(texts), ended.set_result, now, now + 60, fields={"prompt": texts}, **how)
        self.engine.submit(served, call)
        return call, ended

    async def idle(self) -> None:
        async with asyncio.timeout(30):
            await self.engine.idle()
        self.ledger.fold()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.001)

    def check(self, *served) -> None:
        """The promises: each generation ended once, with one record and its own tokens; nothing is left anywhere."""
        assert self.engine.in_flight == 0
        assert sorted(r.request_id for r in self.records) == sorted(a.generation.request_id for a in self.asks)
        for ask in self.asks:
            assert len(ask.errors) == (0 if ask.hung_up else 1)
            assert ask.right
        for one in served:
            lane = one.lane
            assert not lane._streams
            assert not lane._sent
            assert not lane._held
            assert lane._alive == 0
            assert lane.waiting == 0
            assert not lane.queue._levels
            assert not lane.queue._active
            assert not lane._engine.engine.has_work()

    def close(self) -> None:
        self.engine.close()


@pytest.fixture
def tools() -> SimpleNamespace:
    """What the tests of this room are made of."""
    return SimpleNamespace(continued=continued, chain=chain, SIGNATURE=SIGNATURE)


@pytest.fixture
def run(tmp_path: Path):
    """Runs a coroutine function on a fresh loop, with a house."""

    def go(scenario) -> None:
        async def main() -> None:
            house = House(tmp_path)
            try:
                await scenario(house)
            finally:
                house.close()

        asyncio.run(main())

    return go
