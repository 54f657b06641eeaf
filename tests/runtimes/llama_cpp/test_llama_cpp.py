"""llama.cpp as a step engine, with a real model."""

from __future__ import annotations

import json
import os
import stat
from itertools import pairwise
from pathlib import Path

import pytest
from llama_run import KV_TOKENS, STREAMS, Run

from pelton.errors import PackageInvalid
from pelton.language import Tokenizer
from pelton.runtimes.engine_process.order import Built, EngineOrder
from pelton.runtimes.llama_cpp import build
from pelton.runtimes.step_engine import GrammarSpec, LmRequest, Sampling, StepEngine

END = 2  # <|im_end|>
PROMPT = tuple(range(504, 544))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.read(folder / "tokenizer.json")


def forced(*tokens: int, **more: object) -> Sampling:
    """These tokens and no others, all alike."""
    return Sampling(bias=tuple((token, 1000.0) for token in tokens), **more)


def test_a_prompt_is_continued_and_every_position_is_counted(engine: StepEngine):
    run = Run(engine, [LmRequest("a", PROMPT, 6, salt="counted")])
    assert len(run.tokens()) == 6
    assert run.finish() == "length"
    assert (run.total("prefill_tokens"), run.total("cached_tokens"), run.total("decode_tokens")) == (40, 0, 5)
    assert all(report.seconds > 0 for report in run.reports if report.shares)
    numbers = [report.number for report in run.reports]
    assert all(before < after for before, after in pairwise(numbers))


def test_many_requests_run_at_once_and_the_rest_waits(engine: StepEngine):
    running: list[int] = []
    requests = [LmRequest(f"r{i}", PROMPT[: 5 + i], 4) for i in range(STREAMS + 3)]
    run = Run(engine, requests, lambda run: running.append(run.reports[-1].running))
    assert max(running) == STREAMS
    for request in requests:
        assert (len(run.tokens(request.id)), run.finish(request.id)) == (4, "length")
    assert (run.reports[-1].running, run.reports[-1].waiting, run.reports[-1].free_blocks) == (0, 0, KV_TOKENS)


def test_greedy_and_seeds_repeat_themselves(engine: StepEngine):
    greedy = [Run(engine, [LmRequest("a", PROMPT, 8)]).tokens() for _ in range(2)]
    drawn = [
        Run(engine, [LmRequest("a", PROMPT, 8, Sampling(temperature=1.5, seed=seed))]).tokens() for seed in (1, 1, 2)
    ]
    assert greedy[0] == greedy[1]
    assert drawn[0] == drawn[1] != drawn[2]


def test_narrow_draws_are_greedy(engine: StepEngine):
    greedy = Run(engine, [LmRequest("a", PROMPT, 6)]).tokens()
    for narrow in (Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-6), Sampling(1.0, min_p=1.0)):
        assert Run(engine, [LmRequest("a", PROMPT, 6, narrow)]).tokens() == greedy


def test_a_beginning_is_shared_within_a_salt_and_with_nobody_else(engine: StepEngine):
    first = Run(engine, [LmRequest("a", PROMPT, 2, salt="tenant-1")])
    mine = Run(engine, [LmRequest("a", (*PROMPT, 7), 2, salt="tenant-1")])
    theirs = [Run(engine, [LmRequest("a", PROMPT, 2, salt=f"tenant-{i}")]) for i in range(2, 3 + STREAMS)]
    assert (first.total("cached_tokens"), mine.total("cached_tokens")) == (0, 40)
    assert mine.total("prefill_tokens") == 1
    assert [run.total("cached_tokens") for run in theirs] == [0] * len(theirs)


def test_a_stop_token_ends_the_output_and_is_told(engine: StepEngine):
    run = Run(engine, [LmRequest("a", PROMPT, 9, forced(END), frozenset({END}))])
    assert (run.tokens(), run.finish()) == ([END], "stop")
    run = Run(engine, [LmRequest("a", PROMPT, 9, forced(1000), frozenset({1000}))])
    assert (run.tokens(), run.finish()) == ([1000], "stop")


def test_a_token_that_ends_texts_ends_only_requests_that_say_so(engine: StepEngine):
    run = Run(engine, [LmRequest("a", PROMPT, 3, forced(END))])
    assert (run.tokens(), run.finish()) == ([END] * 3, "length")
    assert run.total("prefill_tokens") + run.total("cached_tokens") == len(PROMPT)


def test_logprobs_are_those_of_the_model_before_sampling(engine: StepEngine):
    plain = Run(engine, [LmRequest("a", PROMPT, 3, Sampling(logprobs=3))])
    biased = Run(engine, [LmRequest("a", PROMPT, 1, forced(1000, logprobs=3))])
    entries = [entry for output in plain.outputs("a") for entry in output.logprobs or ()]
    assert [entry.top[0][0] for entry in entries] == plain.tokens()
    assert all(entry.chosen == entry.top[0][1] < 0 and len(entry.top) == 3 for entry in entries)
    assert [token for token, _ in biased.outputs("a")[0].logprobs[0].top] == [token for token, _ in entries[0].top]
    assert biased.tokens() == [1000]
    assert biased.outputs("a")[0].logprobs[0].chosen < entries[0].top[2][1]


def test_tokens_within_a_character_are_told_with_their_ids(built: Built, engine: StepEngine, tokenizer: Tokenizer):
    text = "a😀é中🇩🇪"
    assert len(tokenizer.encode(text)) > len(text) - 2  # some characters are made of several tokens
    grammar = built.grammars(GrammarSpec("lark", f'start: "{text}"'))
    run = Run(engine, [LmRequest("a", PROMPT, 40, Sampling(logprobs=0), frozenset({END, 0}), grammar=grammar)])
    tokens = [token for token in run.tokens() if token not in (END, 0)]
    assert tokenizer.decode(tokens) == text
    assert all(len(output.tokens) == len(output.logprobs or ()) for output in run.outputs("a"))
    assert run.finish() == "stop"


@pytest.mark.parametrize("limit", [2, 3, 4])
def test_an_output_that_is_cut_within_a_character_has_all_its_tokens(
    built: Built, engine: StepEngine, tokenizer: Tokenizer, limit: int
):
    whole = tokenizer.encode("a😀😀")
    first = next(token for token in whole if len(tokenizer.token_bytes(token)) < 4 and token != whole[0])
    run = Run(engine, [LmRequest("a", PROMPT, limit, forced(first))])
    assert (run.tokens(), run.finish()) == ([first] * limit, "length")


@pytest.mark.parametrize(
    ("spec", "fits"),
    [
        (GrammarSpec("regex", r"[0-9]{3}/[0-9]{2}"), lambda text: len(text) == 6 and text[3] == "/"),
        (GrammarSpec("json_object"), lambda text: isinstance(json.loads(text), dict)),
        (
            GrammarSpec("json_schema", '{"type":"object","properties":{"n":{"enum":[1,2]}},"required":["n"],'
            '"additionalProperties":false}'),
            lambda text: json.loads(text)["n"] in (1, 2),
        ),
    ],
)  # fmt: skip
def test_an_output_has_the_form_that_was_asked_for(
    built: Built, engine: StepEngine, tokenizer: Tokenizer, spec: GrammarSpec, fits
):
    prompt = tuple(tokenizer.encode("Here is a short JSON object: "))
    # an empty object is what a greedy model ends with soonest
    sampling = Sampling(bias=((tokenizer.encode("{}")[0], 5.0),)) if spec.kind == "json_object" else Sampling()
    request = LmRequest("a", prompt, 60, sampling, frozenset({END, 0}), grammar=built.grammars(spec))
    run = Run(engine, [request])
    text = tokenizer.decode([token for token in run.tokens() if token not in (END, 0)])
    assert run.finish() == "stop", text
    assert fits(text), text


def test_a_grammar_that_cannot_be_compiled_is_refused(built: Built):
    with pytest.raises(ValueError, match="regex"):
        built.grammars(GrammarSpec("regex", "["))


def test_frequency_and_presence_count_the_output_alone(engine: StepEngine):
    """Two tokens compete, both far above the others; the prompt is full of the first, which must not be punished."""
    prompt = (1000, 1001, 1000, 1001, 1000, 1000)
    bias = ((1000, 1000.0), (1001, 999.0))
    free = Run(engine, [LmRequest("a", prompt, 4, Sampling(bias=bias))])
    punished = Run(engine, [LmRequest("a", prompt, 4, Sampling(bias=bias, frequency=2.0, presence=90.0))])
    assert len(set(free.tokens())) == 1
    assert punished.tokens()[0] == free.tokens()[0]
    assert set(punished.tokens()) == {1000, 1001}
    assert punished.total("prefill_tokens") + punished.total("cached_tokens") == len(prompt)
    assert punished.total("decode_tokens") == 3


def test_repetition_counts_the_prompt_too(engine: StepEngine):
    prompt = (1000, 1001, 1000, 1001, 1000)
    bias = ((1000, 100.0), (1002, 90.0))
    assert Run(engine, [LmRequest("a", prompt, 1, Sampling(bias=bias))]).tokens() == [1000]
    assert Run(engine, [LmRequest("a", prompt, 1, Sampling(bias=bias, repetition=2.0))]).tokens() == [1002]


def test_a_cancelled_request_frees_its_slot_at_once(engine: StepEngine):
    def cancel(run: Run) -> None:
        if len(run.tokens("r0")) == 3:
            for i in range(STREAMS):
                engine.cancel(f"r{i}")

    requests = [LmRequest(f"r{i}", PROMPT, 60) for i in range(STREAMS)]
    run = Run(engine, [*requests, LmRequest("next", PROMPT, 2)], cancel)
    assert [run.finish(f"r{i}") for i in range(STREAMS)] == ["cancelled"] * STREAMS
    assert max(len(run.tokens(f"r{i}")) for i in range(STREAMS)) < 20
    assert run.finish("next") == "length"
    assert not engine.cancel("r0")


def test_more_than_the_memory_holds_waits_and_old_prompts_make_room(engine: StepEngine):
    size = KV_TOKENS // 2
    requests = [LmRequest(f"r{i}", tuple(range(600 + i, 600 + i + size - 100)), 4, salt=f"s{i}") for i in range(3)]
    run = Run(engine, requests)
    assert [run.finish(f"r{i}") for i in range(3)] == ["length"] * 3


def test_what_cannot_run_is_refused_with_the_reason(engine: StepEngine):
    with pytest.raises(ValueError, match=f"needs {KV_TOKENS + 1} tokens of context, the engine allows {KV_TOKENS}"):
        engine.add(LmRequest("a", PROMPT, KV_TOKENS + 1 - len(PROMPT)))
    with pytest.raises(ValueError, match="logprobs of a prompt"):
        engine.add(LmRequest("a", PROMPT, 1, prompt_logprobs=True))
    run = Run(engine, [LmRequest("a", (10**7,), 1), LmRequest("b", PROMPT, 1)])
    assert run.finish("a") == "failed"
    assert "llama.cpp" in run.error("a")
    assert run.finish("b") == "length"


def test_nobody_else_can_reach_the_server(built: Built):
    place = built.engine._place
    assert stat.S_IMODE(os.stat(Path(place.path).parent).st_mode) == 0o700
    assert len(place.key) > 30
    listening = {
        line.split()[9]
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    }
    links = (os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd_exists(fd))
    assert not {f"socket:[{inode}]" for inode in listening} & set(links)


def fd_exists(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_the_facts_tell_what_it_can_do(built: Built):
    facts = built.facts
    assert (facts.engine, facts.context, facts.streams, facts.kv_tokens) == ("llama.cpp", KV_TOKENS, STREAMS, KV_TOKENS)
    assert set(facts.speed.decode) == {1, STREAMS}
    assert facts.speed.prefill > 0
    assert facts.grammar
    assert not facts.prompt_logprobs


def test_a_file_that_is_no_model_is_refused(tmp_path: Path):
    pytest.importorskip("xllamacpp")
    (tmp_path / "model.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(PackageInvalid, match=r"llama\.cpp cannot load it"):
        build(EngineOrder("m", "llama.cpp", str(tmp_path), "model.gguf"))
    with pytest.raises(PackageInvalid, match=r"loads \.gguf files"):
        build(EngineOrder("m", "llama.cpp", str(tmp_path), "model.bin"))
