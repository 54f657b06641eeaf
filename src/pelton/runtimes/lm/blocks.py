"""KV memory in blocks of tokens, with a prefix cache. Pure: no tensor, no clock.

A block is *held* by one or more sequences, *idle* (nobody holds it, its content is known and may be reused), or
*empty*. A full block is known by the digest of its tokens and of everything before them, so equal prefixes share
blocks. The digest starts from the tenant's salt: without it one tenant could time whether another has sent a
prompt (CVE-2025-46570).
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

Digest = bytes


def root_digest(salt: str) -> Digest:
    """Where the chain of one tenant's digests starts."""
    return hashlib.blake2b(salt.encode(), digest_size=16).digest()


def next_digest(parent: Digest, tokens: Sequence[int]) -> Digest:
    """Digest of a full block that follows `parent`. 16 bytes: no two prefixes will ever collide by chance."""
    return hashlib.blake2b(parent + array("I", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """Hands out `count` blocks of `size` tokens."""

    def __init__(self, count: int, size: int, prefix_cache: bool = True) -> None:
        if count < 1 or size < 1:
            raise ValueError(f"{count} blocks of {size} tokens: there must be at least one of each")
        self.count, self.size, self.prefix_cache = count, size, prefix_cache
        self._refs = [0] * count
        self._digest: list[Digest | None] = [None] * count
        self._known: dict[Digest, int] = {}
        self._empty = list(range(count - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def free(self) -> int:
        """Blocks that `allocate` could hand out."""
        return len(self._empty) + len(self._idle)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def match(self, digests: Iterable[Digest]) -> list[int]:
        """The blocks of the longest known prefix. Does not modify the pool."""
        found: list[int] = []
        for digest in digests:
            block = self._known.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def idle_among(self, blocks: Iterable[int]) -> int:
        """How many of these nobody holds: holding them makes `free` that much smaller."""
        return sum(1 for block in blocks if self._refs[block] == 0)

    def hold(self, blocks: Iterable[int]) -> None:
        """Share blocks that `match` found."""
        for block in blocks:
            if self._refs[block] == 0:
                del self._idle[block]
            self._refs[block] += 1

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` blocks of unknown content, or none at all. Forgets idle prefixes, oldest first."""
        if count > self.free:
            return None
        taken: list[int] = []
        for _ in range(count):
            if self._empty:
                block = self._empty.pop()
            else:
                block, _ = self._idle.popitem(last=False)
                self._forget(block)
            self._refs[block] = 1
            taken.append(block)
        return taken

    def publish(self, block: int, digest: Digest) -> None:
        """Say what a held block contains. The first block of a digest stays the known one."""
        if self.prefix_cache and self._digest[block] is None and digest not in self._known:
            self._digest[block] = digest
            self._known[digest] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of blocks in a sequence's order; its end is forgotten before its beginning."""
        for block in reversed(blocks):
            self._refs[block] -= 1
            if self._refs[block] < 0:
                raise AssertionError(f"block {block} was released more often than held")
            if self._refs[block] == 0:
                if self._digest[block] is None:
                    self._empty.append(block)
                else:
                    self._idle[block] = None

    def clear(self) -> None:
        """Forget every idle prefix."""
        while self._idle:
            block, _ = self._idle.popitem()
            self._forget(block)
            self._empty.append(block)

    def _forget(self, block: int) -> None:
        digest = self._digest[block]
        if digest is not None:
            del self._known[digest]
            self._digest[block] = None

    def check(self, holders: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless every block is accounted for. `holders`: the blocks of each sequence."""
        held = [0] * self.count
        for blocks in holders:
            if len(set(blocks)) != len(blocks):
                raise AssertionError("a sequence holds a block twice")
            for block in blocks:
                held[block] += 1
        if held != self._refs:
            raise AssertionError("reference counts differ from what sequences hold")
        empty, idle = set(self._empty), set(self._idle)
        if len(empty) != len(self._empty) or empty & idle:
            raise AssertionError("a block is free twice")
        if empty | idle != {block for block in range(self.count) if held[block] == 0}:
            raise AssertionError("a block is leaked, or free while held")
        known = {digest: block for block, digest in enumerate(self._digest) if digest is not None}
        if known != self._known or empty & set(known.values()):
            raise AssertionError("the prefix cache disagrees with the blocks")
