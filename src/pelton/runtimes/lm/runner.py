"""Runs plans on the device: KV memory, block tables, CUDA graphs, and what is in flight.

`launch` only orders work and returns; `collect` waits for the tokens. Between the two the engine plans and
launches the next step, so the device never waits for the host: the input token of a decode row is read on the
device from `last`, where the step before left it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch

from pelton.runtimes.lm.attention import Batch
from pelton.runtimes.lm.model import Model
from pelton.runtimes.lm.sampler import Row, Sampler
from pelton.runtimes.lm.scheduler import Part, Plan
from pelton.runtimes.step_engine import TokenLogprobs

_ALIGN = 8  # int32 elements: sections of a packed copy start at 32 bytes, or Triton would compile variants


@dataclass(frozen=True, slots=True)
class Memory:
    """Sizes of what the runner holds on the device."""

    blocks: int
    block_size: int
    max_seqs: int
    max_length: int
    kv_dtype: torch.dtype


@dataclass(slots=True)
class Layout:
    """A plan as flat lists, in the order in which the device sees it."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    decodes: int = 0
    packed: list[tuple[int, int, int, int]] = field(default_factory=list)
    tiles: list[tuple[int, int]] = field(default_factory=list)
    logit_rows: list[int] = field(default_factory=list)
    sample_slots: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)  # of each part among the logit rows


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
    logprobs: tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor] | None
    done: torch.cuda.Event | None
    begun: torch.cuda.Event | None
    seconds: float


def graph_sizes(most: int) -> list[int]:
    """Row counts to capture: few enough to capture quickly, close enough to waste little."""
    sizes = [1, 2, 4, 8, 12, *range(16, 128, 8), *range(128, 256, 16), *range(256, 1025, 32)]
    return [size for size in sizes if size < most] + [most]


class Runner:
    """One device's half of the engine."""

    def __init__(self, model: Model, memory: Memory, graph_rows: int = 0, row_prefill: int = 96) -> None:
        """`graph_rows`: largest captured decode step (0: no CUDA graphs); prompts (or what the prefix cache left
        of them) up to `row_prefill` tokens then run as single rows inside the graph."""
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
        self._pin = device.type == "cuda"
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._graph_rows = graph_rows if self._pin else 0
        self._row_prefill = row_prefill if self._graph_rows else 0
        self._static = torch.zeros(4 * _aligned(max(1, self._graph_rows)), dtype=torch.int32, device=device)

    # ---- a step

    @torch.inference_mode()
    def launch(self, plan: Plan) -> InFlight:
        """Order one step."""
        started = time.perf_counter()
        begun = self._event()
        self._place(plan)
        layout = self._layout(plan)
        logits, sample_slots = self._forward(layout)
        tokens, logprobs = self._sample(plan, layout, logits, sample_slots)
        done = self._event()
        seconds = 0.0 if self._pin else time.perf_counter() - started
        return InFlight(plan, layout.spans, tokens, logprobs, done, begun, seconds)

    def collect(self, flight: InFlight) -> Results:
        """Wait for a launched step and bring its tokens."""
        if flight.done is not None and flight.begun is not None:
            flight.done.synchronize()
            flight.seconds = flight.begun.elapsed_time(flight.done) / 1000
        values: list[int] = flight.tokens.tolist()
        tokens = [values[low:high] for low, high in flight.spans]
        return Results(tokens, _logprobs(flight), flight.seconds)

    def _event(self) -> torch.cuda.Event | None:
        if not self._pin:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _to_device(self, values: Seq[int] | np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> torch.Tensor:
        host = torch.empty(len(values), dtype=torch.int32, pin_memory=self._pin)
        host.numpy()[:] = values
        return host.to(self.device, non_blocking=True)

    def _to_host(self, x: torch.Tensor) -> torch.Tensor:
        if not self._pin:
            return x
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        return host.copy_(x, non_blocking=True)

    def _place(self, plan: Plan) -> None:
        """Write new blocks into the block tables."""
        if not plan.placed:
            return
        width = self.table.shape[1]
        flat: list[int] = []
        for slot, index, _ in plan.placed:
            flat.append(slot * width + index)
        flat.extend(block for _, _, block in plan.placed)
        both = self._to_device(flat).view(2, -1)
        self.table.view(-1).index_copy_(0, both[0].long(), both[1])

    def _layout(self, plan: Plan) -> Layout:
        """Rows first, then packed prefills. With graphs, short prefills are rows if then all parts are."""
        layout = Layout()
        rows = self._row_prefill
        as_rows = rows > 0 and all(p.prefill <= rows for p in plan.parts)
        as_rows = as_rows and sum(p.count for p in plan.parts) <= self._graph_rows
        spans: dict[int, tuple[int, int]] = {}
        for index, part in enumerate(plan.parts):
            if as_rows or not part.prefill:
                spans[index] = self._add_rows(layout, part)
        layout.decodes = len(layout.ids)
        for index, part in enumerate(plan.parts):
            if index not in spans:
                spans[index] = self._add_packed(layout, part)
        layout.spans = [spans[index] for index in range(len(plan.parts))]
        return layout

    def _add_rows(self, layout: Layout, part: Part) -> tuple[int, int]:
        sequence, start, count = part.sequence, part.start, part.count
        tokens = sequence.tokens
        if count == 1:  # nearly always
            layout.ids.append(tokens[start] if start < len(tokens) else -1)
        elif part.guesses:
            layout.ids.append(tokens[start])
            layout.ids.extend(part.guesses)
        else:
            layout.ids.extend(tokens[start : start + count])
        layout.slots.extend([sequence.slot] * count)
        layout.positions.extend(range(start, start + count))
        return self._add_samples(layout, part)

    def _add_packed(self, layout: Layout, part: Part) -> tuple[int, int]:
        sequence, start, count = part.sequence, part.start, part.count
        step = self.model.attention.tile_rows
        layout.tiles.extend((len(layout.packed), at) for at in range(0, count, step))
        layout.packed.append((len(layout.ids), count, start, sequence.slot))
        layout.ids.extend(sequence.tokens[start : start + count])
        layout.slots.extend([sequence.slot] * count)
        layout.positions.extend(range(start, start + count))
        return self._add_samples(layout, part)

    def _add_samples(self, layout: Layout, part: Part) -> tuple[int, int]:
        """Which logits the part needs: of its last position, or of every guess and the position before."""
        low = len(layout.logit_rows)
        if part.samples:
            wanted = 1 + len(part.guesses)
            layout.logit_rows.extend(range(len(layout.ids) - wanted, len(layout.ids)))
            layout.sample_slots.extend([part.sequence.slot] * wanted)
        return low, len(layout.logit_rows)

    def _forward(self, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the layout's logit rows, and their slots on the device."""
        size = next((s for s in self._graphs if s >= layout.decodes), 0) if not layout.packed else 0
        if size:
            return self._replay(size, layout)
        sections: list[Seq[int]] = [layout.ids, layout.positions, layout.slots, layout.sample_slots, layout.logit_rows]
        sections += [[row[i] for row in layout.packed] for i in range(4)]
        sections.append([x for tile in layout.tiles for x in tile])
        ids, positions, slots, sample_slots, logit_rows, *packed, tiles = self._send(sections)
        batch = Batch(ids, positions, slots, sample_slots, layout.decodes, logit_rows=logit_rows.long())
        if layout.packed:
            batch.packed = torch.stack(packed)
            batch.tiles = tiles.view(-1, 2)
            batch.longest_new = max(count for _, count, _, _ in layout.packed)
        return self.model.forward(batch, self.cache, self.table, self.last), sample_slots

    def _send(self, sections: Seq[Seq[int]]) -> list[torch.Tensor]:
        """Copy many small lists to the device in one transfer."""
        offsets = [0]
        for section in sections:
            offsets.append(offsets[-1] + _aligned(len(section)))
        host = np.zeros(offsets[-1], dtype=np.int32)
        for section, at in zip(sections, offsets, strict=False):
            host[at : at + len(section)] = section
        device = self._to_device(host)
        return [device[at : at + len(section)] for section, at in zip(sections, offsets, strict=False)]

    def _replay(self, size: int, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        wide, rows = _aligned(size), layout.decodes
        host = np.zeros((4, wide), dtype=np.int32)
        host[1, rows:] = -1
        host[2:, rows:] = self._idle_slot
        host[0, :rows], host[1, :rows], host[2, :rows] = layout.ids, layout.positions, layout.slots
        plain = len(layout.logit_rows) == rows  # every row samples
        samples = layout.sample_slots
        host[3, : len(samples)] = samples
        self._static[: 4 * wide].copy_(self._to_device(host.reshape(-1)))
        graph, logits = self._graphs[size]
        graph.replay()
        sample_slots = self._static[3 * wide : 3 * wide + len(samples)]
        if plain:
            return logits[:rows], sample_slots
        return logits[self._to_device(layout.logit_rows).long()], sample_slots

    # ---- sampling

    def _sample(
        self, plan: Plan, layout: Layout, logits: torch.Tensor, sample_slots: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor] | None]:
        if not layout.logit_rows:
            return torch.empty(0, dtype=torch.int32), None
        if all(_plain(part) for part in plan.parts if part.samples):
            return self._to_host(self.model.ops.greedy_and_remember(logits, self.last, sample_slots)), None
        drawn = self._sampler.draw(logits, [row for part in plan.parts if part.samples for row in _rows(part)])
        self.last[sample_slots.long()] = drawn.tokens
        if drawn.logprobs is None:
            return self._to_host(drawn.tokens), None
        asked, chosen, values, ids = drawn.logprobs
        logprobs = (asked, self._to_host(chosen), self._to_host(values), self._to_host(ids))
        return self._to_host(drawn.tokens), logprobs

    # ---- CUDA graphs

    @torch.inference_mode()
    def capture(self, sizes: Seq[int] | None = None) -> None:
        """Record decode steps of every size, largest first so that they share memory. Compiles on the way."""
        if not self._graph_rows:
            return
        pool: tuple[int, int] | None = None
        graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        for size in sorted(sizes or graph_sizes(self._graph_rows), reverse=True):
            batch = self._static_batch(size)
            self.model.forward(batch, self.cache, self.table, self.last)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = self.model.forward(batch, self.cache, self.table, self.last)
            pool = pool or graph.pool()
            graphs[size] = (graph, logits)
        self._graphs = dict(sorted(graphs.items()))

    def _static_batch(self, size: int) -> Batch:
        wide = _aligned(size)
        rows = self._static[: 4 * wide].view(4, wide)
        rows[0], rows[1], rows[2], rows[3] = 0, -1, self._idle_slot, self._idle_slot
        return Batch(rows[0, :size], rows[1, :size], rows[2, :size], rows[3, :size], decodes=size)


def _aligned(count: int) -> int:
    return -(-count // _ALIGN) * _ALIGN


def _plain(part: Part) -> bool:
    """Greedy without anything that needs the whole distribution."""
    request = part.sequence.request
    sampling = request.sampling
    return sampling.greedy and not sampling.penalized and sampling.logprobs is None and request.grammar is None


def _rows(part: Part) -> list[Row]:
    sequence, request = part.sequence, part.sequence.request
    position = part.start + part.count - len(part.guesses)
    allowed = request.grammar.allowed() if request.grammar is not None else None
    fresh = (list(sequence.tokens), len(request.prompt)) if part.prefill and request.sampling.penalized else None
    return [
        Row(request.sampling, position + i, sequence.slot, allowed, fresh if i == 0 else None)
        for i in range(1 + len(part.guesses))
    ]


def _logprobs(flight: InFlight) -> list[list[TokenLogprobs]]:
    """Per part; the sampler's rows are numbered like the logit rows."""
    found: dict[int, TokenLogprobs] = {}
    if flight.logprobs is not None:
        asked, chosen, values, ids = flight.logprobs
        for row, best, tops, names in zip(asked, chosen.tolist(), values.tolist(), ids.tolist(), strict=True):
            found[row] = TokenLogprobs(best, tuple(zip(names, tops, strict=True)))
    return [[found[row] for row in range(low, high) if row in found] for low, high in flight.spans]
