# ruff: noqa: B023 - each closure is timed before the loop goes on
"""Times each kernel in several shapes, against libraries and the memory's speed. Part of run.py."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from pelton.runtimes.lm import reference
from pelton.runtimes.lm.attention import Batch, FlashAttention, flash_available
from pelton.runtimes.lm.kernels import decode_attention, elementwise, float8_linear, prefill_attention, thin_linear
from pelton.runtimes.lm.product import finished

BANDWIDTH = 4.3e12  # bytes/s, measured device-to-device copy of this chip


def graph_time(work: Callable[[], Any], repeats: int = 20) -> float:
    """Median seconds of one call inside a replayed CUDA graph: no launch gaps from the host."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            work()
    times = []
    for _ in range(5):
        begun, done = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
        graph.replay()
        done.record()
        done.synchronize()
        times.append(begun.elapsed_time(done) / 1000 / repeats)
    return statistics.median(times)


def guarded(label: str, work: Callable[[], Any], amount: float, unit: str) -> tuple[float, str]:
    """Time one variant; a variant that does not compile says so and does not stop the others."""
    try:
        seconds = graph_time(work)
    except Exception as error:  # noqa: BLE001 - any compile or launch failure of one variant
        torch.cuda.synchronize()
        return 9e9, f"{label:58s} failed: {str(error).splitlines()[0][:60] if str(error) else type(error)}"
    rate = amount / seconds
    share = f"{rate / BANDWIDTH:6.1%} of copy" if unit == "B" else f"{rate / 1e12:7.1f} TFLOP/s"
    return seconds, f"{label:58s} {seconds * 1e6:9.1f} us  {share}"


def show(title: str, results: list[tuple[float, str]], best: int = 8) -> None:
    print(f"-- {title}")
    for _, line in sorted(results, key=lambda r: r[0])[:best]:
        print("  ", line, flush=True)


class Case:
    """A decode batch over a paged cache of many layers' size, so that nothing stays in the L2."""

    def __init__(self, rows: int, heads: int, lengths: list[int], block: int, dtype: torch.dtype) -> None:
        self.kv_heads, self.dim = 8, 128
        per = max(-(-n // block) for n in lengths)
        count = sum(-(-n // block) for n in lengths) + 1
        copies = max(1, int(1.5e9 // (2 * count * self.kv_heads * block * self.dim * 2)))
        self.caches = [
            torch.randn(2, count, self.kv_heads, block, self.dim, device="cuda", dtype=torch.bfloat16).to(dtype)
            for _ in range(min(copies, 8))
        ]
        order = (torch.randperm(count - 1) + 1).tolist()
        self.table = torch.zeros(rows, per, dtype=torch.int32)
        for row, n in enumerate(lengths):
            for i in range(-(-n // block)):
                self.table[row, i] = order.pop()
        self.table = self.table.cuda()
        self.slots = torch.arange(rows, dtype=torch.int32, device="cuda")
        self.positions = torch.tensor(lengths, dtype=torch.int32, device="cuda") - 1
        self.q = torch.randn(rows, heads, self.dim, device="cuda", dtype=torch.bfloat16)
        self.out = torch.empty_like(self.q)
        self.bytes = sum(lengths) * 2 * self.kv_heads * self.dim * self.caches[0].element_size()
        self._turn = itertools.cycle(self.caches)

    def cache(self) -> torch.Tensor:
        return next(self._turn)


def decode_variants(
    rows: int, heads: int, block: int, dtype: torch.dtype, shapes: list[Any], flash: bool, in_order: bool = False
) -> None:
    torch.manual_seed(1)
    lengths = torch.randint(200, 2000, (rows,)).tolist() if rows > 1 else [4096]
    if in_order:
        lengths.sort(reverse=True)
    case = Case(rows, heads, lengths, block, dtype)
    results = []
    for shape in shapes:

        def work(shape: Any = shape) -> None:
            decode_attention.decode_attention(
                case.q, case.out, case.cache(), case.table, case.slots, case.positions, 0.088, 0, shape
            )

        label = f"tile {shape.tile} warps {shape.warps} stages {shape.stages} programs {shape.programs}"
        results.append(guarded(label, work, case.bytes, "B"))
    if flash and flash_available() and dtype == torch.bfloat16:
        attention = FlashAttention(flash_decode=True)
        batch = Batch(case.slots, case.positions, case.slots, case.slots, rows)
        attention.prepare(batch, case.table)
        results.append(
            guarded(
                "FlashAttention 3",
                lambda: attention(case.q, case.cache(), batch, case.table, 0.088, 0),
                case.bytes,
                "B",
            )
        )
    show(f"decode attention: rows {rows}, heads {heads}, block {block}, {dtype}, longest first {in_order}", results)


def decode_section(flash: bool) -> None:
    shape = decode_attention.DecodeShape
    grid = [
        shape(tile, warps, stages, programs)
        for tile, warps, stages, programs in itertools.product((32, 64), (1, 2, 4), (3, 5), (528, 2112, 8448))
        if not (tile == 32 and warps == 4)
    ]
    decode_variants(256, 16, 64, torch.bfloat16, grid, flash)
    few = [s for s in grid if s.tile == 64]
    float8 = [shape(64, 4, stages, programs) for stages, programs in itertools.product((2, 3, 5, 6), (528, 1056))]
    decode_variants(256, 32, 64, torch.bfloat16, few, flash)
    decode_variants(64, 16, 64, torch.bfloat16, few, flash)
    decode_variants(1, 32, 64, torch.bfloat16, few, flash)
    decode_variants(256, 32, 64, reference.FP8, float8, False)
    decode_variants(64, 32, 64, reference.FP8, float8, False)
    if flash:
        decode_variants(256, 16, 128, torch.bfloat16, [shape(128, 4, 3, 2112), shape(64, 4, 3, 2112)], flash)
        decode_variants(256, 16, 256, torch.bfloat16, [shape(64, 4, 3, 2112)], flash)


def decode_order_section() -> None:
    """What the order of the rows is worth, and how float8 fares."""
    for dtype, warps in ((torch.bfloat16, (2, 4)), (reference.FP8, (4,))):
        shapes = [decode_attention.DecodeShape(64, w, stages) for w, stages in itertools.product(warps, (3, 4, 5))]
        for in_order in (False, True):
            decode_variants(256, 32, 64, dtype, shapes, False, in_order)


def linear_section() -> None:
    shapes = [
        thin_linear.ThinShape(outs, depth, warps, stages)
        for outs, depth, warps, stages in (
            (16, 512, 4, 4), (16, 1024, 4, 4), (16, 1024, 8, 4), (16, 1024, 4, 6), (16, 512, 4, 8), (16, 512, 2, 6),
            (32, 512, 4, 4), (32, 512, 8, 6), (32, 1024, 8, 3), (64, 256, 4, 5), (8, 1024, 4, 6),
        )
    ]  # fmt: skip
    for outs, size in ((6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288), (151936, 4096), (1024, 3072)):
        copies = max(1, int(4e8 // (outs * size * 2)))
        weights = [torch.randn(outs, size, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
        turn = itertools.cycle(weights)
        results = []
        for rows in (1, 8):
            x = torch.randn(rows, size, device="cuda", dtype=torch.bfloat16)
            results.append(guarded(f"rows {rows} library", lambda x=x: F.linear(x, next(turn)), outs * size * 2, "B"))
            for s in shapes if rows == 1 else shapes[:2]:
                label = f"rows {rows} thin outs {s.outs} depth {s.depth} warps {s.warps} stages {s.stages}"
                results.append(
                    guarded(
                        label, lambda x=x, s=s: thin_linear.thin_linear(x, next(turn), None, s), outs * size * 2, "B"
                    )
                )
        show(f"thin linear {outs} x {size}", results, 7)
        float8_products(weights[:4])


def float8_products(weights: list[torch.Tensor]) -> None:
    """Every way to multiply float8 for several counts of rows: ours, the library with scales and without."""
    outs, size = weights[0].shape
    quantized = [reference.quantize_rows(w) for w in weights]
    turn = itertools.cycle([(w, s.T.contiguous()) for w, s in quantized])
    one = torch.ones((), device="cuda")
    results = []
    for rows in (1, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 4096):
        x8, xs = reference.quantize_rows(torch.randn(rows, size, device="cuda", dtype=torch.bfloat16))

        def scaled(x8: torch.Tensor = x8, xs: torch.Tensor = xs) -> None:
            w, s = next(turn)
            torch._scaled_mm(x8, w.t(), xs, s, out_dtype=torch.bfloat16, use_fast_accum=True)

        def unscaled(x8: torch.Tensor = x8) -> None:
            torch._scaled_mm(x8, next(turn)[0].t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)

        def ours(x8: torch.Tensor = x8, xs: torch.Tensor = xs) -> None:
            shape = float8_linear.Float8Shape(stages=6 if len(x8) <= 32 else 4)
            float8_linear.float8_linear((x8, xs), next(turn), None, torch.bfloat16, shape)

        flops = 2.0 * rows * outs * size
        results.append(guarded(f"rows {rows} library, scales of rows", scaled, flops, "F"))
        results.append(guarded(f"rows {rows} library, no scales", unscaled, flops, "F"))
        if rows <= float8_linear.MAX_ROWS:
            results.append(guarded(f"rows {rows} ours", ours, flops, "F"))
    show(f"float8 linear {outs} x {size}", results, 32)


def small_section() -> None:
    results = []
    for rows in (16, 256):
        for hidden, inner, heads in ((1024, 3072, 16), (4096, 12288, 32)):
            x = torch.randn(rows, hidden, device="cuda", dtype=torch.bfloat16)
            residual, weight = torch.randn_like(x), torch.ones(hidden, device="cuda")
            both = torch.randn(rows, 2 * inner, device="cuda", dtype=torch.bfloat16)
            qkv = torch.randn(rows, (heads + 16) * 128, device="cuda", dtype=torch.bfloat16)
            case = Case(rows, heads, [64] * rows, 64, torch.bfloat16)
            cos = torch.ones(4096, 64, device="cuda")
            norm = torch.ones(128, device="cuda")
            name = f"rows {rows} hidden {hidden}"
            for label, work in (
                ("add+norm", lambda: elementwise.rms_norm(finished(x), weight, 1e-6, residual)),
                ("add+norm fp8", lambda: elementwise.rms_norm(finished(x), weight, 1e-6, residual, True)),
                ("gated", lambda: elementwise.gated(finished(both), False)),
                ("gated fp8", lambda: elementwise.gated(finished(both), False, True)),
                ("rope+store", lambda: elementwise.rope_and_store(
                    finished(qkv), case.caches[0], (norm, norm), (cos, cos), case.table, case.slots, case.positions, heads, 1e-6)),
            ):  # fmt: skip
                results.append(guarded(f"{name} {label}", work, 1.0, "F"))
        logits = torch.randn(rows, 151936, device="cuda", dtype=torch.bfloat16)
        last, slots = torch.zeros(300, dtype=torch.int32, device="cuda"), torch.arange(rows, device="cuda").int()
        results.append(guarded(f"rows {rows} argmax torch", lambda: logits.argmax(-1), logits.nbytes, "B"))
        results.append(
            guarded(
                f"rows {rows} argmax ours",
                lambda: elementwise.greedy_and_remember(logits, last, slots),
                logits.nbytes,
                "B",
            )
        )
    print("-- small kernels")
    for _, line in results:
        print("  ", line)


def prefill_section(flash: bool) -> None:
    heads, n, count, block = 32, 1024, 16, 64
    case = Case(count, heads, [n] * count, block, torch.bfloat16)
    q = torch.randn(n * count, heads, 128, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(q)
    columns = [[i * n for i in range(count)], [n] * count, [0] * count, list(range(count))]
    packed = torch.tensor(columns, dtype=torch.int32, device="cuda")
    flops = count * heads * 4.0 * 128 * n * n / 2
    results = []
    for rows, tile, warps, stages in (
        (128, 64, 8, 3),
        (128, 64, 8, 2),
        (128, 64, 4, 3),
        (64, 64, 4, 3),
        (128, 32, 8, 4),
    ):
        shape = prefill_attention.PrefillShape(rows, tile, warps, stages)
        tiles = torch.tensor([(i, at) for i in range(count) for at in range(0, n, rows)], dtype=torch.int32).cuda()

        def work(shape: Any = shape, tiles: torch.Tensor = tiles) -> None:
            prefill_attention.prefill_attention(q, out, case.cache(), case.table, tiles, packed, 0.088, 0, shape)

        results.append(guarded(f"rows {rows} tile {tile} warps {warps} stages {stages}", work, flops, "F"))
    if flash and flash_available():
        attention = FlashAttention()
        batch = Batch(case.slots, case.positions, case.slots, case.slots, 0, packed, None, None, n)
        attention.prepare(batch, case.table)
        results.append(
            guarded("FlashAttention 3", lambda: attention(q, case.cache(), batch, case.table, 0.088, 0), flops, "F")
        )
    show("prefill attention: 16 x 1024, heads 32", results)


def run(flash: bool) -> None:
    small_section()
    decode_section(flash)
    prefill_section(flash)
    linear_section()
