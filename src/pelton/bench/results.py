"""What was measured: one `Step` per rate or number of callers, and the `Report` of all of them."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec
import numpy as np

from pelton.bench.confidence import max_over
from pelton.bench.load import BROKEN, REFUSALS, TIMED_OUT, UNSENT, Window
from pelton.bench.plan import Plan
from pelton.types import Array

BINS_PER_DECADE: Final = 20
LATE_SHARE: Final = 0.1  # of the target: a generator that is later than this at its own p99 is part of the latency
BUSY_SHARE: Final = 0.9  # of one core: the generator has nothing left


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds; None where nothing was timed."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    p999: float | None = None
    max: float | None = None


class Stages(msgspec.Struct, frozen=True):
    """Mean milliseconds of each stage: waiting in the generator (for its turn or a free connection),
    wire and decoding, preparing, queue, run."""

    generator: float = 0.0
    wire: float = 0.0
    prepare: float = 0.0
    queue: float = 0.0
    run: float = 0.0

    @property
    def total(self) -> float:
        return self.generator + self.wire + self.prepare + self.queue + self.run


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement at one load.

    `kind`: "closed", "probe", "confirm", "curve" or "overload". `offered`: requests/s of the open loop (0: closed).
    `over`: requests that were slower than the target, refused or failed. `answered` counts 2xx per second of the
    window, `good` those inside the target. `latency` is that of answers (a timeout counts as at least its limit);
    `refusal` the time until a 429 or 503. `bound_ms`: p99 is at most this, at the plan's confidence; None where the
    requests are too few or too many failed. `bins`: (lower edge in ms, count) of the answers.
    `rows_mean`, `rows_p99`: rows of the batch that a request ran in. `stages_tail`: of the slowest 1 %.
    `connections`: the most that were open at once. `starved`: requests that waited in the generator because it might
    open no more; an open loop with many of them is none.
    """

    kind: str
    offered: float = 0.0
    callers: int = 0
    seconds: float
    requests: int
    over: int
    ok: int
    refused: int
    failed: int
    timed_out: int
    unsent: int
    statuses: dict[int, int]
    answered: float
    good: float
    latency: Latency
    refusal: Latency
    bound_ms: float | None
    bins: list[tuple[float, int]]
    rows_mean: float | None
    rows_p99: float | None
    stages: Stages | None
    stages_tail: Stages | None
    generator_cpu: float
    generator_late_ms: float
    gave_up: bool
    connections: int = 0
    starved: int = 0

    @property
    def generator_limited(self) -> bool:
        """Whether the generator, not only the server, made the latency."""
        return self.generator_cpu > BUSY_SHARE


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole bench. `held`: the confirmed highest rate in requests/s, None where none was confirmed.

    `capacity`: the most answers per second of any step but the overload, inside the target or not.
    """

    name: str
    url: str
    p99_ms: float
    bodies: int
    body_bytes: float
    plan: Plan
    started: str
    seconds: float
    server: str
    environment: dict[str, str]
    command: str
    steps: list[Step]
    capacity: float
    held: float | None
    claim: str
    notes: list[str]

    @property
    def confirmed(self) -> Step | None:
        if self.held is None:
            return None
        kind = "curve" if self.plan.rates else "confirm"
        return next(s for s in reversed(self.steps) if s.kind == kind and s.offered == self.held)

    @property
    def overload(self) -> Step | None:
        return next((s for s in self.steps if s.kind == "overload"), None)

    @property
    def closed(self) -> list[Step]:
        return [s for s in self.steps if s.kind == "closed"]

    @property
    def curve(self) -> list[Step]:
        """Open-loop steps without the overload, by rate; of several at one rate the largest."""
        best: dict[float, Step] = {}
        for step in self.steps:
            if step.kind in ("probe", "confirm", "curve"):
                known = best.get(step.offered)
                if known is None or step.requests >= known.requests:
                    best[step.offered] = step
        return [best[rate] for rate in sorted(best)]


def summarize(
    window: Window, kind: str, p99_ms: float, confidence: float, *, offered: float = 0.0, callers: int = 0
) -> Step:
    """Counts what arrived in the window; rates count what was answered in it."""
    columns = window.samples.columns()
    ended = columns["intended"] + columns["latency"]
    inside = (columns["intended"] >= window.begin) & (columns["intended"] <= window.end)
    seconds = max(1e-9, window.end - window.begin)
    target = p99_ms / 1e3
    ok = (columns["status"] >= 200) & (columns["status"] < 300)
    in_time = (ended >= window.begin) & (ended <= window.end)
    good = ok & (columns["latency"] <= target)
    mine = {name: column[inside] for name, column in columns.items()}
    my_ok, over = ok[inside], int(np.count_nonzero(inside & ~good))
    status, latency = mine["status"], mine["latency"]
    refused = np.isin(status, REFUSALS)
    answers = latency[my_ok | (status == TIMED_OUT) | (status == UNSENT)]
    rows = mine["rows"][my_ok & (mine["rows"] > 0)]
    codes, counts = np.unique(status, return_counts=True)
    return Step(
        kind=kind,
        offered=offered,
        callers=callers,
        seconds=float(seconds),
        requests=len(status),
        over=over,
        ok=int(np.count_nonzero(my_ok)),
        refused=int(np.count_nonzero(refused)),
        failed=int(np.count_nonzero(~my_ok & ~refused & (status >= BROKEN))),
        timed_out=int(np.count_nonzero(status == TIMED_OUT)),
        unsent=int(np.count_nonzero(status == UNSENT)),
        statuses={int(code): int(count) for code, count in zip(codes, counts, strict=True) if code > 0},
        answered=float(np.count_nonzero(ok & in_time) / seconds),
        good=float(np.count_nonzero(good & in_time) / seconds),
        latency=_latency(answers),
        refusal=_latency(latency[refused]),
        bound_ms=_bound(np.where(my_ok, latency, np.inf), confidence),
        bins=_bins(answers),
        rows_mean=float(rows.mean()) if len(rows) else None,
        rows_p99=_quantile(rows, 0.99) if len(rows) else None,
        stages=_stages(mine, my_ok, 0.0),
        stages_tail=_stages(mine, my_ok, 0.99),
        generator_cpu=window.cpu,
        generator_late_ms=_quantile(np.array(window.late), 0.99) * 1e3 if len(window.late) else 0.0,
        gave_up=window.gave_up,
        connections=window.connections,
        starved=window.starved,
    )


def _quantile(values: Array, share: float) -> float:
    """The smallest value with at least `share` of the values at or below it: a value that was measured."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def _latency(seconds: Array) -> Latency:
    if not len(seconds):
        return Latency()
    p50, p90, p99, p999 = (_quantile(seconds, share) * 1e3 for share in (0.5, 0.9, 0.99, 0.999))
    return Latency(float(seconds.mean()) * 1e3, p50, p90, p99, p999, float(seconds.max()) * 1e3)


def _bound(seconds: Array, confidence: float) -> float | None:
    """The smallest measured latency that the requests prove as a bound of p99, in ms."""
    allowed = max_over(len(seconds), 0.99, confidence)
    if allowed < 0:
        return None
    value = float(np.partition(seconds, len(seconds) - 1 - allowed)[len(seconds) - 1 - allowed])
    return value * 1e3 if math.isfinite(value) else None


def _bins(seconds: Array) -> list[tuple[float, int]]:
    if not len(seconds):
        return []
    places = np.floor(np.log10(np.maximum(seconds * 1e3, 1e-3)) * BINS_PER_DECADE).astype(int)
    indices, counts = np.unique(places, return_counts=True)
    return [(10.0 ** (int(i) / BINS_PER_DECADE), int(c)) for i, c in zip(indices, counts, strict=True)]


def _stages(mine: dict[str, Array], ok: Array, above: float) -> Stages | None:
    """Mean stage times of the answers whose latency is at or above that quantile; None where the server names none."""
    chosen = ok & (mine["known"] > 0)
    if not chosen.any():
        return None
    if above:
        chosen &= mine["latency"] >= _quantile(mine["latency"][chosen], above)
    part: dict[str, Any] = {
        name: float(mine[name][chosen].mean()) * 1e3 for name in ("latency", "queue", "run", "prepare")
    }
    generator = float((mine["sent"] - mine["intended"])[chosen].mean()) * 1e3
    named = generator + part["queue"] + part["run"] + part["prepare"]
    # A server may overlap stages; what is left cannot be negative.
    wire = max(0.0, part["latency"] - named)
    return Stages(generator, wire, part["prepare"], part["queue"], part["run"])
