"""Runs our engine on the benchmark's workload and says where the time went. Part of run.py."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import workload

from pelton.runtimes.lm.engine import EngineOptions, LmEngine
from pelton.runtimes.lm.layout import decode_frame
from pelton.runtimes.step_engine import LmRequest


@dataclass
class Outcome:
    name: str
    tokens: int
    seconds: float
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name:44s} {self.tokens / self.seconds:9.0f} tokens/s  {self.seconds:7.2f} s  {self.detail}"


def build(size: str, **options: Any) -> LmEngine:
    begun = time.perf_counter()
    settings = {"max_length": 4096, "token_budget": 16384, "prefix_cache": True, **options}
    engine = LmEngine.random(workload.qwen3(size), EngineOptions(device="cuda", **settings))
    torch.cuda.synchronize()
    blocks = engine.scheduler.pool.count
    print(f"   built {size} {options} in {time.perf_counter() - begun:.1f} s, {blocks} blocks", flush=True)
    return engine


def offline(engine: LmEngine, name: str, work: list[tuple[list[int], int]] | None = None) -> Outcome:
    """All requests at once; outputs are counted, lengths checked."""
    work = work or workload.offline()
    begun = time.perf_counter()
    for i, (prompt, out) in enumerate(work):
        engine.add(LmRequest(str(i), tuple(prompt), out))
    got: Counter[str] = Counter()
    steps, busy, prefill_steps, prefill_busy = 0, 0.0, 0, 0.0
    walls: dict[str, list[float]] = {"prefill": [], "1-31": [], "32-95": [], "96-256": []}
    gaps: list[tuple[float, int, str]] = []
    before = time.perf_counter()
    while engine.has_work():
        report = engine.step()
        now, rows = time.perf_counter(), len(report.shares)
        kind = "prefill" if report.prefill_tokens else "1-31" if rows < 32 else "32-95" if rows < 96 else "96-256"
        walls[kind] += (now - before, report.seconds)
        before = now
        steps += 1
        busy += report.seconds
        if report.prefill_tokens:
            prefill_steps += 1
            prefill_busy += report.seconds
        for output in report.outputs:
            got[output.request_id] += len(output.tokens)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    assert all(got[str(i)] == out for i, (_, out) in enumerate(work)), "a request has the wrong number of tokens"
    engine.scheduler.check()
    detail = f"{steps} steps, device busy {busy:.2f} s; prefill {prefill_steps} steps {prefill_busy:.2f} s"
    for kind, pairs in walls.items():
        count = max(1, len(pairs) // 2)
        wall, device = sum(pairs[::2]), sum(pairs[1::2])
        print(
            f"      {kind:8s} {count:5d} steps, wall {wall:.3f} s, device {device:.3f} s, {device / count * 1e3:.3f} ms each"
        )
    print("      longest gaps (s, step):", [(round(gap, 4), step, kind) for gap, step, kind in sorted(gaps)[-6:]])
    return Outcome(name, sum(got.values()), seconds, detail)


def single(engine: LmEngine, name: str, tokens: int = 256) -> Outcome:
    """One stream: decode speed after a short prompt."""
    engine.add(LmRequest("warm", tuple(range(100, 164)), 8))
    while engine.has_work():
        engine.step()
    engine.add(LmRequest("one", tuple(range(64)), tokens + 1))
    engine.step()
    begun, count = time.perf_counter(), 0
    while engine.has_work():
        count += sum(len(output.tokens) for output in engine.step().outputs)
    seconds = time.perf_counter() - begun
    weights = engine.model.weights
    read = weights.bytes() - (0 if engine.config.tied else weights.embedding.nbytes)  # one embedding row, not all
    bound = workload.BANDWIDTH / read
    return Outcome(name, count, seconds, f"{count / seconds / bound:.1%} of the bandwidth limit {bound:.0f}/s")


def profile(engine: LmEngine, rows: int, prompt: int = 1000, steps: int = 5) -> None:
    """Device time per kernel of pure decode steps."""
    for i in range(rows):
        engine.add(LmRequest(f"p{i}", tuple((7 * i + j) % 9000 for j in range(prompt)), 64))
    while engine.step().prefill_tokens:
        pass
    engine.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
        seconds = sum(engine.step().seconds for _ in range(steps))
        torch.cuda.synchronize()
    total = 0.0
    rows_out = []
    for event in prof.key_averages():
        if event.self_device_time_total > 0:
            total += event.self_device_time_total
            rows_out.append((event.self_device_time_total / steps, event.count / steps, event.key))
    print(f"-- profile of {rows} rows: step {seconds / steps * 1e3:.3f} ms, kernels {total / steps / 1e3:.3f} ms")
    for micros, count, key in sorted(rows_out, reverse=True)[:14]:
        print(f"   {micros:9.1f} us {count:7.1f} x  {key[:90]}")
    for i in range(rows):
        engine.cancel(f"p{i}")
    while engine.has_work():
        engine.step()


def host_times(engine: LmEngine, rows: int = 256) -> None:
    """Seconds of host work per step, by part, with the device's waiting taken out."""
    for i in range(rows):
        engine.add(LmRequest(f"h{i}", tuple((11 * i + j) % 9000 for j in range(300)), 200))
    while engine.step().prefill_tokens:
        pass
    spent: Counter[str] = Counter()
    steps = 50
    runner, scheduler = engine.runner, engine.scheduler

    def timed(name: str, function: Any) -> Any:
        def inner(*args: Any) -> Any:
            begun = time.perf_counter()
            result = function(*args)
            spent[name] += time.perf_counter() - begun  # type: ignore[assignment]
            return result

        return inner

    flights = engine._flights
    begun = time.perf_counter()
    for _ in range(steps):
        plan = timed("plan", scheduler.plan)()
        flights.append(timed("launch", runner.launch)(plan))
        flight = flights.popleft()
        results = timed("collect", runner.collect)(flight)
        progress = timed("commit", scheduler.commit)(flight.plan, results.tokens)
        timed("report", engine._report)(flight.plan, results, progress)
    wall = (time.perf_counter() - begun) / steps
    parts = ", ".join(f"{name} {1e3 * t / steps:.3f}" for name, t in spent.items())
    print(f"-- host ms per step of {rows} rows: {parts}; wall {wall * 1e3:.3f}")
    for i in range(rows):
        engine.cancel(f"h{i}")
    while engine.has_work():
        engine.step()


@torch.inference_mode()
def step_time(engine: LmEngine, rows: int, context: int = 1000) -> float:
    """Median device seconds of one captured decode step, `rows` sequences of about `context` tokens."""
    runner = engine.runner
    generator = torch.Generator("cuda").manual_seed(3)
    frame = decode_frame(rows)
    runner.capture([frame])
    batch = runner._batch(runner._static, frame, 0)
    lengths = torch.randint(context // 2, context * 3 // 2, (rows,), generator=generator, device="cuda")
    batch.positions.copy_(lengths)
    batch.ids.copy_(torch.randint(0, 9000, (rows,), generator=generator, device="cuda"))
    batch.slots.copy_(torch.arange(rows, device="cuda"))
    blocks = torch.randperm(runner.memory.blocks, generator=generator, device="cuda")
    width = min(runner.table.shape[1], runner.memory.blocks // runner.table.shape[0])
    runner.table[:, :width] = blocks[: runner.table.shape[0] * width].view(-1, width)
    graph, _ = runner._graphs[frame]
    times = []
    for _ in range(12):
        begun, done = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
        graph.replay()
        done.record()
        done.synchronize()
        times.append(begun.elapsed_time(done) / 1000)
    return sorted(times)[len(times) // 2]


def tune(engine: LmEngine, label: str) -> None:
    """Step time under each switch; the choice that is kept is the fastest."""
    from pelton.runtimes.lm.kernels.decode_attention import DecodeShape

    ops, attention = engine.model.ops, engine.model.attention
    own = getattr(attention, "own", attention)

    def line(name: str, sizes: tuple[int, ...]) -> None:
        try:
            found = [f"{rows}: {step_time(engine, rows) * 1e3:.3f} ms" for rows in sizes]
        except Exception as error:  # noqa: BLE001 - a variant that does not compile
            found = [f"failed: {str(error)[:60]}"]
        print(f"   {label} {name:52s}", *found, flush=True)

    line("as it is", (1, 4, 16, 32, 64, 128, 256))
    if engine.options.fp8_weights:
        kept = ops.float8_rows
        for ops.float8_rows in (0, 16, 32):
            line(f"our products to {ops.float8_rows} rows, then the library's", (16, 32, 64))
        ops.float8_rows = kept
    float8 = engine.options.fp8_kv
    field = "decode_shape_float8" if float8 else "decode_shape"
    kept_shape = getattr(own, field)
    few = (DecodeShape(64, 4, 3), DecodeShape(64, 4, 5, 1056), DecodeShape(64, 4, 6))
    many = (DecodeShape(64, 2, 4), DecodeShape(64, 4, 5), DecodeShape(64, 1, 7), DecodeShape(32, 1, 6))
    for decode in few if float8 else many:
        setattr(own, field, decode)
        line(str(decode), (1, 64, 256))
    setattr(own, field, kept_shape)
    engine.runner.capture(engine.runner.frames(engine.options.token_budget))
