"""How many streams run at once in an engine that gives each of them a part of every step.

There a stream is slower with every other one, whoever's that is: places alone would not protect a tenant with one stream
from a tenant with many. So while one asks for less than its share, fewer run: as many as leave its tokens about as fast
as its share of the machine would make them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pelton.scheduling.token_speed import TokenSpeed

SLOWER: Final = 1.25  # times what its share of the machine would take is what a token may take, prompts of others aside
LINGER: Final = 10.0  # seconds for which a tenant that has ended its last stream is expected again


class Company:
    """The tenants of a lane, also those who were there a moment ago: one call after the other leaves gaps."""

    def __init__(self) -> None:
        self._left: dict[str, float] = {}

    def left(self, tenant: str, now: float) -> None:
        """A stream of `tenant` ended."""
        self._left.pop(tenant, None)  # so that the oldest stays first
        self._left[tenant] = now

    def wanted(self, streams: Mapping[str, int], now: float) -> dict[str, int]:
        """`streams` that wait or run, by tenant, and 0 for those who are expected."""
        while self._left and now - self._left[first := next(iter(self._left))] > LINGER:
            del self._left[first]
        return {**dict.fromkeys(self._left, 0), **streams}


def bearable(places: int, wanted: Mapping[str, int], speed: TokenSpeed) -> int:
    """How many of `places` are given away: all of them where nobody asks for less than the others leave. One is kept for
    each tenant that is expected. Pure."""
    tenants = len(wanted)
    if tenants < 2 or min(wanted.values()) * tenants >= places:
        return places
    most = SLOWER * tenants * speed.step(1)
    while places > tenants and speed.step(places) > most:
        places -= 1
    return max(1, places - sum(not streams for streams in wanted.values()))
