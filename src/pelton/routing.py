"""Which calls go to the candidate: by a weight, and for callers that send a key always alike."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Final

_BITS: Final = 63  # of a key's number: it fits the integers of every database
_ALL: Final = 1 << _BITS


class Sticky:
    """Splits calls by `weight`, the candidate's share from 0 to 1.

    A key has a fixed place in [0, 1), the same in every process; keys below the weight go to the candidate. So a key
    that goes there at 5 % goes there at 25 % as well. `salt` names the rollout: another one finds other keys.
    `draw` gives the place of calls without a key: uniform in [0, 1). Safe between threads where `draw` is.
    """

    __slots__ = ("_bound", "_draw", "_start", "weight")

    def __init__(self, salt: str, weight: float, draw: Callable[[], float] = random.random) -> None:
        self.weight = weight
        self._bound = int(min(max(weight, 0.0), 1.0) * _ALL)
        self._draw = draw
        salted = hashlib.blake2b(salt.encode(), digest_size=16).digest()
        self._start = hashlib.blake2b(digest_size=8, salt=salted)

    def pick(self, key: bytes | None) -> tuple[bool, int]:
        """Whether the call goes to the candidate, and the key's number: 1 or more, and 0 for none (None or empty)."""
        if not key:
            return self._draw() < self.weight, 0
        state = self._start.copy()
        state.update(key)
        place = int.from_bytes(state.digest()) >> 1
        return place < self._bound, place or 1
