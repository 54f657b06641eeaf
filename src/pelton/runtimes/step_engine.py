"""The contract of language-model engines that run one step at a time.

A step engine owns weights, KV memory and the batch; its caller owns time. The caller adds requests, calls
`step` until `has_work` is false, and may cancel a request between any two steps. Every step says who took
part, with how many prefill and decode tokens, and for how long the device was busy: admission, fairness,
deadlines and cost are decided above, from these accounts.

    engine.add(LmRequest("a", prompt=(1, 2, 3), max_tokens=16))
    while engine.has_work():
        report = engine.step()
        for output in report.outputs:
            ...                       # new tokens of one request; finish_reason is set on its last output

Nothing here imports an engine or a tensor library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pelton.language.grammar_spec import GrammarSpec as GrammarSpec

FinishReason = Literal["stop", "length", "cancelled", "failed"]


class Grammar(Protocol):
    """Which tokens may come next. One object per request: it holds the state of that request's output."""

    def allowed(self) -> Sequence[int] | None:
        """Token ids that may come next; None when every token may. An empty sequence ends the output."""
        ...

    def advance(self, token: int) -> None:
        """Take the token that was chosen."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. The defaults are greedy: the most likely token, always.

    Penalties follow the usual definitions: `repetition` divides positive logits (multiplies negative ones) of
    every token in prompt or output; `frequency` is subtracted once per occurrence in the output, `presence`
    once if it occurs in the output at all. Order: penalties, grammar, temperature, top-k, top-p, min-p.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    seed: int = 0
    logprobs: int | None = None  # None: none; n: the chosen token's and the n most likely ones'
    bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit before everything else)

    def __post_init__(self) -> None:
        if self.temperature < 0.0:
            raise ValueError(f"temperature is {self.temperature}, must be 0 (greedy) or more")
        if self.top_k < 0 or not 0.0 < self.top_p <= 1.0 or not 0.0 <= self.min_p <= 1.0:
            raise ValueError("top_k must be >= 0, top_p in (0, 1], min_p in [0, 1]")
        if self.repetition <= 0.0:
            raise ValueError(f"repetition is {self.repetition}, must be above 0 (1 is off)")
        if self.logprobs is not None and not 0 <= self.logprobs <= 20:
            raise ValueError(f"logprobs is {self.logprobs}, must be between 0 and 20")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalized(self) -> bool:
        return self.repetition != 1.0 or self.frequency != 0.0 or self.presence != 0.0


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class LmRequest:
    """One prompt and what to do with it. Tokens are ids of the model's own vocabulary."""

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = GREEDY
    stop_tokens: frozenset[int] = frozenset()  # ends the output; the token itself is reported
    salt: str = ""  # prefixes are shared only between requests of one salt: set it to the tenant
    tenant: str = ""  # steps are shared fairly between tenants, by weight
    weight: float = 1.0
    prompt_logprobs: bool = False  # also the prompt's own tokens' logprobs (`sampling.logprobs` says how many)
    priority: int = 0  # lower runs first and is preempted last
    grammar: Grammar | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError(f"request {self.id!r} has an empty prompt: send at least one token")
        if self.max_tokens < 1:
            raise ValueError(f"request {self.id!r} asks for {self.max_tokens} tokens: ask for 1 or more")


@dataclass(frozen=True, slots=True)
class Share:
    """One request's part in one step: the basis of its cost."""

    request_id: str
    prefill_tokens: int  # prompt tokens (or, after a preemption, old output) computed in this step
    decode_tokens: int  # positions computed to produce new tokens, refused guesses of speculation included
    cached_tokens: int  # prompt tokens that the prefix cache saved; counted once, in the first step


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities under the model's unscaled distribution."""

    chosen: float
    top: tuple[tuple[int, float], ...]  # (token, logprob), most likely first


@dataclass(frozen=True, slots=True)
class LmOutput:
    """New tokens of one request. `finish_reason` is set on the last output of a request and only there.

    `prompt_logprobs` come once, no later than with the first token: one entry per token of the prompt, None for the
    first, which nothing predicts. `error`: why a request "failed", in words for its caller."""

    request_id: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did."""

    number: int
    shares: tuple[Share, ...]
    outputs: tuple[LmOutput, ...]
    seconds: float  # device time from the step's first to its last operation
    preempted: tuple[str, ...]  # requests whose KV memory was taken away; they start again on their own
    waiting: int  # requests that hold no memory yet
    running: int
    free_blocks: int  # KV blocks that a new request could have

    @property
    def prefill_tokens(self) -> int:
        return sum(share.prefill_tokens for share in self.shares)

    @property
    def decode_tokens(self) -> int:
        return sum(share.decode_tokens for share in self.shares)


class StepEngine(Protocol):
    """What every step engine does. Not thread-safe: one thread owns an engine."""

    def add(self, request: LmRequest) -> None:
        """Queue a request. Raises ValueError at once if it could never run (too long, id in use)."""
        ...

    def step(self) -> StepReport:
        """Run one step. Without work it does nothing and reports an empty step."""
        ...

    def cancel(self, request_id: str) -> bool:
        """Stop a request before the next step; its last output says "cancelled". False if it is not here."""
        ...

    def has_work(self) -> bool:
        """Whether another `step` would do or report anything."""
        ...
