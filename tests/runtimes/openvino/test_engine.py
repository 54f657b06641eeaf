"""The engine as its caller sees it, on a tiny graph with exact arithmetic: what it says must be what the plain graph says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ran import Ran, run
from tiny_graph import VOCAB, Plain, write

from pelton.runtimes.engine_process.order import EngineOrder, Options
from pelton.runtimes.openvino import build, graph
from pelton.runtimes.openvino.assembly import OpenVinoOptions, assemble
from pelton.runtimes.openvino.engine import OpenVinoEngine
from pelton.runtimes.step_engine import LmRequest, Sampling


def exact(**own: int) -> OpenVinoOptions:
    return OpenVinoOptions(**{"kv_precision": "f32", "step_tokens": 48, "step_seconds": 60.0, **own})  # type: ignore[arg-type]


EXACT = exact()


class Model:
    """One compiled graph for all engines of these tests, and the plain one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.graph = graph.compile_paged(path, 1, "f32")
        self.plain = Plain(path)

    def engine(self, own: OpenVinoOptions = EXACT, **options: object) -> OpenVinoEngine:
        order = EngineOrder("tiny", "openvino", str(self.path.parent), self.path.name)
        order = replace(order, options=Options(**{"streams": 8, "context": 256, "kv_tokens": 2048, **options}))  # type: ignore[arg-type]
        return assemble(order, own, self.graph)[0]

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        logits = self.plain.logits(list(tokens)).astype(np.float64)
        high = logits.max(-1, keepdims=True)
        return np.asarray(logits - high - np.log(np.exp(logits - high).sum(-1, keepdims=True)))

    def continuation(self, prompt: Sequence[int], count: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.plain.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write(tmp_path_factory.mktemp("tiny")))


def prompt(seed: int, length: int = 40) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, VOCAB, length).tolist())


def alone(model: Model, request: LmRequest) -> list[int]:
    return run(model.engine(), request).tokens[request.id]


# ---- the tokens


def test_greedy_tokens_are_those_of_the_plain_graph_alone_and_in_a_batch(model: Model) -> None:
    requests = [LmRequest(str(i), prompt(i, 3 + 13 * i), 12) for i in range(6)]
    together = run(model.engine(), *requests)
    for request in requests:
        expected = model.continuation(request.prompt, 12)
        assert together.tokens[request.id] == expected
        assert alone(model, request) == expected
        assert together.finish(request.id) == "length"


def test_a_seed_decides_the_text_whatever_else_is_in_the_batch(model: Model) -> None:
    requests = [
        LmRequest(str(i), prompt(9, 20), 10, Sampling(temperature=0.9, top_p=0.8 + 0.2 * (i % 2), seed=i // 2 * 7))
        for i in range(6)
    ]
    together = run(model.engine(), *requests)
    for request in requests:
        assert together.tokens[request.id] == alone(model, request) == alone(model, request)
    assert len({tuple(tokens) for tokens in together.tokens.values()}) > 3, "other seeds, other texts"


def test_a_prompt_in_chunks_answers_as_in_one(model: Model) -> None:
    request = LmRequest("a", prompt(1, 150), 8)
    small = run(model.engine(exact(step_tokens=32)), request)
    assert len([r for r in small.reports if r.prefill_tokens]) > 4
    large = run(model.engine(exact(step_tokens=256)), request)
    assert len([r for r in large.reports if r.prefill_tokens]) == 1
    assert small.tokens == large.tokens == {"a": model.continuation(request.prompt, 8)}


def test_preempted_requests_answer_the_same(model: Model) -> None:
    requests = [LmRequest(str(i), prompt(i, 30), 60, Sampling(temperature=float(i % 2), seed=i)) for i in range(5)]
    tight = run(model.engine(kv_tokens=32 * 9, prefix_cache="off"), *requests)
    assert sum(len(report.preempted) for report in tight.reports) > 0
    for request in requests:
        assert tight.tokens[request.id] == alone(model, request)


def test_streams_that_pause_for_another_tenant_answer_the_same(model: Model) -> None:
    flood = [LmRequest(f"a{i}", prompt(i, 10 + i), 25, tenant="a") for i in range(12)]
    other = LmRequest("b", prompt(99), 25, Sampling(temperature=0.7, seed=5), tenant="b")
    engine = model.engine()
    engine.scheduler._pace = engine.scheduler._weights = Slow()  # shares depend on how long steps take
    ran = run(engine, *flood, other)
    assert any(len(r.shares) < r.running and r.decode_tokens for r in ran.reports), "nobody paused"
    for request in (*flood, other):
        assert ran.tokens[request.id] == alone(model, request)


class Slow:
    def step(self, streams: int) -> float:
        return 0.017 + 0.004 * streams if streams else 0.0

    def prefill(self, tokens: int) -> float:
        return 0.001 * tokens


def test_guessing_changes_how_many_steps_are_taken_and_not_the_answer(model: Model) -> None:
    request = LmRequest("a", (5, 6, 7, 8, 9, 10) * 8, 60)
    plain, guessed = run(model.engine(), request), run(model.engine(exact(guesses=4)), request)
    assert guessed.tokens == plain.tokens
    assert sum(r.decode_tokens for r in guessed.reports) > sum(r.decode_tokens for r in plain.reports)


# ---- the prefix cache


def test_a_repeated_prefix_is_found_within_a_salt_and_changes_nothing(model: Model) -> None:
    engine = model.engine()
    requests = [LmRequest(name, prompt(3, 100), 9, salt=salt) for name, salt in (("a", "x"), ("b", "x"), ("c", "y"))]
    first, again, other = (run(engine, request) for request in requests)
    assert first.tokens["a"] == again.tokens["b"] == other.tokens["c"] == model.continuation(prompt(3, 100), 9)
    assert (first.cached(), again.cached(), other.cached()) == (0, 96, 0)


def test_all_share_or_none_if_the_options_say_so(model: Model) -> None:
    for option, expected in (("shared", 96), ("off", 0)):
        engine = model.engine(prefix_cache=option)
        run(engine, LmRequest("a", prompt(3, 100), 2, salt="x"))
        assert run(engine, LmRequest("b", prompt(3, 100), 2, salt="y")).cached() == expected


def test_the_answer_of_one_turn_is_cached_for_the_next(model: Model) -> None:
    engine = model.engine()
    first = run(engine, LmRequest("a", prompt(4, 40), 30)).tokens["a"]
    longer = (*prompt(4, 40), *first, 7)
    second = run(engine, LmRequest("b", longer, 3))
    assert second.cached() == 64
    assert second.tokens["b"] == model.continuation(longer, 3)


# ---- accounts, ends, refusals


def test_every_position_is_accounted_for_exactly_once(model: Model) -> None:
    requests = [LmRequest(str(i), prompt(i, 30 + i), 6) for i in range(5)]
    ran = run(model.engine(), *requests)
    prefill: Counter[str] = Counter()
    decode: Counter[str] = Counter()
    for report in ran.reports:
        assert report.prefill_tokens + report.decode_tokens <= 48
        assert report.seconds > 0.0
        for share in report.shares:
            prefill[share.request_id] += share.prefill_tokens
            decode[share.request_id] += share.decode_tokens
    assert prefill == {request.id: len(request.prompt) for request in requests}
    assert decode == {request.id: 5 for request in requests}, "the first token comes of the prompt"


def test_a_cancelled_request_is_gone_before_the_next_step(model: Model) -> None:
    engine = model.engine()
    ran = run(engine, LmRequest("a", prompt(1), 50), LmRequest("b", prompt(2), 50), steps=4)
    assert engine.cancel("a")
    assert not engine.cancel("a")
    report = engine.step()
    ran.take(report)
    assert {share.request_id for share in report.shares} == {"b"}
    assert ran.finish("a") == "cancelled"
    while engine.has_work():
        ran.take(engine.step())
    assert ran.tokens["b"] == alone(model, LmRequest("b", prompt(2), 50))
    assert engine.scheduler.pool.free == engine.scheduler.pool.count
    assert not engine._choosers


def test_a_request_cancelled_before_its_first_step_is_told_so(model: Model) -> None:
    engine = model.engine()
    engine.add(LmRequest("a", prompt(1), 5, prompt_logprobs=True))
    assert engine.cancel("a")
    assert engine.has_work()
    report = engine.step()
    assert [(o.request_id, o.finish_reason) for o in report.outputs] == [("a", "cancelled")]
    assert not engine.has_work()
    assert engine.step().outputs == ()


def test_a_stop_token_ends_the_output_and_is_reported(model: Model) -> None:
    expected = model.continuation(prompt(1), 8)
    ran = run(model.engine(), LmRequest("a", prompt(1), 8, stop_tokens=frozenset({expected[3]})))
    assert ran.tokens["a"] == expected[: expected.index(expected[3]) + 1]
    assert ran.finish("a") == "stop"


def test_impossible_requests_are_refused_at_once_and_leave_nothing_behind(model: Model) -> None:
    engine = model.engine(kv_tokens=128)
    for request, words in (
        (LmRequest("long", prompt(1, 120), 20), "context"),
        (LmRequest("odd", (1, VOCAB), 1), "outside"),
        (LmRequest("less", (1, -1), 1), "outside"),
        (LmRequest("bias", (1, 2), 1, Sampling(bias=((VOCAB, 1.0),))), "bias"),
    ):
        with pytest.raises(ValueError, match=words):
            engine.add(request)
    assert not engine.has_work()
    engine.add(LmRequest("a", (1, 2), 1))
    with pytest.raises(ValueError, match="already"):
        engine.add(LmRequest("a", (1, 2), 1))
    assert run(engine).finish("a") == "length"


def test_priority_goes_first(model: Model) -> None:
    ran = run(model.engine(streams=1), *(LmRequest(str(i), prompt(i), 3, priority=-i) for i in range(3)))
    assert [o.request_id for o in ran.outputs if o.finish_reason] == ["2", "1", "0"]


# ---- logprobs


def test_logprobs_are_those_of_the_plain_graph(model: Model) -> None:
    sampling = Sampling(temperature=0.8, seed=3, logprobs=5, bias=((3, 4.0),), frequency=0.5)
    requests = [
        LmRequest("a", prompt(5), 4, sampling),
        LmRequest("b", prompt(6), 4),
        LmRequest("c", prompt(7), 4, sampling),
    ]
    ran = run(model.engine(), *requests)
    for request in (requests[0], requests[2]):
        tokens = list(request.prompt)
        for output in (o for o in ran.outputs if o.request_id == request.id):
            assert output.logprobs is not None
            (entry,) = output.logprobs
            expected = model.logprobs(tokens)[-1]
            order = np.argsort(-expected)[:5]
            assert [token for token, _ in entry.top] == order.tolist()
            assert [value for _, value in entry.top] == pytest.approx(expected[order], abs=1e-4)
            assert entry.chosen == pytest.approx(expected[output.tokens[0]], abs=1e-4)
            tokens += output.tokens
    assert all(o.logprobs is None for o in ran.outputs if o.request_id == "b")


@pytest.mark.parametrize("most", [None, 0, 1, 3])
def test_prompt_logprobs_are_those_of_the_plain_graph(model: Model, most: int | None) -> None:
    engine = model.engine(exact(step_tokens=32))
    run(engine, LmRequest("before", prompt(5, 100), 1))  # in the prefix cache, which must not be used
    asked = LmRequest("a", prompt(5, 100), 3, Sampling(logprobs=most), prompt_logprobs=True)
    ran = run(engine, asked, LmRequest("b", prompt(6), 12), LmRequest("c", prompt(5, 100), 12))
    assert sum(s.cached_tokens for r in ran.reports for s in r.shares if s.request_id == "a") == 0
    check_prompt(model, ran, asked, most or 0)
    assert ran.tokens["a"] == model.continuation(asked.prompt, 3)
    assert ran.tokens["b"] == model.continuation(prompt(6), 12)


def check_prompt(model: Model, ran: Ran, request: LmRequest, most: int) -> None:
    outputs = [o for o in ran.outputs if o.request_id == request.id and o.prompt_logprobs is not None]
    assert len(outputs) == 1
    assert len(outputs[0].tokens) == 1, "they come with the first token"
    entries = outputs[0].prompt_logprobs
    assert entries is not None
    assert entries[0] is None
    assert len(entries) == len(request.prompt)
    expected = model.logprobs(request.prompt)
    for position, entry in enumerate(entries[1:]):
        assert entry is not None
        assert entry.chosen == pytest.approx(expected[position][request.prompt[position + 1]], abs=1e-4)
        order = np.argsort(-expected[position])[:most]
        assert [value for _, value in entry.top] == pytest.approx(expected[position][order], abs=1e-4)


def test_prompt_logprobs_of_one_token_and_of_preempted_prompts(model: Model) -> None:
    single = LmRequest("one", (7,), 2, prompt_logprobs=True)
    check_prompt(model, run(model.engine(), single), single, 0)
    engine = model.engine(exact(step_tokens=32), kv_tokens=32 * 8, prefix_cache="off", streams=4)
    early = [LmRequest(f"e{i}", prompt(i, 30), 40, tenant="e") for i in range(2)]
    asked = LmRequest("a", prompt(8, 100), 4, Sampling(logprobs=2), prompt_logprobs=True, tenant="a")
    ran = run(engine, asked, *early)
    check_prompt(model, ran, asked, 2)


# ---- penalties, bias, grammar


def test_penalties_keep_a_token_from_returning_also_after_a_preemption(model: Model) -> None:
    greedy = run(model.engine(), LmRequest("a", prompt(1), 60)).tokens["a"]
    assert len(set(greedy)) < 60
    sampling = Sampling(frequency=100.0)
    free = run(model.engine(), LmRequest("a", prompt(1), 60, sampling)).tokens["a"]
    assert len(set(free)) == 60
    tight = model.engine(kv_tokens=32 * 9, prefix_cache="off")
    crowd = run(tight, *(LmRequest(str(i), prompt(1), 60, sampling) for i in range(4)))
    assert sum(len(report.preempted) for report in crowd.reports) > 0
    assert all(crowd.tokens[str(i)] == free for i in range(4))


def test_a_bias_forces_or_forbids_a_token(model: Model) -> None:
    expected = model.continuation(prompt(1), 4)
    forced = run(model.engine(), LmRequest("a", prompt(1), 4, Sampling(bias=((17, 100.0),)))).tokens["a"]
    assert forced == [17] * 4
    banned = run(model.engine(), LmRequest("a", prompt(1), 4, Sampling(bias=((expected[0], -100.0),)))).tokens["a"]
    assert banned[0] != expected[0]


class Words:
    """Only these outputs, token by token; as arrays or lists, as grammars may."""

    def __init__(self, *outputs: tuple[int, ...], array: bool = False) -> None:
        self.outputs, self.array = outputs, array
        self.so_far: tuple[int, ...] = ()

    def allowed(self) -> Sequence[int]:
        at = len(self.so_far)
        found = [o[at] for o in self.outputs if o[:at] == self.so_far and len(o) > at]
        return np.array(found, np.int32) if self.array else found  # type: ignore[return-value]

    def advance(self, token: int) -> None:
        assert token in self.allowed()
        self.so_far += (token,)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_confines_the_output_and_ends_it(model: Model, temperature: float) -> None:
    words = ((10, 20, 30), (10, 25), (40,))
    requests = [
        LmRequest(
            f"g{i}", prompt(i), 9, Sampling(temperature=temperature, seed=i), grammar=Words(*words, array=i % 2 == 0)
        )
        for i in range(6)
    ]
    ran = run(model.engine(), *requests, LmRequest("free", prompt(1), 9))
    for request in requests:
        assert tuple(ran.tokens[request.id]) in words
        assert ran.finish(request.id) == "stop"
    assert ran.tokens["free"] == model.continuation(prompt(1), 9)


class Broken(Words):
    def advance(self, token: int) -> None:
        raise RuntimeError("no such state")


def test_a_grammar_that_breaks_fails_its_own_request_only(model: Model) -> None:
    broken = LmRequest("broken", prompt(1), 9, grammar=Broken((10, 20)))
    empty = LmRequest("empty", prompt(1), 9, grammar=Words())
    ran = run(model.engine(), broken, empty, LmRequest("free", prompt(1), 9))
    assert ran.finish("broken") == "failed"
    assert "no such state" in next(o.error for o in ran.outputs if o.finish_reason == "failed")
    assert (ran.finish("empty"), ran.tokens["empty"]) == ("stop", [])
    assert ran.tokens["free"] == model.continuation(prompt(1), 9)


# ---- building


def test_building_gives_an_engine_with_its_facts(model: Model) -> None:
    order = EngineOrder("tiny", "openvino", str(model.path.parent), model.path.name, threads=1)
    built = build(replace(order, options=Options(streams=4, context=100, kv_tokens=320)))
    facts = built.facts
    assert (facts.engine, facts.context, facts.streams, facts.kv_tokens) == ("openvino", 100, 4, 320)
    assert facts.speed.prefill > 0
    assert sorted(facts.speed.decode) == [1, 4]
    assert all(seconds > 0 for seconds in facts.speed.decode.values())
    engine = built.engine
    assert isinstance(engine, OpenVinoEngine)
    assert run(engine, LmRequest("a", prompt(1), 5)).finish("a") == "length"


def test_the_context_comes_from_the_card_and_never_exceeds_the_memory(model: Model, tmp_path: Path) -> None:
    (tmp_path / "language.json").write_text('{"context": 96, "vocab_size": 160}')
    order = EngineOrder("tiny", "openvino", str(tmp_path), "x.xml", options=Options(streams=4))
    assert assemble(order, EXACT, model.graph)[1].context == 96
    order = replace(order, options=Options(streams=4, kv_tokens=64))
    facts = assemble(order, EXACT, model.graph)[1]
    assert (facts.context, facts.kv_tokens) == (64, 64)
