"""Targets whose calls are refused for the moment: the decision was made for the call before and still stands.

Under overload half of the work is refusing, and what a refusal costs is missing where calls are answered. A call that
comes to a shut door costs one look: its body is neither copied nor decoded, its answer is made already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

KEPT: Final = 256  # doors; a query string invented for every call cannot make them more
# Calls with their own deadline or urgency are looked at in full.
OWN_TERMS: Final = frozenset((b"pelton-timeout-ms", b"pelton-priority"))


class Queue(Protocol):
    """What waits behind a door."""

    rows: int


class Door:
    """Shut for calls that came up to a time of the clock, while no fewer `rows` wait in `queue` than when it was shut.

    `answer`: a whole HTTP answer; `account` hears when each call that was turned away came."""

    __slots__ = ("_queue", "_rows", "_until", "account", "answer")

    def __init__(self, until: float, queue: Queue, answer: bytes, account: Callable[[float], None]) -> None:
        self._until = until
        self._queue = queue
        self._rows = queue.rows
        self.answer = answer
        self.account = account

    def shut(self, received: float) -> bool:
        """Whether a call that came then is turned away."""
        return received <= self._until and self._queue.rows >= self._rows


class Doors:
    """By target; shared by all connections of a process."""

    def __init__(self) -> None:
        self.shut: dict[bytes, Door] = {}  # empty: nothing to ask

    def close(self, target: bytes, door: Door) -> None:
        """From now on calls of `target` come to this door."""
        if len(self.shut) >= KEPT:
            self.shut.clear()
        self.shut[target] = door

    def at(self, target: bytes, received: float) -> Door | None:
        """The door that is shut for a call that came then; one that is open is forgotten."""
        door = self.shut.get(target)
        if door is None or door.shut(received):
            return door
        del self.shut[target]
        return None
