"""The record: everything that is kept of one call."""

from __future__ import annotations

import msgspec


class TokenUsage(msgspec.Struct, frozen=True, gc=False):
    """The tokens of a generation, or of all that belong to one call. Times are seconds.

    `cached`: of the prompt's tokens, those whose KV was there already. `first`: from the call's first byte to its first
    token, 0 where none came; `prefill`: from the first step to the first token, `decode`: from there to the last one.
    `finish` is the word for why it ended by itself."""

    prompt: int
    cached: int
    completion: int
    first: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    finish: str = ""
    engine: str = ""
    generations: int = 1

    @property
    def per_token(self) -> float:
        """Seconds from one token to the next, the mean; 0 for less than two."""
        return self.decode / (self.completion - self.generations) if self.completion > self.generations else 0.0


class Record(msgspec.Struct, gc=False):
    """Who asked what of which model, how long each stage took, and how it ended. Times are seconds.

    `at` is the monotonic time of the reply; `total` counts from the first byte read to the reply handed to the socket.
    `device` is the call's share of the time that its batch held the device (by rows): cost is computed from it.
    `error` is empty for an answer, else the kind of error; `reason` says why the batch left the queue, or, for a
    refusal, why it was refused. `route` is the revision of the deployment whose split has picked the version (0: the
    caller named it, or there was no choice), `key` what that caller is told apart by (0: nothing). `usage`: of a call of a language model.
    """

    model: str
    version: str
    protocol: str
    tenant: str
    rows: int
    batch_rows: int
    reason: str
    error: str
    at: float
    prepare: float
    queue: float
    run: float
    total: float
    device: float
    request_id: str = ""
    trace: str = ""
    route: int = 0
    key: int = 0
    usage: TokenUsage | None = None
