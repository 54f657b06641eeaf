"""A snapshot: what one process has counted so far and how it stands now, as plain data that can be sent and added up.

Metrics and statistics are made from a list of snapshots, one per process, so nothing needs a central counter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import numpy as np

from pelton.errors import InvalidInput
from pelton.records.histogram import BUCKETS, Histogram
from pelton.records.tokens import HISTOGRAMS, TokenSums
from pelton.records.window import STAGES, BatchCount, Window, WindowKey


class Durations(msgspec.Struct, frozen=True):
    """A histogram; `counts` holds its buckets that are not empty. `sum` is seconds."""

    counts: dict[int, int]
    sum: float


class Tokens(msgspec.Struct, frozen=True):
    """The tokens of a window (`records.tokens`)."""

    generations: int
    prompt: int
    cached: int
    completion: int
    prefill_seconds: float
    decode_seconds: float
    histograms: dict[str, Durations]


class Sum(msgspec.Struct, frozen=True):
    """A window. `batches`: rows of a batch -> (batches, run seconds). `last_answer`: seconds since 1970, 0 for none."""

    model: str
    version: str
    protocol: str
    tenant: str
    answered: int
    rows: int
    device_seconds: float
    errors: dict[str, int]
    refusals: dict[str, int]
    dispatched: dict[str, float]
    batches: dict[int, tuple[float, float]]
    stages: dict[str, Durations]
    last_answer: float
    failed_seconds: float = 0.0
    tokens: Tokens | None = None


class Streams(msgspec.Struct, frozen=True):
    """The engine of a language model and what it has to do: `places` run at once, `running` are in the engine, `waiting`
    before it, with `waiting_tokens` of prompts. `kv_used`: share of the KV memory. `away`: why it takes nothing now."""

    engine: str
    why: str
    places: int
    context: int
    running: int
    waiting: int
    waiting_tokens: int
    kv_used: float
    busy_seconds: float
    restarts: int
    away: str = ""


class Padding(msgspec.Struct, frozen=True):
    """Tokens of a model whose rows differ in length, since the process started: those of texts, and all that were
    computed. `queued`: tokens that wait; `cap`: padded tokens of a batch at most."""

    real: int
    computed: int
    queued: int
    cap: int


class Lane(msgspec.Struct, frozen=True):
    """A version that takes calls: what waits, what runs, and its target in seconds. `card`: what pages tell of it.

    `current`: it answers callers that name no version; others are candidates, shadows, or kept for a rollback."""

    model: str
    version: str
    target: float
    cap: int
    queue_rows: int
    running: int
    card: bytes = b""
    current: bool = True
    streams: Streams | None = None  # of a language model
    padding: Padding | None = None  # of a model whose rows differ in length


class Usage(msgspec.Struct, frozen=True):
    """What the operating system says of a process. `started`: seconds since 1970. None: it does not say.

    `children_rss_bytes`: memory of the processes that it has started, engines and models of Python code."""

    cpu_seconds: float
    started: float
    rss_bytes: int | None = None
    open_fds: int | None = None
    max_fds: int | None = None
    children_rss_bytes: int | None = None


class Snapshot(msgspec.Struct, frozen=True):
    """One process. `sums` count from its start, `recent` over the last `recent_seconds`.

    `states`: names that cannot answer, and why. `connections` is None where nobody counts them.
    """

    software: str
    python: str
    in_flight: int
    usage: Usage
    sums: list[Sum] = []
    recent: list[Sum] = []
    recent_seconds: float = 0.0
    lanes: list[Lane] = []
    states: dict[str, str] = {}
    connections: int | None = None
    worker: int = 0  # its place among the processes that share the port

    def to_bytes(self) -> bytes:
        """For another process of the same release."""
        return _encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Snapshot:
        """Raises InvalidInput for anything but the bytes of `to_bytes`."""
        try:
            return _decode(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidInput(f"not a snapshot of a Pelton process: {error}") from None


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Snapshot).decode


def sums_of(totals: Mapping[WindowKey, Window], epoch: float) -> list[Sum]:
    """Windows as plain data. `epoch`: seconds since 1970 at zero of the clock that the records were timed with."""
    return [
        Sum(
            *key,
            window.answered,
            window.rows,
            window.device_seconds,
            dict(window.errors),
            dict(window.refusals),
            dict(window.dispatched),
            {size: (batch.count, batch.seconds) for size, batch in window.batches.items()},
            {stage: _durations(histogram) for stage, histogram in window.stages.items()},
            window.last_answer + epoch if window.last_answer else 0.0,
            window.failed_seconds,
            _tokens(window.tokens) if window.tokens is not None else None,
        )
        for key, window in totals.items()
    ]


def merged(sums: Iterable[Sum]) -> dict[WindowKey, Window]:
    """Windows, also of several processes, added up by key."""
    totals: dict[WindowKey, Window] = {}
    for one in sums:
        totals.setdefault(WindowKey(one.model, one.version, one.protocol, one.tenant), Window()).merge(_window(one))
    return totals


def by_version(totals: Mapping[WindowKey, Window]) -> dict[tuple[str, str], Window]:
    """Windows of all protocols and tenants, added up by (model, version)."""
    joined: dict[tuple[str, str], Window] = {}
    for key, window in totals.items():
        joined.setdefault((key.model, key.version), Window()).merge(window)
    return joined


def _durations(histogram: Histogram) -> Durations:
    filled = np.flatnonzero(histogram.counts)
    return Durations(dict(zip(filled.tolist(), histogram.counts[filled].tolist(), strict=True)), histogram.sum)


def _window(one: Sum) -> Window:
    window = Window()
    window.answered, window.rows = one.answered, one.rows
    window.device_seconds, window.last_answer = one.device_seconds, one.last_answer
    window.failed_seconds = one.failed_seconds
    window.errors, window.refusals, window.dispatched = dict(one.errors), dict(one.refusals), dict(one.dispatched)
    for size, (count, seconds) in one.batches.items():
        batch = window.batches[size] = BatchCount()
        batch.count, batch.seconds = count, seconds
    for stage in STAGES:
        durations = one.stages.get(stage)
        if durations is not None:
            window.stages[stage] = _histogram(durations)
    if one.tokens is not None:
        window.tokens = _token_sums(one.tokens)
    return window


def _tokens(sums: TokenSums) -> Tokens:
    return Tokens(
        sums.generations,
        sums.prompt,
        sums.cached,
        sums.completion,
        sums.prefill_seconds,
        sums.decode_seconds,
        {name: _durations(histogram) for name, histogram in sums.histograms.items()},
    )


def _token_sums(tokens: Tokens) -> TokenSums:
    sums = TokenSums()
    sums.generations, sums.prompt = tokens.generations, tokens.prompt
    sums.cached, sums.completion = tokens.cached, tokens.completion
    sums.prefill_seconds, sums.decode_seconds = tokens.prefill_seconds, tokens.decode_seconds
    for name in HISTOGRAMS:
        durations = tokens.histograms.get(name)
        if durations is not None:
            sums.histograms[name] = _histogram(durations)
    return sums


def _histogram(durations: Durations) -> Histogram:
    histogram = Histogram()
    histogram.sum = durations.sum
    for bucket, count in durations.counts.items():
        if 0 <= bucket < BUCKETS:
            histogram.counts[bucket] = count
    return histogram
