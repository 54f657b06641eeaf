"""What llama.cpp's `/completion` is asked for one request. Pure.

Two ways to ask. As a stream, which is the fast one. Or token by token, each a request of its own that continues what its
slot holds: for frequency and presence penalties, which llama.cpp would also count in the prompt; they are sent as biases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Literal

from pelton.runtimes.llama_cpp.grammars import LlamaGrammar
from pelton.runtimes.step_engine import LmRequest, Sampling

SEEDS: Final = 2**32 - 1  # the last one means a random seed
UNKNOWN: Final = -9999.0  # the logprob of what cannot be told, as in the OpenAI API
PrefixCache = Literal["tenant", "shared", "off"]


def by_token(sampling: Sampling) -> bool:
    """Whether the output has to be asked for token by token."""
    return sampling.frequency != 0.0 or sampling.presence != 0.0


def body(request: LmRequest, made: Sequence[int], slot: int, cached: bool, whole: int) -> dict[str, Any]:
    """The rest of the output, after the tokens that were `made` already. `whole`: so many tokens in one answer instead of
    a stream; 0: a stream. `cached`: what the slot holds may be used."""
    sampling = request.sampling
    asked: dict[str, Any] = {
        "prompt": [*request.prompt, *made],
        "n_predict": whole or request.max_tokens - len(made),
        "stream": not whole,
        "return_progress": not whole,
        "return_tokens": True,
        "id_slot": slot,
        "cache_prompt": cached,
        **_drawing(sampling, len(made) if whole else 0, len(request.prompt) + request.max_tokens),
    }
    bias = _bias(sampling, made)
    if bias:
        asked["logit_bias"] = [[token, value] for token, value in sorted(bias.items())]
    if sampling.logprobs is not None:
        asked["n_probs"] = max(1, sampling.logprobs)
    if isinstance(request.grammar, LlamaGrammar):
        asked["grammar"] = request.grammar.text
    return asked


def _drawing(sampling: Sampling, place: int, longest: int) -> dict[str, Any]:
    """The samplers in the order of the contract: penalties, (the grammar), temperature, top-k, top-p, min-p."""
    samplers: list[str] = []
    values: dict[str, Any] = {}
    if sampling.repetition != 1.0:
        samplers.append("penalties")
        values |= {"repeat_penalty": sampling.repetition, "repeat_last_n": longest}
    if sampling.greedy:
        return values | {"samplers": [*samplers, "top_k"], "top_k": 1, "temperature": 1.0, "seed": 0}
    samplers.append("temperature")
    for name, value, off in (
        ("top_k", sampling.top_k, 0),
        ("top_p", sampling.top_p, 1.0),
        ("min_p", sampling.min_p, 0.0),
    ):
        if value != off:
            samplers.append(name)
            values[name] = value
    return values | {"samplers": samplers, "temperature": sampling.temperature, "seed": (sampling.seed + place) % SEEDS}


def _bias(sampling: Sampling, made: Sequence[int]) -> dict[int, float]:
    bias = dict(sampling.bias)
    if by_token(sampling):
        for token, count in Counter(made).items():
            bias[token] = bias.get(token, 0.0) - sampling.frequency * count - sampling.presence
    return bias


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with together."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return next(place for place in range(length) if a[place] != b[place])


def may_share(mode: PrefixCache, held: str | None, salt: str) -> bool:
    """Whether a request of this salt may use what a request of the salt `held` left in a slot; None: it is empty."""
    return held is not None and (mode == "shared" or (mode == "tenant" and held == salt))
