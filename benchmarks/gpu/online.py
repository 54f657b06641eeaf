"""Poisson arrivals, a long prompt among running streams, and ten thousand requests. Part of run.py."""

from __future__ import annotations

import resource
import statistics
import time
from random import Random
from typing import Any

import torch
import workload

from pelton.runtimes.lm.engine import LmEngine
from pelton.runtimes.step_engine import LmRequest


def poisson(rate: float, count: int) -> list[float]:
    random, at, times = Random(1), 0.0, []
    for _ in range(count):
        at += random.expovariate(rate)
        times.append(at)
    return times


def report(name: str, rate: float, times: list[Any]) -> None:
    """`times`: (arrival, first token, last token, tokens) per request."""
    first = sorted(1e3 * (t[1] - t[0]) for t in times)
    each = sorted(1e3 * (t[2] - t[1]) / max(1, t[3] - 1) for t in times)
    span = max(t[2] for t in times) - min(t[0] for t in times)

    def at(values: list[float], q: float) -> float:
        return values[min(len(values) - 1, int(q * len(values)))]

    print(
        f"{name:34s} {rate:5.1f} req/s  TTFT ms p50 {at(first, 0.5):8.1f} p99 {at(first, 0.99):8.1f}"
        f"   TPOT ms p50 {at(each, 0.5):6.2f} p99 {at(each, 0.99):6.2f}   {sum(t[3] for t in times) / span:7.0f} tokens/s",
        flush=True,
    )


def ours(engine: LmEngine, arrivals: list[float], label: str) -> list[Any]:
    work = workload.offline()
    begun = time.perf_counter()
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    count = {str(i): 0 for i in range(len(arrivals))}
    added = 0
    while added < len(arrivals) or engine.has_work():
        now = time.perf_counter() - begun
        while added < len(arrivals) and arrivals[added] <= now:
            prompt, out = work[added % len(work)]
            # the workload repeats after 256 requests: without a salt the prefix cache would answer the rest
            engine.add(LmRequest(str(added), tuple(prompt), out, salt=f"{label} {added // len(work)}"))
            added += 1
        if not engine.has_work():
            time.sleep(max(0.0, min(arrivals[added] - now, 0.002)))
            continue
        for output in engine.step().outputs:
            moment = time.perf_counter() - begun
            first.setdefault(output.request_id, moment)
            last[output.request_id] = moment
            count[output.request_id] += len(output.tokens)
    return [(arrivals[i], first[str(i)], last[str(i)], count[str(i)]) for i in range(len(arrivals))]


def long_prompt(engine: LmEngine, tokens: int = 16000, streams: int = 32) -> None:
    """How long the gaps of running streams get while a long prompt is computed, against one step of the budget."""
    for i in range(streams):
        engine.add(LmRequest(f"s{i}", tuple((31 * i + j) % 9000 for j in range(200)), 400))
    while engine.step().prefill_tokens:
        pass
    gaps: dict[str, list[float]] = {"alone": [], "with": []}
    shares: list[int] = []
    before = time.perf_counter()
    for step in range(120):
        if step == 40:
            engine.add(LmRequest("long", tuple((17 * j) % 9000 for j in range(tokens)), 4))
        done = engine.step()
        now = time.perf_counter()
        gaps["with" if done.prefill_tokens else "alone"].append(now - before)
        shares.append(done.prefill_tokens)
        before = now
    print(
        f"-- a {tokens}-token prompt among {streams} streams, budget {engine.options.token_budget}: token gap"
        f" {statistics.median(gaps['alone']) * 1e3:.2f} ms without, median {statistics.median(gaps['with']) * 1e3:.2f} ms"
        f" and at most {max(gaps['with']) * 1e3:.2f} ms in {len(gaps['with'])} steps of at most {max(shares)} prompt tokens"
    )
    for i in range(streams):
        engine.cancel(f"s{i}")
    while engine.has_work():
        engine.step()


def soak(engine: LmEngine, requests: int = 10_000) -> None:
    """Device and host memory before and after many requests, some cancelled; nothing may stay."""
    random = Random(5)

    def some(count: int, label: str) -> None:
        added = 0
        while added < count or engine.has_work():
            while added < count and len(engine.scheduler.sequences) < 300:
                length, out = random.randint(8, 200), random.randint(1, 24)
                prompt = tuple(random.randrange(9000) for _ in range(length))
                engine.add(LmRequest(f"{label}{added}", prompt, out))
                if added % 50 == 7:
                    engine.cancel(f"{label}{added - 5}")
                added += 1
            engine.step()
        engine.scheduler.check()

    def sizes() -> tuple[int, int, float]:
        torch.cuda.synchronize()
        with open("/proc/self/statm") as statm:
            rss = int(statm.read().split()[1]) * resource.getpagesize() / 2**20
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), rss

    some(1000, "w")
    before = sizes()
    begun = time.perf_counter()
    some(requests, "r")
    after = sizes()
    free = engine.scheduler.pool.free == engine.scheduler.pool.count
    print(
        f"-- {requests} requests in {time.perf_counter() - begun:.1f} s: device allocated {after[0] - before[0]:+d} bytes,"
        f" reserved {after[1] - before[1]:+d}, host RSS {after[2] - before[2]:+.1f} MiB of {after[2]:.0f}; all blocks free: {free}"
    )
