"""Whose request is next where tokens are shared: pure decisions over what waits and who holds how many places.

Each tenant has a counter of the tokens that it was served, divided by its weight (virtual token counters); the one with
the smallest is next. A tenant that comes back after a pause starts from the smallest counter of those that are active:
what it did not use meanwhile is not saved up. So a flood of one tenant makes its own requests wait, not those of others.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Generic, Protocol, TypeVar

REMEMBERED: Final = 4096  # counters of tenants that are away
GENERATED: Final = 4.0  # what a new token weighs against one of a prompt: about its time in a full batch on a CPU


class Waiting(Protocol):
    """What the queue looks at. `priority`: larger is more urgent."""

    @property
    def tenant(self) -> str: ...

    @property
    def priority(self) -> int: ...


W = TypeVar("W", bound=Waiting)


def even(tenant: str) -> float:
    """The same weight for everybody."""
    return 1.0


class FairQueue(Generic[W]):
    """Who waits, by priority, then by counter; first come, first served within a tenant and priority."""

    def __init__(self, weight: Callable[[str], float] = even) -> None:
        self.weight = weight
        self.count = 0
        self._levels: dict[int, dict[str, deque[W]]] = {}
        self._counters: dict[str, float] = {}
        self._active: dict[str, int] = {}  # requests of each tenant, waiting or running
        self._away: OrderedDict[str, float] = OrderedDict()  # counters of tenants without any

    # ---- who is there

    def enter(self, tenant: str) -> None:
        """A request of `tenant` was taken on; it counts as active until `leave`."""
        number = self._active.get(tenant, 0)
        self._active[tenant] = number + 1
        if not number:
            least = min(self._counters.values(), default=0.0)
            self._counters[tenant] = max(self._away.pop(tenant, 0.0), least)

    def leave(self, tenant: str) -> None:
        """A request of `tenant` has ended."""
        number = self._active[tenant] - 1
        if number:
            self._active[tenant] = number
            return
        del self._active[tenant]
        self._away[tenant] = self._counters.pop(tenant)
        if len(self._away) > REMEMBERED:
            self._away.popitem(last=False)

    def charge(self, tenant: str, prompt: int, generated: int) -> None:
        """`tenant`, who is active, was served tokens; negative: fewer than it was charged for."""
        self._counters[tenant] += (prompt + GENERATED * generated) / self.weight(tenant)

    def counter(self, tenant: str) -> float:
        """The virtual tokens of a tenant; 0 for one that was never here."""
        return self._counters.get(tenant, self._away.get(tenant, 0.0))

    # ---- what waits

    def push(self, item: W, front: bool = False) -> None:
        """`front`: it was taken out before its time."""
        line = self._levels.setdefault(item.priority, {}).setdefault(item.tenant, deque())
        if front:
            line.appendleft(item)
        else:
            line.append(item)
        self.count += 1

    def remove(self, item: W) -> None:
        """It waits no more. Raises ValueError for one that did not."""
        level = self._levels.get(item.priority, {})
        line = level.get(item.tenant)
        if line is None:
            raise ValueError("this request does not wait")
        line.remove(item)
        self.count -= 1
        self._tidy(item.priority, item.tenant)

    def pop(self, may: Callable[[W], bool], urgent: Callable[[W], bool]) -> W | None:
        """Takes the next one of those whose tenant's first `may` go: the most urgent priority, then one whose own
        deadline makes it `urgent`, then the tenant that was served least."""
        for priority in sorted(self._levels, reverse=True):
            heads = [line[0] for line in self._levels[priority].values() if may(line[0])]
            if heads:
                item = min(heads, key=lambda head: (not urgent(head), self._counters.get(head.tenant, 0.0)))
                self.remove(item)
                return item
        return None

    def __iter__(self) -> Iterator[W]:
        for level in self._levels.values():
            for line in level.values():
                yield from line

    def tenants(self) -> dict[str, int]:
        """How many requests of each tenant wait."""
        found: dict[str, int] = {}
        for level in self._levels.values():
            for tenant, line in level.items():
                found[tenant] = found.get(tenant, 0) + len(line)
        return found

    def ahead(self, tenant: str, priority: int) -> list[W]:
        """What a new request of `tenant` finds before it: its own of the same or a higher priority, those of others that
        are more urgent, and of others that are not as many as will be served in turn with its own."""
        mine = list(self._levels.get(priority, {}).get(tenant, ()))
        before = list(mine)
        for level, lines in self._levels.items():
            for other, line in lines.items():
                if level > priority:
                    before.extend(line)
                elif level == priority and other != tenant:
                    turns = (len(mine) + 1) * self.weight(other) / self.weight(tenant)
                    before.extend(item for item, _ in zip(line, range(int(turns)), strict=False))
        return before

    def _tidy(self, priority: int, tenant: str) -> None:
        level = self._levels[priority]
        if not level[tenant]:
            del level[tenant]
        if not level:
            del self._levels[priority]


def shares(wanted: Mapping[str, int], places: int, weight: Callable[[str], float] = even) -> dict[str, float]:
    """How many of `places` each tenant may hold: as many as it wants where that is less than its weighted part, and of
    what these leave over, again a weighted part (max-min fairness)."""
    result: dict[str, float] = {}
    left = float(places)
    open_ = {tenant: weight(tenant) for tenant, number in wanted.items() if number > 0}
    while open_:
        part = left / sum(open_.values())
        content = [tenant for tenant, share in open_.items() if wanted[tenant] <= part * share]
        if not content:
            result.update({tenant: part * share for tenant, share in open_.items()})
            break
        for tenant in content:
            result[tenant] = float(wanted[tenant])
            left -= wanted[tenant]
            del open_[tenant]
    return result
