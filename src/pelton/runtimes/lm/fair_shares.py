"""How the steps of one engine are shared between tenants. Pure: no clock, no token is looked at.

Each tenant has a virtual counter: the time that its parts of steps took, by prediction, divided by its weight (Sheng et
al., "Fairness in Serving Large Language Models", 2024). Who has the least goes first; who comes back after a pause starts
from the least of those that are here, so that idleness is not saved up.

That orders tenants over seconds. Within one step, each tenant that decodes is protected by a bound: the step may take at
most as many times longer than it would for this tenant alone as its share is small. What fits is dealt out evenly.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

REMEMBERED: Final = 4096  # counters of tenants that are away
QUANTUM: Final = 16  # prompt tokens that are dealt out at once, at most
SHORT_CHUNK: Final = 8  # prompt tokens that a step takes at least while others decode: less would only cost overhead
CROWD: Final = 3.0  # with this, a burst of prompts has its first tokens as soon as if no stream were protected
LONE_CHUNK: Final = 64  # and while nobody does
FIRST_TOKEN: Final = (
    1.25  # a step with the prompt of a tenant that was served least may take this many times that prompt
)


class Pace(Protocol):
    """How long steps take, in seconds. `pelton.scheduling.token_speed.TokenSpeed` learns it."""

    def step(self, streams: int) -> float:
        """Of a step in which so many streams decode; 0 for none."""

    def prefill(self, tokens: int) -> float:
        """That so many prompt tokens add to a step."""


class Tokens:
    """The pace of an engine whose steps nobody timed: a new token weighs as much as two of a prompt."""

    def step(self, streams: int) -> float:
        return 2.0 * streams

    def prefill(self, tokens: int) -> float:
        return float(tokens)


def prompt_tokens(pace: Pace, streams: int, prompts: int, longest: float) -> int:
    """How many prompt tokens a step may take beside `streams` streams that decode, for `prompts` prompts in line.

    One prompt may double the step's time. Many prompts before few streams may take more, because those who wait for a
    first token then outnumber those who wait for a next one. `longest`: seconds that a step with prompts should stay below.
    """
    each = pace.prefill(1)
    if not streams:
        return max(LONE_CHUNK, int(longest / each)) if math.isfinite(longest) else 1 << 30
    decode = pace.step(streams)
    crowd = 1.0 + CROWD * max(0, prompts - 1) / streams
    seconds = max(decode, min(decode * crowd, longest - decode))
    return max(SHORT_CHUNK, int(seconds / each))


@dataclass(slots=True, eq=False)
class Tenant:
    """One tenant that has requests here. `served`: its counter, in seconds over weight."""

    name: str
    weight: float
    served: float
    requests: int = 0
    running: int = 0


class Tenants:
    """Who has requests here, and what was served to whom."""

    def __init__(self) -> None:
        self.here: dict[str, Tenant] = {}
        self._away: OrderedDict[str, float] = OrderedDict()

    def enter(self, name: str, weight: float) -> Tenant:
        """A request of this tenant came. Its newest weight counts."""
        tenant = self.here.get(name)
        if tenant is None:
            least = min((other.served for other in self.here.values()), default=0.0)
            tenant = self.here[name] = Tenant(name, weight, max(self._away.pop(name, 0.0), least))
        tenant.weight = weight
        tenant.requests += 1
        return tenant

    def leave(self, tenant: Tenant) -> None:
        """One of its requests ended."""
        tenant.requests -= 1
        if tenant.requests:
            return
        del self.here[tenant.name]
        self._away[tenant.name] = tenant.served
        if len(self._away) > REMEMBERED:
            self._away.popitem(last=False)

    def in_turn(self) -> list[Tenant]:
        """Who was served least comes first; of equals, who has less running."""
        return sorted(self.here.values(), key=lambda t: (t.served, t.running / t.weight, t.name))

    def share(self, tenant: Tenant) -> float:
        """Of everything: between 0 and 1."""
        return tenant.weight / sum(other.weight for other in self.here.values())


@dataclass(slots=True, eq=False)
class Demand:
    """What one tenant could do in a step, and what it may."""

    share: float
    streams: int  # that could decode
    tokens: int  # of prompts that could be computed
    given_streams: int = 0
    given_tokens: int = 0


def longest_step(demands: Iterable[Demand], pace: Pace) -> float:
    """Seconds: no tenant's streams are slowed down more than its share explains."""
    return min((pace.step(d.streams) / d.share for d in demands if d.streams), default=math.inf)


def deal(demands: Sequence[Demand], pace: Pace, budget: int, bound: float, prompts_first: bool) -> None:
    """Fills in what each tenant may do. `demands` are in turn; `budget`: positions in the step; `bound`: its seconds.

    Units (one stream, or some tokens of a prompt) go to whom has had the least of this step, in proportion to the shares;
    a tenant that wants both gets both in equal parts. `prompts_first` decides between a tenant's first two units.
    """
    streams = sum(demand.streams for demand in demands)
    used = _Used(pace, budget, streams, bound)
    lead = demands[0]
    if lead.tokens and not lead.streams and streams:
        lead.given_tokens = used.first_prompt(lead.tokens)
    stream_cost = pace.step(max(1, streams)) / max(1, streams)
    quantum = _quantum(pace, bound)
    line: list[tuple[float, int, int, bool]] = []
    for rank, demand in enumerate(demands):
        if demand.streams:
            line.append((0.0, rank, int(prompts_first), False))
        if demand.tokens > demand.given_tokens:
            line.append((0.0, rank, int(not prompts_first), True))
    heapq.heapify(line)
    while line:
        spent, rank, second, prompt = line[0]
        demand = demands[rank]
        parts = 2.0 if demand.streams and demand.tokens else 1.0
        if prompt:
            count = used.tokens_more(min(quantum, demand.tokens - demand.given_tokens))
            demand.given_tokens += count
            more = count > 0 and demand.given_tokens < demand.tokens
            spent += parts * pace.prefill(count) / demand.share
        else:
            count = used.stream_more()
            demand.given_streams += count
            more = count > 0 and demand.given_streams < demand.streams
            spent += parts * stream_cost / demand.share
        if more:
            heapq.heapreplace(line, (spent, rank, second, prompt))
        else:
            heapq.heappop(line)


def _quantum(pace: Pace, bound: float) -> int:
    if not math.isfinite(bound):
        return QUANTUM
    return max(1, min(QUANTUM, int(bound / (8.0 * pace.prefill(1)))))


class _Used:
    """What of a step is dealt out already."""

    def __init__(self, pace: Pace, budget: int, streams: int, bound: float) -> None:
        """`streams`: that could decode; prompts leave them their positions."""
        self._pace, self._bound = pace, bound
        self._budget, self._prompt_budget = budget, budget - streams
        self._streams = self._tokens = 0

    def stream_more(self) -> int:
        """1 if one more stream fits."""
        fits = self._fits(self._streams + 1, self._tokens)
        self._streams += fits
        return int(fits)

    def tokens_more(self, count: int) -> int:
        """`count`, or what the budget leaves of it; 0 if that does not fit."""
        count = min(count, self._prompt_budget - self._tokens)
        if count <= 0 or not self._fits(self._streams, self._tokens + count):
            return 0
        self._tokens += count
        return count

    def first_prompt(self, tokens: int) -> int:
        """The prompt of the tenant that was served least has the step nearly for itself."""
        count = min(tokens, self._prompt_budget)
        if math.isfinite(self._bound):
            count = min(count, max(1, int(self._bound / self._pace.prefill(1))))
        self._tokens += count
        if math.isfinite(self._bound):
            self._bound = min(self._bound, FIRST_TOKEN * (self._pace.step(1) + self._pace.prefill(count)))
        return count

    def _fits(self, streams: int, tokens: int) -> bool:
        if streams + tokens > self._budget:
            return False
        if not self._streams and not self._tokens:
            return True  # something always runs
        return self._pace.step(streams) + self._pace.prefill(tokens) <= self._bound
