"""Whether a generation can be taken: when its first token would come, and when its last. Pure functions.

A tenant is judged by its own part of the places and by its own queue: a flood of one tenant is refused to that tenant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import Final

from pelton.scheduling.token_speed import TokenSpeed

RESIDUAL: Final = 0.25  # of a usual answer: what is expected to be left of one that is already longer


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a new generation of a tenant meets. Numbers of tokens, streams and places.

    `left`: tokens that running streams are expected to have left whose ends make room for this tenant; `waiting`: tokens
    that are expected of the generations that take a place before this one, in their order."""

    prefill: int  # tokens of prompts that are computed before or beside its own
    streams: int  # that decode meanwhile
    free: int  # places that this tenant could have now; negative: it holds so many more than are its own
    waiting: Sequence[float] = ()
    left: Sequence[float] = ()


def tokens_left(made: int, most: int, usual: float) -> float:
    """How many tokens more a stream is expected to make. `usual`: tokens of a usual answer."""
    return min(float(most - made), max(usual - made, RESIDUAL * usual))


def place_steps(ahead: Ahead) -> float:
    """Steps until there is a place: 0 where one is free for it."""
    # a heap: the tokens after which each is free; the first ones that this tenant has too many of go to others
    places = [0.0] * max(0, ahead.free) + sorted(ahead.left)[max(0, -ahead.free) :]
    if not places:
        return 0.0
    for tokens in ahead.waiting:
        heapreplace(places, places[0] + tokens)
    return places[0]


def first_token_seconds(ahead: Ahead, prompt: int, speed: TokenSpeed) -> float:
    """Seconds until the first token of a generation with a prompt of `prompt` tokens."""
    # the steps that bring an end, and so a place, compute the prompts before it as well
    steps = max(place_steps(ahead), float(speed.chunks(ahead.prefill)))
    return steps * speed.step(ahead.streams) + speed.prefill(ahead.prefill) + speed.first_token(prompt, ahead.streams)


def answer_seconds(first: float, most: int, streams: int, speed: TokenSpeed) -> float:
    """Seconds until its last token: a usual answer's, `most` tokens at most. Before one has ended, the shortest one's: a
    caller that may be lucky is let in."""
    tokens = min(float(most), speed.length) if speed.answers else 1.0
    return first + max(0.0, tokens - 1.0) * speed.step(streams + 1)


def has_room(mine: int, all_: int, more: int, most: int) -> bool:
    """Whether a tenant that has `mine` of the `all_` that wait may add `more`: at most as much as is left over after it.
    One tenant alone can fill half of the queue, two a third each: there is always room for one that comes new."""
    return mine + more <= most - all_ - more or (mine == 0 and all_ + more <= most)
