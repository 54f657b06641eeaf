"""What a lane takes on at most, and what its engine cannot do at all. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pelton.engine.generation import Generation
from pelton.engine.stream import Stream
from pelton.errors import InvalidInput, PeltonError, TooLarge, Unsupported
from pelton.packages.manifest import Slo
from pelton.runtimes.language import Facts
from pelton.scheduling.token_admission import has_room
from pelton.scheduling.token_speed import TokenSpeed

FIRST_TOKEN: Final = 30.0  # seconds: the target where the package states none
MOST_WAITING: Final = 1024  # generations
MOST_TOKENS: Final = 4 * 1024 * 1024  # of prompts that wait
SLOWER: Final = 4.0  # times its own prompt alone: a target that Pelton chose is at least that...
TIGHTER: Final = 1.5  # ... and one that the package states


@dataclass(frozen=True, slots=True)
class Bounds:
    """`target`: seconds to the first token; `stated`: the package says so, it is not our choice. `token`: seconds of one
    token of a running stream, 0: any. `urgency`: seconds before a caller's own deadline from which it goes first."""

    target: float = FIRST_TOKEN
    stated: bool = False
    token: float = 0.0
    most_waiting: int = MOST_WAITING
    most_tokens: int = MOST_TOKENS
    urgency: float = 1.0

    @classmethod
    def of(cls, slo: Slo) -> Bounds:
        """What a package states."""
        stated = slo.ttft_ms is not None
        return cls((slo.ttft_ms or FIRST_TOKEN * 1e3) / 1e3, stated, (slo.tpot_ms or 0.0) / 1e3)

    def first_token(self, prompt: int, speed: TokenSpeed) -> float:
        """The target for a prompt of that many tokens: wider where the prompt alone would not make it."""
        alone = speed.first_token(prompt, 0)
        return max(self.target, (TIGHTER if self.stated else SLOWER) * alone)

    def places(self, streams: int, speed: TokenSpeed) -> int:
        """How many streams should run at once, of those that the engine can: fewer where tokens would come too slowly."""
        if not self.token:
            return streams
        places = streams
        while places > 1 and speed.step(places) > self.token:
            places -= 1
        return places

    def full(self, more: int, mine: Sequence[Stream], all_: Sequence[Stream]) -> str:
        """Why a prompt of `more` tokens cannot wait beside `mine` of its tenant and all others; empty: it can."""
        if not has_room(len(mine), len(all_), 1, self.most_waiting):
            return f"{len(mine)} generations of this caller wait already"
        tokens = sum([stream.size for stream in mine]), sum([stream.size for stream in all_])
        if all_ and not has_room(*tokens, more, self.most_tokens):
            return f"prompts of {tokens[0]} tokens of this caller wait already"
        return ""


def refusal_of(generation: Generation, facts: Facts, name: str) -> PeltonError | None:
    """What this engine can never do; None: nothing."""
    prompt, most, sampling = len(generation.prompt), generation.max_tokens, generation.sampling
    if not prompt:
        return InvalidInput("the prompt is empty: send at least one token")
    if most < 1:
        return InvalidInput(f"{most} tokens are asked for: ask for 1 or more")
    if prompt + most > facts.context:
        return TooLarge(
            f"the prompt has {prompt} tokens and {most} more are asked for; the context of model {name!r} is "
            f"{facts.context} tokens"
        )
    if prompt + most > facts.kv_tokens > 0:
        return TooLarge(
            f"the prompt has {prompt} tokens and {most} more are asked for; model {name!r} has memory for "
            f"{facts.kv_tokens} tokens"
        )
    missing = [
        word
        for word, asked, able in (
            ("a grammar of the output", generation.grammar is not None, facts.grammar),
            ("a bias of tokens", bool(sampling.bias), facts.bias),
            ("penalties", sampling.penalized, facts.penalties),
            ("logprobs of the prompt", generation.prompt_logprobs, facts.prompt_logprobs),
            (f"{sampling.logprobs} logprobs", True, (sampling.logprobs or 0) <= facts.top_logprobs),
        )
        if asked and not able
    ]
    if missing:
        return Unsupported(f"the engine {facts.engine!r} of model {name!r} cannot do: {', '.join(missing)}")
    return None
