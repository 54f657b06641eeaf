"""Responses that may be referred to later: in memory, bounded, for a while, each for the tenant that made it only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, NamedTuple

Json = dict[str, Any]

MOST: Final = 4096  # responses
MOST_BYTES: Final = 64 * 1024 * 1024
SECONDS: Final = 3600.0


class Kept(NamedTuple):
    """`items`: the whole conversation up to the answer's end; `inputs`: of these, those before the answer."""

    tenant: str
    body: bytes
    items: tuple[Json, ...]
    inputs: int
    size: int
    until: float


class ResponseStore:
    """The oldest gives way. `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float], most_bytes: int = MOST_BYTES, seconds: float = SECONDS) -> None:
        self._clock = clock
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._items: dict[tuple[str, str], tuple[Json, str]] = {}  # each with the last response that has it
        self.size = 0

    def put(self, name: str, tenant: str, body: bytes, items: tuple[Json, ...], inputs: int, size: int) -> None:
        """`size`: bytes that this one adds; a response that is larger than all room is not kept."""
        if size > self._most_bytes:
            return
        self._kept[name] = Kept(tenant, body, items, inputs, size, self._clock() + self._seconds)
        self.size += size
        for item in items:
            self._items[tenant, item["id"]] = item, name
        self._sweep()

    def get(self, name: str, tenant: str) -> Kept | None:
        self._sweep()
        kept = self._kept.get(name)
        return kept if kept is not None and kept.tenant == tenant else None

    def item(self, name: str, tenant: str) -> Json | None:
        """An item of any response that is kept."""
        self._sweep()
        found = self._items.get((tenant, name))
        return found[0] if found is not None else None

    def drop(self, name: str, tenant: str) -> bool:
        """False: there is none of this tenant."""
        if self.get(name, tenant) is None:
            return False
        self._remove(name)
        return True

    def _sweep(self) -> None:
        now = self._clock()
        while self._kept:
            name, kept = next(iter(self._kept.items()))
            if kept.until > now and self.size <= self._most_bytes and len(self._kept) <= MOST:
                return
            self._remove(name)

    def _remove(self, name: str) -> None:
        kept = self._kept.pop(name)
        self.size -= kept.size
        for item in kept.items:
            key = kept.tenant, item["id"]
            if key in self._items and self._items[key][1] == name:
                del self._items[key]
