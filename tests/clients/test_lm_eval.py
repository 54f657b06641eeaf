"""lm-eval's local-completions: prompts of tokens, with the logprobs of every one of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # its own


@pytest.fixture(scope="module")
def model(base: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from echo_tokenizer import tokenizer
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_bytes(tokenizer())
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>").save_pretrained(
        folder
    )
    return LocalCompletionsAPI(
        base_url=f"{base}/completions", model="echo", tokenizer=str(folder), tokenizer_backend="huggingface",
        num_concurrent=1, max_retries=1, max_length=4096, batch_size=2,
    )  # fmt: skip


def instance(kind: str, arguments: Any, number: int) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, number)


def test_loglikelihood(model: Any, tmp_path: Path):
    asked = [("The sky is", " blue"), ("One and one is", " two"), ("a", "b")]
    told = model.loglikelihood([instance("loglikelihood", one, i) for i, one in enumerate(asked)])
    # every token has a half there, and is the most likely one
    assert [(pytest.approx(value), greedy) for value, greedy in told] == [
        (len(continuation) * -math.log(2), True) for _, continuation in asked
    ]


def test_rolling_loglikelihood(model: Any):
    [told] = model.loglikelihood_rolling([instance("loglikelihood_rolling", ("hello world",), 0)])
    assert told == pytest.approx(len("hello world") * -math.log(2))


def test_generation(model: Any):
    [told] = model.generate_until(
        [instance("generate_until", ("abcd", {"until": ["c"], "max_gen_toks": 8, "temperature": 0}), 0)]
    )
    assert told == "ab"
