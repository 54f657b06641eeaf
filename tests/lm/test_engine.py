"""The engine as its caller sees it, on a tiny model on the CPU."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lm_tiny import FAMILIES, OPTIONS, Ran, run, write_folder

from pelton.runtimes.lm.engine import EngineOptions, LmEngine
from pelton.runtimes.step_engine import LmRequest, Sampling

pytestmark = pytest.mark.lm

PROMPT = tuple(FAMILIES["qwen3"]["prompt"])
EXPECTED = FAMILIES["qwen3"]["tokens"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("lm") / "qwen3", "qwen3")


def load(folder: Path, **changes: object) -> LmEngine:
    return LmEngine.load(folder, replace(OPTIONS, **changes))  # type: ignore[arg-type]


def prompt(seed: int, length: int = 14) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 128, (length,), generator=generator).tolist())


def alone(folder: Path, request: LmRequest, **changes: object) -> list[int]:
    return run(load(folder, **changes), request).tokens[request.id]


def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(folder: Path) -> None:
    requests = [
        LmRequest(str(i), prompt(i, 3 + 5 * i), 6 + i, Sampling(temperature=0.8 * (i % 2), top_p=0.9, seed=i))
        for i in range(6)
    ]
    together = run(load(folder), *requests)
    for request in requests:
        assert together.tokens[request.id] == alone(folder, request)


def test_preempted_requests_answer_the_same(folder: Path) -> None:
    requests = [LmRequest(str(i), prompt(i, 10), 14, Sampling(temperature=float(i % 2), seed=i)) for i in range(5)]
    tight = run(load(folder, kv_blocks=12, prefix_cache=False), *requests)
    assert sum(len(report.preempted) for report in tight.reports) > 0
    for request in requests:
        assert tight.tokens[request.id] == alone(folder, request)


def test_every_position_is_accounted_for_exactly_once(folder: Path) -> None:
    requests = [LmRequest(str(i), prompt(i, 9 + i), 5) for i in range(4)]
    ran = run(load(folder, token_budget=8), *requests)
    prefill: Counter[str] = Counter()
    decode: Counter[str] = Counter()
    for report in ran.reports:
        assert report.prefill_tokens + report.decode_tokens <= 8
        assert report.seconds > 0 or not report.shares
        for share in report.shares:
            prefill[share.request_id] += share.prefill_tokens
            decode[share.request_id] += share.decode_tokens
    for request in requests:
        assert prefill[request.id] == len(request.prompt)
        assert decode[request.id] == request.max_tokens - 1  # the first token comes from the prefill


def test_a_repeated_prefix_is_found_in_the_cache_but_not_by_another_tenant(folder: Path) -> None:
    engine = load(folder)
    run(engine, LmRequest("a", PROMPT, 12, salt="one"))
    again = run(engine, LmRequest("b", PROMPT, 12, salt="one"))
    other = run(engine, LmRequest("c", PROMPT, 12, salt="two"))
    assert again.tokens["b"] == other.tokens["c"] == EXPECTED
    assert sum(share.cached_tokens for report in again.reports for share in report.shares) == 20  # 5 blocks of 22
    assert sum(share.cached_tokens for report in other.reports for share in report.shares) == 0


def test_the_answer_of_one_turn_is_cached_for_the_next(folder: Path) -> None:
    engine = load(folder)
    first = run(engine, LmRequest("a", PROMPT, 12)).tokens["a"]
    second = run(engine, LmRequest("b", (*PROMPT, *first, 5), 2))
    assert second.reports[0].shares[0].cached_tokens == 32  # 22 + 12 tokens; the last was never computed


def test_a_cancelled_request_stops_and_frees_its_memory(folder: Path) -> None:
    engine = load(folder)
    for name in ("a", "b"):
        engine.add(LmRequest(name, PROMPT, 12))
    ran = Ran()
    for _ in range(3):
        ran.take(engine.step())
    assert engine.cancel("a")
    assert not engine.cancel("a")
    while engine.has_work():
        ran.take(engine.step())
        engine.scheduler.check()
    assert ran.finish("a") == "cancelled"
    assert ran.tokens["b"] == EXPECTED
    assert ran.finish("b") == "length"
    assert engine.scheduler.pool.free == engine.scheduler.pool.count


def test_a_stop_token_ends_the_output_and_is_reported(folder: Path) -> None:
    ran = run(load(folder), LmRequest("a", PROMPT, 12, stop_tokens=frozenset({EXPECTED[2]})))
    end = EXPECTED.index(EXPECTED[2]) + 1
    assert ran.tokens["a"] == EXPECTED[:end]
    assert ran.finish("a") == "stop"


def test_guessing_changes_how_many_steps_are_taken_and_not_the_answer(folder: Path) -> None:
    text = (*PROMPT, *EXPECTED, *PROMPT)
    requests = [LmRequest("a", text, 24), LmRequest("b", text[3:], 24, Sampling(temperature=0.7, seed=4))]
    plain, guessed = run(load(folder), *requests), run(load(folder, guesses=4), *requests)
    assert guessed.tokens == plain.tokens
    looped = LmRequest("c", (5, 6, 7, 8) * 12, 60)
    slow, fast = run(load(folder, max_length=256), looped), run(load(folder, guesses=4, max_length=256), looped)
    assert fast.tokens == slow.tokens


class Words:
    """Only these outputs, token by token."""

    def __init__(self, *outputs: tuple[int, ...]) -> None:
        self.outputs = outputs
        self.so_far: tuple[int, ...] = ()

    def allowed(self) -> list[int]:
        at = len(self.so_far)
        return [o[at] for o in self.outputs if o[:at] == self.so_far and len(o) > at]

    def advance(self, token: int) -> None:
        self.so_far += (token,)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_confines_the_output_and_ends_it(folder: Path, temperature: float) -> None:
    words = ((10, 20, 30), (10, 25), (40,))
    requests = [
        LmRequest(f"g{i}", prompt(i), 10, Sampling(temperature=temperature, seed=i), grammar=Words(*words))
        for i in range(4)
    ]
    ran = run(load(folder), *requests, LmRequest("free", PROMPT, 12))
    for request in requests:
        assert tuple(ran.tokens[request.id]) in words
        assert ran.finish(request.id) == "stop"
    assert ran.tokens["free"] == EXPECTED


class Breaks(Words):
    def advance(self, token: int) -> None:
        raise RuntimeError("out of patience")


def test_a_grammar_that_breaks_ends_its_own_request_only(folder: Path) -> None:
    ran = run(load(folder), LmRequest("g", prompt(1), 10, grammar=Breaks((10, 20))), LmRequest("free", PROMPT, 12))
    assert ran.finish("g") == "failed"
    assert "out of patience" in next(output.error for output in ran.outputs if output.error)
    assert ran.tokens["free"] == EXPECTED


def test_logprobs_of_a_prompt_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="logprobs of its prompt"):
        load(folder).add(LmRequest("a", PROMPT, 3, Sampling(logprobs=1), prompt_logprobs=True))


def test_logprobs_are_those_of_the_distribution(folder: Path) -> None:
    ran = run(load(folder), LmRequest("a", PROMPT, 3, Sampling(logprobs=2)))
    for output in ran.outputs:
        assert output.logprobs is not None
        (entry,) = output.logprobs
        assert entry.top[0] == (output.tokens[0], entry.chosen)
        assert len(entry.top) == 2
        assert entry.top[1][1] <= entry.chosen <= 0.0


def test_penalties_keep_a_token_from_returning(folder: Path) -> None:
    greedy = run(load(folder), LmRequest("a", PROMPT, 30)).tokens["a"]
    assert len(set(greedy)) < 30
    ran = run(load(folder), LmRequest("a", PROMPT, 30, Sampling(frequency=100.0)))
    assert len(set(ran.tokens["a"])) == 30
    tight = load(folder, kv_blocks=18, prefix_cache=False)
    crowd = run(tight, *(LmRequest(str(i), PROMPT, 30, Sampling(frequency=100.0)) for i in range(3)))
    assert all(crowd.tokens[str(i)] == ran.tokens["a"] for i in range(3)), "a preemption forgot the counts"


def test_impossible_requests_are_refused_at_once(folder: Path) -> None:
    engine = load(folder, kv_blocks=4)
    with pytest.raises(ValueError, match="4"):
        engine.add(LmRequest("big", prompt(1, 12), 10))
    with pytest.raises(ValueError, match="context"):
        engine.add(LmRequest("long", prompt(1, 250), 10))
    with pytest.raises(ValueError, match="outside"):
        engine.add(LmRequest("odd", (1, 128), 1))
    engine.add(LmRequest("a", (1, 2), 1))
    with pytest.raises(ValueError, match="already"):
        engine.add(LmRequest("a", (1, 2), 1))


def test_priority_goes_first(folder: Path) -> None:
    engine = load(folder, max_seqs=1)
    ran = run(engine, *(LmRequest(str(i), PROMPT, 3, priority=-i) for i in range(3)))
    assert [o.request_id for o in ran.outputs if o.finish_reason] == ["2", "1", "0"]


def test_float8_weights_and_cache_run_on_the_reference_path(folder: Path) -> None:
    ran = run(load(folder, fp8_weights=True, fp8_kv=True), LmRequest("a", PROMPT, 12))
    assert len(ran.tokens["a"]) == 12


def test_random_weights_need_no_file() -> None:
    config = load_config()
    engine = LmEngine.random(config, EngineOptions(device="cpu", max_seqs=2, token_budget=16, kv_blocks=8), seed=1)
    assert len(run(engine, LmRequest("a", (1, 2, 3), 4)).tokens["a"]) == 4


def load_config():  # type: ignore[no-untyped-def]
    from pelton.runtimes.lm.config import config_from_hf

    return config_from_hf(FAMILIES["llama"]["config"])
