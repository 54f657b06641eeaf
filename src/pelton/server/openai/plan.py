"""What is asked of an engine for one request: tokens, sampling, and where the output ends. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from pelton.errors import InvalidInput
from pelton.language import GrammarSpec, Language
from pelton.runtimes.language import Facts
from pelton.runtimes.step_engine import Sampling
from pelton.server.openai.asks import MAX_STOP, MAX_STOPS, SamplingAsk
from pelton.server.openai.errors import ApiError, invalid, unsupported

MAX_RUNS: Final = 256  # generations of one request
SEED_BITS: Final = 63
LONGEST_TOKEN: Final = 128  # bytes: a text of more than so many a token of the context is refused unread

Prompt = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`n` choices for each of `prompts`, each of at most `max_tokens` (None: the rest of the context)."""

    protocol: str
    prompts: tuple[Prompt, ...]
    context: int
    sampling: Sampling
    stop_tokens: frozenset[int]
    max_tokens: int | None = None
    n: int = 1
    stops: tuple[str, ...] = ()
    include_stop: bool = False  # a stop string that is found is told, too
    grammar: GrammarSpec | None = None
    logprobs: int | None = None
    prompt_logprobs: bool = False
    log_stop_token: bool = False  # the token that ends an output has its logprobs told, too
    begins: bool = True  # the output is a text of its own, not the rest of one
    show: frozenset[int] = frozenset()  # control tokens that are text
    route: int = 0
    key: int = 0

    @property
    def lone(self) -> bool:
        return self.n == 1 and len(self.prompts) == 1

    def max_tokens_for(self, prompt: Prompt) -> int:
        """At least 1: an engine cannot make less."""
        return max(1, self.context - len(prompt) if self.max_tokens is None else self.max_tokens)

    def sampling_of(self, index: int) -> Sampling:
        """Choices of one request differ by their seed."""
        if not index:
            return self.sampling
        return replace(self.sampling, seed=(self.sampling.seed + index) % (1 << SEED_BITS))


def sampling(ask: SamplingAsk, facts: Facts, vocabulary: int, defaults: Mapping[str, float]) -> Sampling:
    """Raises ApiError where the engine cannot do what is asked."""
    bias = _bias(ask.logit_bias, facts, vocabulary)
    penalties = {
        "frequency_penalty": ask.frequency_penalty,
        "presence_penalty": ask.presence_penalty,
        "repetition_penalty": (ask.repetition_penalty or 1.0) - 1.0,
    }
    for name, value in penalties.items():
        if value and not facts.penalties:
            raise cannot(name, facts)
    seed = secrets.randbits(SEED_BITS) if ask.seed is None else ask.seed % (1 << SEED_BITS)
    repetition = (
        ask.repetition_penalty if ask.repetition_penalty is not None else defaults.get("repetition_penalty", 1.0)
    )
    return Sampling(
        temperature=temperature(ask, defaults),
        top_k=max(0, ask.top_k if ask.top_k is not None else int(defaults.get("top_k", 0))),
        top_p=top_p(ask, defaults) or 1e-6,  # 0 is asked for by people who mean the most likely token
        min_p=ask.min_p if ask.min_p is not None else defaults.get("min_p", 0.0),
        repetition=repetition if facts.penalties else 1.0,
        frequency=ask.frequency_penalty,
        presence=ask.presence_penalty,
        seed=seed,
        bias=bias,
    )


def temperature(ask: SamplingAsk, defaults: Mapping[str, float]) -> float:
    return ask.temperature if ask.temperature is not None else defaults.get("temperature", 1.0)


def top_p(ask: SamplingAsk, defaults: Mapping[str, float]) -> float:
    return ask.top_p if ask.top_p is not None else defaults.get("top_p", 1.0)


def room(facts: Facts) -> int:
    """Tokens that prompt and output may have together."""
    return min(facts.context, facts.kv_tokens) if facts.kv_tokens > 0 else facts.context


def with_logprobs(sampling: Sampling, count: int | None, facts: Facts, param: str) -> Sampling:
    """Raises ApiError where the engine cannot tell so many."""
    if count is None:
        return sampling
    if count > facts.top_logprobs:
        raise unsupported(
            f"Unsupported value: '{param}' is {count}; the engine of this model ({facts.engine}) tells "
            f"{facts.top_logprobs}.",
            param,
        )
    return replace(sampling, logprobs=count)


def stops(ask: SamplingAsk) -> tuple[str, ...]:
    """Raises ApiError."""
    given = (ask.stop,) if isinstance(ask.stop, str) else tuple(ask.stop)
    if given == ("",) and isinstance(ask.stop, str):
        return ()
    if len(given) > MAX_STOPS:
        raise invalid(f"Invalid value for 'stop': at most {MAX_STOPS} sequences are taken.", "stop")
    for stop in given:
        if not 0 < len(stop) <= MAX_STOP:
            raise invalid(f"Invalid value for 'stop': a sequence has 1 to {MAX_STOP} characters.", "stop")
    return given


def stop_tokens(language: Language, ask: SamplingAsk) -> frozenset[int]:
    """Each of them ends an output. Raises ApiError."""
    own = check_tokens(tuple(ask.stop_token_ids), language.card.vocab_size, "stop_token_ids")
    return frozenset(own) if ask.ignore_eos else language.stop_tokens.union(own)


def grammar(spec: GrammarSpec | None, facts: Facts, param: str) -> GrammarSpec | None:
    """Raises ApiError where the engine cannot be held to a grammar."""
    if spec is not None and not facts.grammar:
        raise cannot(param, facts)
    return spec


def cannot(param: str, facts: Facts) -> ApiError:
    return unsupported(
        f"Unsupported parameter: '{param}'. The engine of this model ({facts.engine}) cannot do it.", param
    )


def check_length(prompts: tuple[Prompt, ...], max_tokens: int | None, context: int, param: str) -> None:
    """Nothing is ever cut: what does not fit the context is refused, with both numbers. Raises ApiError."""
    what = param if param == "messages" else "prompt"
    for prompt in prompts:
        if not prompt:
            raise invalid(f"Invalid value for '{param}': it is empty; send at least one token.", param)
        wanted = len(prompt) + (max_tokens or 0)
        if len(prompt) >= context:
            raise too_long(context, f"your {what} resulted in {len(prompt)} tokens", f"the length of the {what}", param)
        if wanted > context:
            raise too_long(
                context,
                f"you requested {wanted} tokens ({len(prompt)} in the {what}, {max_tokens} in the completion)",
                f"the length of the {what} or completion",
                param,
            )


def check_text(size: int, context: int, param: str) -> None:
    """Refuses a text of `size` bytes that no tokenizer could bring into the context, before any tries. Raises ApiError."""
    if size > context * LONGEST_TOKEN:
        least = size // LONGEST_TOKEN
        raise too_long(
            context, f"your {param} resulted in at least {least} tokens", f"the length of the {param}", param
        )


def too_long(context: int, have: str, reduce: str, param: str) -> ApiError:
    return ApiError(
        f"This model's maximum context length is {context} tokens. However, {have}. Please reduce {reduce}.",
        param,
        "context_length_exceeded",
    )


def check_runs(count: int, param: str) -> None:
    """Raises ApiError."""
    if count > MAX_RUNS:
        raise invalid(
            f"Invalid value for '{param}': one request may have {MAX_RUNS} choices, this one has {count}.", param
        )


def check_tokens(prompt: Prompt, vocabulary: int, param: str) -> Prompt:
    """Raises ApiError for ids that the model has not."""
    if prompt and max(prompt) >= vocabulary:
        raise invalid(f"Invalid value for '{param}': this model has the tokens 0 to {vocabulary - 1}.", param)
    return prompt


def as_api_error(error: InvalidInput, param: str) -> ApiError:
    """What a template or a tokenizer refuses is in that field."""
    return invalid(str(error), param)


def _bias(given: Mapping[str, float], facts: Facts, vocabulary: int) -> tuple[tuple[int, float], ...]:
    if given and not facts.bias:
        raise cannot("logit_bias", facts)
    made = []
    for name, value in given.items():
        if not (name.isascii() and name.isdigit() and len(name) < 12 and int(name) < vocabulary):
            raise invalid(
                f"Invalid value for 'logit_bias': {name[:40]!r} is no token; this model has 0 to {vocabulary - 1}.",
                "logit_bias",
            )
        made.append((int(name), value))
    return tuple(made)
