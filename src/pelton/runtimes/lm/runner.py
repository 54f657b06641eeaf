"""Runs plans on the device: KV memory, block tables, CUDA graphs, and what is in flight.

`launch` only orders work and returns; `collect` waits for the tokens. Between the two the engine plans and
launches the next step, so the device never waits for the host: the input token of a decode row is read on the
device from `last`, where the step before left it.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import torch

from pelton.runtimes.lm.attention import Batch
from pelton.runtimes.lm.layout import Frame, Ints, Layout, decode_frame, lay_out, mixed_frame, pack
from pelton.runtimes.lm.model import Model
from pelton.runtimes.lm.sampler import Logprobs, Sampler
from pelton.runtimes.lm.scheduler import Plan
from pelton.runtimes.step_engine import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Memory:
    """Sizes of what the runner holds on the device."""

    blocks: int
    block_size: int
    max_seqs: int
    max_length: int
    kv_dtype: torch.dtype


@dataclass(slots=True)
class Results:
    """`tokens` and `logprobs` per part of the plan; empty for parts that sample nothing."""

    tokens: list[list[int]]
    logprobs: list[list[TokenLogprobs]]
    seconds: float


@dataclass(slots=True)
class InFlight:
    """A launched step."""

    plan: Plan
    spans: list[tuple[int, int]]
    tokens: torch.Tensor  # pinned on CUDA: complete once `done` is
    logprobs: Logprobs | None
    done: torch.cuda.Event | None
    begun: torch.cuda.Event | None
    seconds: float


def captured_rows(most: int) -> list[int]:
    """Row counts of decode graphs: few enough to capture quickly, close enough to waste little."""
    sizes = [1, 2, 4, 8, 12, *range(16, 128, 8), *range(128, 256, 16), *range(256, 1025, 32)]
    return [size for size in sizes if size < most] + [most]


def captured_mixes(most_rows: int, budget: int) -> list[tuple[int, int]]:
    """(rows, packed tokens) of graphs with prefill. Larger prefills keep the device busy without a graph."""
    rows = [size for size in (16, 64, 128, 256, 512) if size < most_rows] + [most_rows]
    tokens = [size for size in (128, 256, 512, 1024, 2048, 4096) if size <= budget]
    return [(r, t) for t in tokens for r in rows]


class Runner:
    """One device's half of the engine."""

    def __init__(self, model: Model, memory: Memory) -> None:
        self.model, self.memory = model, memory
        config, device = model.config, model.weights.embedding.device
        self.device = device
        kv_heads = config.kv_heads // model.ranks.size
        shape = (config.layers, 2, memory.blocks, kv_heads, memory.block_size, config.head_dim)
        self.cache = torch.zeros(shape, dtype=memory.kv_dtype, device=device)
        self._idle_slot = memory.max_seqs  # rows that stand for nobody
        per_slot = -(-memory.max_length // memory.block_size)
        self.table = torch.zeros((memory.max_seqs + 1, per_slot), dtype=torch.int32, device=device)
        self.last = torch.zeros(memory.max_seqs + 1, dtype=torch.int32, device=device)
        self._sampler = Sampler(memory.max_seqs + 1, config.vocab, device)
        self._cuda = device.type == "cuda"
        self._graphs: dict[Frame, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}  # smallest first
        self._static = torch.zeros(0, dtype=torch.int32, device=device)

    # ---- a step

    def launch(self, plan: Plan) -> InFlight:
        """Order one step, here and at the followers of a tensor-parallel engine."""
        started = time.perf_counter()
        layout = lay_out(plan)
        self.model.ranks.share(layout)
        begun = self._event()
        tokens, logprobs = self.run(layout)
        done = self._event()
        seconds = 0.0 if self._cuda else time.perf_counter() - started
        return InFlight(plan, layout.spans, tokens, logprobs, done, begun, seconds)

    def run(self, layout: Layout) -> tuple[torch.Tensor, Logprobs | None]:
        """Order the device's work of one step. Returns what will hold its tokens and logprobs."""
        with torch.inference_mode():
            self._place(layout)
            logits, sample_slots = self._forward(layout)
            return self._sample(layout, logits, sample_slots)

    def collect(self, flight: InFlight) -> Results:
        """Wait for a launched step and bring its tokens."""
        if flight.done is not None and flight.begun is not None:
            flight.done.synchronize()
            flight.seconds = flight.begun.elapsed_time(flight.done) / 1000
        values: list[int] = flight.tokens.tolist()
        tokens = [values[low:high] for low, high in flight.spans]
        return Results(tokens, _logprobs(flight), flight.seconds)

    def _event(self) -> torch.cuda.Event | None:
        if not self._cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _to_device(self, values: Seq[int] | Ints) -> torch.Tensor:
        host = torch.empty(len(values), dtype=torch.int32, pin_memory=self._cuda)
        host.numpy()[:] = values
        return host.to(self.device, non_blocking=True)

    def _to_host(self, x: torch.Tensor) -> torch.Tensor:
        if not self._cuda:
            return x
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        return host.copy_(x, non_blocking=True)

    def _place(self, layout: Layout) -> None:
        """Write new blocks into the block tables."""
        if not layout.placed:
            return
        width = self.table.shape[1]
        flat: list[int] = []
        for slot, index, _ in layout.placed:
            flat.append(slot * width + index)
        flat.extend(block for _, _, block in layout.placed)
        both = self._to_device(flat).view(2, -1)
        self.table.view(-1).index_copy_(0, both[0].long(), both[1])

    def _forward(self, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the layout's samples, and their slots on the device; by a graph where one fits."""
        wanted = len(layout.sample_slots)
        tile_rows = self.model.attention.tile_rows
        captured = bool(layout.packed)
        frame = next((f for f in self._graphs if bool(f.prefill) == captured and layout.fits(f)), None)
        if frame is not None:
            graph, logits = self._graphs[frame]
            packed = pack(layout, frame, self._idle_slot, tile_rows)
            self._static[: len(packed)].copy_(self._to_device(packed))
            graph.replay()
            sample_slots = self._views(self._static, frame)[3]
            return logits[:wanted], sample_slots[:wanted]
        frame = layout.exact_frame(tile_rows)
        flat = self._to_device(pack(layout, frame, self._idle_slot, tile_rows))
        longest = max((len(part.tokens) for part in layout.packed), default=0)
        batch = self._batch(flat, frame, longest)
        return self.model.forward(batch, self.cache, self.table, self.last), batch.sample_slots

    @staticmethod
    def _views(flat: torch.Tensor, frame: Frame) -> list[torch.Tensor]:
        return [flat[at : at + n] for at, n in zip(frame.offsets(), frame.lengths(), strict=False)]

    def _batch(self, flat: torch.Tensor, frame: Frame, longest: int) -> Batch:
        ids, positions, slots, sample_slots, logit_rows, packed, tiles = self._views(flat, frame)
        batch = Batch(ids, positions, slots, sample_slots, frame.rows)
        if frame.prefill:
            batch.packed, batch.tiles = packed.view(4, -1), tiles.view(-1, 2)
            batch.logit_rows, batch.longest_new = logit_rows, longest
        return batch

    # ---- sampling

    def _sample(
        self, layout: Layout, logits: torch.Tensor, sample_slots: torch.Tensor
    ) -> tuple[torch.Tensor, Logprobs | None]:
        if not len(sample_slots):
            return torch.empty(0, dtype=torch.int32), None
        if not layout.rows:
            return self._to_host(self.model.ops.greedy_and_remember(logits, self.last, sample_slots)), None
        drawn = self._sampler.draw(logits, layout.rows)
        self.last[sample_slots.long()] = drawn.tokens
        if drawn.logprobs is None:
            return self._to_host(drawn.tokens), None
        asked, chosen, values, ids = drawn.logprobs
        logprobs = (asked, self._to_host(chosen), self._to_host(values), self._to_host(ids))
        return self._to_host(drawn.tokens), logprobs

    # ---- CUDA graphs

    def capture(self, frames: Seq[Frame]) -> None:
        """Record steps of these sizes, largest first so that they share memory. Compiles on the way."""
        with torch.inference_mode():
            self._capture(frames)

    def _capture(self, frames: Seq[Frame]) -> None:
        largest = max(frame.offsets()[-1] for frame in frames)
        self._static = torch.zeros(largest, dtype=torch.int32, device=self.device)
        pool: Any = None
        graphs: dict[Frame, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        for frame in sorted(frames, key=lambda f: (f.tokens, f.rows), reverse=True):
            nothing = pack(Layout([]), frame, self._idle_slot, self.model.attention.tile_rows)
            self._static[: len(nothing)].copy_(self._to_device(nothing))
            batch = self._batch(self._static, frame, frame.prefill)
            logits = self.model.forward(batch, self.cache, self.table, self.last)
            self.model.ops.greedy_and_remember(logits, self.last, batch.sample_slots)  # outside the graph, compiled too
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = self.model.forward(batch, self.cache, self.table, self.last)
            pool = pool or graph.pool()
            graphs[frame] = (graph, logits)
        self._graphs = dict(sorted(graphs.items(), key=lambda item: (item[0].prefill, item[0].rows)))

    def frames(self, token_budget: int) -> list[Frame]:
        """The steps worth capturing: decodes of many sizes, and mixtures with a coarser grid."""
        most, tile_rows = self.memory.max_seqs, self.model.attention.tile_rows
        mixes = captured_mixes(most, token_budget)
        return [decode_frame(n) for n in captured_rows(most)] + [mixed_frame(r, t, tile_rows) for r, t in mixes]


def _logprobs(flight: InFlight) -> list[list[TokenLogprobs]]:
    """Per part; the sampler's rows are numbered like the logit rows."""
    found: dict[int, TokenLogprobs] = {}
    if flight.logprobs is not None:
        asked, chosen, values, ids = flight.logprobs
        for row, best, tops, names in zip(asked, chosen.tolist(), values.tolist(), ids.tolist(), strict=True):
            found[row] = TokenLogprobs(best, tuple(zip(names, tops, strict=True)))
    return [[found[row] for row in range(low, high) if row in found] for low, high in flight.spans]
