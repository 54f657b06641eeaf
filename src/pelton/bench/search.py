"""Finds the highest rate that holds the p99 target. What to measure next is a pure function of what was measured.

closed loops -> capacity; probes: bracket, then halve the bracket geometrically; confirm: fresh requests, their number
fixed beforehand, so that the claim does not rest on the luck of the search; curve; overload.
"""

from __future__ import annotations

import asyncio
import datetime
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from pelton.bench.confidence import holds, least_requests
from pelton.bench.load import HOPELESS_SHARE, Pool, arrivals, closed_loop, connection_limit, open_loop, run
from pelton.bench.machine import describe_machine
from pelton.bench.plan import Plan, Target, encode_requests
from pelton.bench.results import LATE_SHARE, Report, Step, summarize
from pelton.bench.table import number
from pelton.bench.wire import BadResponse, Response, read_server
from pelton.errors import InvalidInput, NotReady

MOST_PROBES: Final = 24
MOST_CONFIRMS: Final = 4
ATTEMPTS: Final = 2  # at one rate, unless it is hopeless: one hiccup of the machine must not decide
FIRST_SHARE: Final = 0.8  # of the closed-loop capacity: where the search begins
UP: Final = 1.25
DOWN: Final = 0.7
HIGHEST_SHARE: Final = 4.0  # of the closed-loop capacity: above it no rate is looked for
TARGETS_PER_STEP: Final = 20  # a step lasts so many targets, or a queue that only grows would pass for one that holds
NEAR: Final = 0.1  # a point of the curve this near to a measured one is not worth its time
LOWEST_SHARE: Final = 0.001  # of the capacity: below it no rate is looked for
PROBE_OVER: Final = 2  # a probe is long enough to hold with so many over
CONFIRM_OVER: Final = 10
CHECKED_BODIES: Final = 16


class Ask(msgspec.Struct, frozen=True):
    """Measure `requests` requests at `rate` per second."""

    kind: str
    rate: float
    requests: int


class Seen(msgspec.Struct, frozen=True):
    """What a measurement says to the search."""

    kind: str
    rate: float
    requests: int
    over: int
    answered: float = 0.0  # per second


def next_ask(plan: Plan, capacity: float, history: Sequence[Seen]) -> Ask | None:
    """What to measure next, None when done. `capacity`: answers/s of the best closed loop."""
    if plan.rates:
        return _fixed(plan, capacity, history)
    probes = [seen for seen in history if seen.kind == "probe"]
    ask = next_probe(plan, capacity, probes)
    if ask is not None:
        return ask
    held = confirmed_rate(plan, history)
    if held is None:
        ask = next_confirm(plan, probes, [seen for seen in history if seen.kind == "confirm"])
        if ask is not None:
            return ask
    if held is not None:
        for rate in (held * share for share in plan.fractions):
            if not any(abs(seen.rate - rate) <= NEAR * rate for seen in history):
                return Ask("curve", rate, _count(plan, rate, plan.step_seconds, 0))
    return _overload(plan, capacity, history)


def next_probe(plan: Plan, capacity: float, probes: Sequence[Seen]) -> Ask | None:
    """The next rate of the search: up while all hold, down while none does, then into the middle of the bracket."""
    if not probes:
        return _probe(plan, capacity * FIRST_SHARE, 0, PROBE_OVER)
    last = probes[-1]
    tries = [seen for seen in probes if seen.rate == last.rate]
    if verdict(plan, tries) is None:
        return _probe(plan, last.rate, 2 * last.requests, sum(seen.over for seen in tries))
    if len(probes) >= MOST_PROBES:
        return None
    held, failed = bracket(plan, probes)
    if failed == math.inf:
        rate = held * UP
        return _probe(plan, rate, 0, PROBE_OVER) if rate <= capacity * HIGHEST_SHARE else None
    if held == 0:
        rate = failed * DOWN
        return _probe(plan, rate, 0, PROBE_OVER) if rate >= capacity * LOWEST_SHARE else None
    if failed / held <= 1 + plan.resolution:
        return None
    return _probe(plan, math.sqrt(held * failed), 0, PROBE_OVER)


def next_confirm(plan: Plan, probes: Sequence[Seen], confirms: Sequence[Seen]) -> Ask | None:
    """The rate that the search found, then one resolution lower each time that fresh requests do not hold it."""
    held, _ = bracket(plan, probes)
    if not held or len(confirms) >= MOST_CONFIRMS:
        return None
    rate = held / (1 + plan.resolution) ** len(confirms)
    return Ask("confirm", rate, _count(plan, rate, plan.confirm_seconds, CONFIRM_OVER))


def confirmed_rate(plan: Plan, history: Sequence[Seen]) -> float | None:
    """The highest rate that fresh requests confirmed (with fixed rates: the highest that held)."""
    kind = "curve" if plan.rates else "confirm"
    rates = [s.rate for s in history if s.kind == kind and holds(s.requests, s.over, 0.99, plan.confidence)]
    return max(rates, default=None)


def verdict(plan: Plan, tries: Sequence[Seen]) -> bool | None:
    """Whether one rate holds, from all tries at it; None: try again, with more requests."""
    last = tries[-1]
    requests, over = sum(seen.requests for seen in tries), sum(seen.over for seen in tries)
    if holds(last.requests, last.over, 0.99, plan.confidence) or holds(requests, over, 0.99, plan.confidence):
        return True
    if not last.requests or last.over > HOPELESS_SHARE * last.requests or len(tries) >= ATTEMPTS:
        return False
    return None


def bracket(plan: Plan, probes: Sequence[Seen]) -> tuple[float, float]:
    """The highest rate that held below every one that did not (0: none), and the lowest that did not (inf: none)."""
    by_rate: dict[float, list[Seen]] = {}
    for seen in probes:
        by_rate.setdefault(seen.rate, []).append(seen)
    good = {rate: verdict(plan, tries) for rate, tries in by_rate.items()}
    failed = min((rate for rate, ok in good.items() if ok is False), default=math.inf)
    return max((rate for rate, ok in good.items() if ok and rate < failed), default=0.0), failed


def _probe(plan: Plan, rate: float, at_least: int, over: int) -> Ask:
    return Ask("probe", rate, max(_count(plan, rate, plan.step_seconds, over), _capped(plan, rate, at_least)))


def _count(plan: Plan, rate: float, seconds: float, over: int) -> int:
    """Requests of a step: enough for its time and to prove p99 with `over` of them over, within the longest step."""
    enough = least_requests(over, 0.99, plan.confidence)
    return _capped(plan, rate, max(math.ceil(rate * seconds), enough))


def _capped(plan: Plan, rate: float, requests: int) -> int:
    return max(1, min(requests, math.floor(rate * plan.longest_step_seconds)))


def _fixed(plan: Plan, capacity: float, history: Sequence[Seen]) -> Ask | None:
    done = {seen.rate for seen in history}
    for rate in plan.rates:
        if rate not in done:
            return Ask("curve", rate, _count(plan, rate, plan.confirm_seconds, CONFIRM_OVER))
    return _overload(plan, capacity, history)


def _overload(plan: Plan, capacity: float, history: Sequence[Seen]) -> Ask | None:
    if not plan.overload or any(seen.kind == "overload" for seen in history):
        return None
    most = max([capacity, *(seen.answered for seen in history)])
    return Ask("overload", most * plan.overload, _count(plan, most * plan.overload, plan.step_seconds, PROBE_OVER))


def run_bench(target: Target, plan: Plan, progress: Callable[[str], None] = lambda line: None) -> Report:
    """Measures; takes about a minute with the default plan. `progress` hears one line per step.

    NotReady: nothing answers there. InvalidInput: the server does not answer 2xx to one of the bodies.
    """
    return run(_bench(target, lengthened(plan, target.p99_ms / 1e3), progress))


def lengthened(plan: Plan, target: float) -> Plan:
    """The plan with steps long enough for a target of so many seconds."""
    least = min(TARGETS_PER_STEP * target, plan.longest_step_seconds)
    return msgspec.structs.replace(
        plan, step_seconds=max(plan.step_seconds, least), confirm_seconds=max(plan.confirm_seconds, least)
    )


async def _bench(target: Target, plan: Plan, progress: Callable[[str], None]) -> Report:
    requests = encode_requests(target)
    limit = connection_limit(plan.max_connections)
    server = await _check(target, requests, plan)
    started, begun = datetime.datetime.now(datetime.UTC), time.perf_counter()
    pool = Pool(target.host, target.port, requests, limit=limit, timeout=plan.timeout_seconds)
    try:
        steps = await _closed_steps(target, plan, pool, limit, progress)
        # Refused calls keep callers busy for nothing: what counts is what was answered.
        capacity = max(step.answered for step in steps)
        if not capacity:
            raise NotReady(
                f"{target.url} answered no call of {sum(s.requests for s in steps):,}; look at the server's log"
            )
        steps += await _open_steps(target, plan, pool, capacity, progress)
    except OSError as error:  # a connection that the closed loop opens ahead of time
        raise NotReady(f"{target.url} stopped taking connections: {error}; look at the server's log") from None
    finally:
        await pool.close()
    seen = [_seen(step) for step in steps if step.kind != "closed"]
    held = confirmed_rate(plan, seen)
    return Report(
        name=target.name or target.path,
        url=target.url,
        p99_ms=target.p99_ms,
        bodies=len(target.bodies),
        body_bytes=sum(map(len, target.bodies)) / len(target.bodies),
        plan=plan,
        started=started.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - begun,
        server=server,
        environment=describe_machine(),
        command=plan.command or shlex.join(sys.orig_argv),
        steps=steps,
        capacity=max(step.answered for step in steps if step.kind != "overload"),
        held=held,
        claim=claim(plan, target.p99_ms, steps, held),
        notes=notes(plan, target.p99_ms, steps, limit),
    )


async def _closed_steps(
    target: Target, plan: Plan, pool: Pool, limit: int, progress: Callable[[str], None]
) -> list[Step]:
    if plan.warmup_seconds:
        progress(f"warming up, {plan.warmup_seconds:g} s")
        await closed_loop(pool, min(8, limit), plan.warmup_seconds, 0.0)
    steps = []
    for callers in plan.callers:
        window = await closed_loop(pool, min(callers, limit), plan.step_seconds, plan.settle_seconds)
        steps.append(summarize(window, "closed", target.p99_ms, plan.confidence, callers=callers))
        progress(_line(steps[-1]))
    return steps


async def _open_steps(
    target: Target, plan: Plan, pool: Pool, capacity: float, progress: Callable[[str], None]
) -> list[Step]:
    steps: list[Step] = []
    while ask := next_ask(plan, capacity, [_seen(step) for step in steps]):
        pool.limit = max(pool.limit, connection_limit(connections_for(plan, ask, target.p99_ms / 1e3)))
        times = arrivals(ask.rate, plan.settle_seconds, ask.requests, plan.seed + len(steps))
        # Searching, a hopeless rate need not be heard out; the others are reported and must be whole.
        window = await open_loop(
            pool, times, plan.settle_seconds, over_after=target.p99_ms / 1e3, give_up=ask.kind in ("probe", "confirm")
        )
        steps.append(summarize(window, ask.kind, target.p99_ms, plan.confidence, offered=ask.rate))
        progress(_line(steps[-1]))
    return steps


def connections_for(plan: Plan, ask: Ask, target: float) -> int:
    """Connections that a step may open: in the overload as many as may be under way before the first times out, else
    twice as many as are under way where every answer takes the whole target; within the plan's bounds."""
    under_way = ask.rate * (plan.timeout_seconds if ask.kind == "overload" else 2 * target)
    return max(plan.max_connections, min(math.ceil(under_way), ask.requests, plan.most_connections))


def _seen(step: Step) -> Seen:
    return Seen(step.kind, step.offered, step.requests, step.over, step.answered)


def _line(step: Step) -> str:
    load = f"{step.callers} callers" if step.kind == "closed" else f"{step.offered:,.0f}/s offered"
    return (
        f"{step.kind}: {load}, {step.answered:,.0f}/s answered, p50 {number(step.latency.p50)} ms, "
        f"p99 {number(step.latency.p99)} ms, {step.over:,} of {step.requests:,} over"
    )


async def _check(target: Target, requests: list[bytes], plan: Plan) -> str:
    """Sends some of the bodies once and reads the answers; answers the server's name."""
    name = ""
    for place, request in enumerate(requests[:CHECKED_BODIES]):
        try:
            response = await asyncio.wait_for(_exchange(target, request), plan.timeout_seconds)
        except (OSError, BadResponse) as error:
            why = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            raise NotReady(f"no answer from {target.url}: {why}; is the server running there?") from None
        if not 200 <= response.status < 300:
            text = response.text[:300].decode("utf-8", "replace").strip()
            raise InvalidInput(
                f"{target.url} answers {response.status} to body {place}, so there is nothing to measure: {text}"
            )
        name = read_server(response.head)
    return name


async def _exchange(target: Target, request: bytes) -> Response:
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(request)
        response = Response(keep_body=True)
        while data := await reader.read(65_536):
            if response.feed(data):
                return response
        if response.ended():
            return response
        raise BadResponse("it closed the connection without a whole response")
    finally:
        writer.close()


def claim(plan: Plan, p99_ms: float, steps: Sequence[Step], held: float | None) -> str:
    """One sentence: what holds, and how many requests it rests on."""
    sure = f"{plan.confidence * 100:g} %"
    if held is not None:
        kind = "curve" if plan.rates else "confirm"
        step = next(s for s in reversed(steps) if s.kind == kind and s.offered == held)
        return (
            f"At {number(held)} requests/s, p99 ≤ {p99_ms:g} ms holds with {sure} confidence: "
            f"{step.over:,} of {step.requests:,} requests were over{_unanswered(step)}."
        )
    open_steps = [s for s in steps if s.kind in ("probe", "confirm", "curve")]
    lowest = min(open_steps, key=lambda s: (s.offered, -s.requests))
    text = (
        f"No rate was shown to hold p99 ≤ {p99_ms:g} ms with {sure} confidence; at the lowest tried, "
        f"{number(lowest.offered)} requests/s, {lowest.over:,} of {lowest.requests:,} requests were over{_unanswered(lowest)}."
    )
    least = least_requests(0, 0.99, plan.confidence)
    return (
        text if lowest.requests >= least else f"{text} A claim needs at least {least:,} requests: allow longer steps."
    )


def _unanswered(step: Step) -> str:
    count = step.refused + step.failed + step.timed_out + step.unsent
    return f", {count:,} of them refused or failed" if count else ""


def notes(plan: Plan, p99_ms: float, steps: Sequence[Step], limit: int) -> list[str]:
    """What a reader must know before believing the figures."""
    found = []
    most = max((s.answered for s in steps if s.generator_limited), default=0.0)
    if most:
        found.append(
            f"The generator used its whole core at up to {most:,.0f} answers/s: the server may be faster than this."
        )
    late = max((s.generator_late_ms for s in steps if s.kind != "overload"), default=0.0)
    if late > LATE_SHARE * p99_ms:
        found.append(
            f"The generator sent up to {late:.1f} ms late (its p99); that is counted as latency of the server."
        )
    if limit < plan.max_connections:
        found.append(f"The limit on open files allowed {limit} connections instead of {plan.max_connections}.")
    for step in steps:
        if step.kind == "overload" and step.starved:
            found.append(
                f"Overload: all {step.connections:,} connections that the generator may open were in use; "
                f"{step.starved:,} of {step.requests:,} requests waited for one, so less was under way than callers "
                "would have sent."
            )
    failed = sum(s.failed + s.timed_out for s in steps)
    if failed:
        found.append(f"{failed:,} requests failed or timed out; they count as over the target.")
    return found
