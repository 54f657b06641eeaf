"""Turns a plan into the arrays that the device reads. Pure numpy: no tensor, no device.

A layout stands for itself: what a follower of a tensor-parallel engine needs to run the step, and no more.

Decode rows (one position each, guesses of speculation included) come first, then the packed prefills. A `Frame`
says how long each array is: exactly as needed, or rounded up to what a captured CUDA graph was made for; padding
is positions of -1 and sequences of no tokens, which every kernel skips.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from pelton.runtimes.lm.scheduler import Part, Plan
from pelton.runtimes.step_engine import Sampling

ALIGN = 8  # int32 elements: arrays start at 32 bytes, or Triton would compile variants for odd addresses

Ints = npt.NDArray[np.int32]


def aligned(count: int) -> int:
    return -(-count // ALIGN) * ALIGN


@dataclass(frozen=True, slots=True)
class Frame:
    """How many of each the arrays hold. A frame without prefill has no sequences, and logits for every row."""

    rows: int
    prefill: int = 0
    sequences: int = 0
    tiles: int = 0
    logits: int = 0

    @property
    def tokens(self) -> int:
        return self.rows + self.prefill

    def lengths(self) -> tuple[int, ...]:
        """Of ids, positions, slots, sample slots, logit rows, packed, tiles."""
        return (self.tokens,) * 3 + (self.logits, self.logits, 4 * self.sequences, 2 * self.tiles)

    def offsets(self) -> tuple[int, ...]:
        """Where each of them starts in one flat buffer, and the buffer's length."""
        return tuple(accumulate((aligned(n) for n in self.lengths()), initial=0))


def decode_frame(rows: int) -> Frame:
    return Frame(rows, logits=rows)


def mixed_frame(rows: int, prefill: int, tile_rows: int) -> Frame:
    """A frame for capturing: at most `prefill // 16` (up to 63) packed sequences, and one that is always empty."""
    sequences = max(2, min(64, prefill // 16))
    return Frame(rows, prefill, sequences, prefill // tile_rows + sequences, rows + sequences)


@dataclass(frozen=True, slots=True)
class Row:
    """What the sampler needs to know about one row of logits."""

    sampling: Sampling
    position: int  # of the token to be drawn
    slot: int
    allowed: Seq[int] | None = None  # by the grammar
    fresh: tuple[Seq[int], int] | None = None  # all tokens and prompt length, where penalties start to count


@dataclass(frozen=True, slots=True)
class Packed:
    """New tokens of one sequence, to be computed together."""

    tokens: list[int]
    start: int  # position of the first
    slot: int
    samples: bool


@dataclass(slots=True)
class Layout:
    """A plan as flat lists. `placed`: (slot, index in the sequence, block), new entries of the block tables."""

    placed: list[tuple[int, int, int]]

    ids: list[int] = field(default_factory=list)  # of decode rows; -1: the token is still on the device
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    packed: list[Packed] = field(default_factory=list)
    prefill: int = 0
    sample_slots: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)  # one per sample; none at all where every sample is greedy
    spans: list[tuple[int, int]] = field(default_factory=list)  # of each part of the plan among the logits

    def exact_frame(self, tile_rows: int) -> Frame:
        tiles = sum(-(-len(part.tokens) // tile_rows) for part in self.packed)
        return Frame(len(self.ids), self.prefill, len(self.packed), tiles, len(self.sample_slots))

    def fits(self, frame: Frame) -> bool:
        return (
            len(self.ids) <= frame.rows
            and self.prefill <= frame.prefill
            and (len(self.packed) < frame.sequences or not self.packed)
        )


def lay_out(plan: Plan) -> Layout:
    """Decode rows, longest first; then packed prefills in the plan's order; logits in the same order.

    Longest first, because the device starts rows in order: a long row that starts last would run alone at the end.
    """
    layout = Layout(plan.placed)
    plain = all(_plain(part) for part in plan.parts if part.samples)
    spans: dict[int, tuple[int, int]] = {}
    decodes = [(part.start, index, part) for index, part in enumerate(plan.parts) if not part.prefill]
    for _, index, part in sorted(decodes, reverse=True):
        low = len(layout.ids)
        _add_rows(layout, part)
        layout.sample_slots.extend([part.sequence.slot] * part.count)
        layout.rows.extend(() if plain else _rows(part))
        spans[index] = (low, low + part.count)
    for index, part in enumerate(plan.parts):
        if part.prefill:
            sequence, start = part.sequence, part.start
            tokens = sequence.tokens[start : start + part.count]
            layout.packed.append(Packed(tokens, start, sequence.slot, part.samples))
            layout.prefill += part.count
            low = len(layout.sample_slots)
            if part.samples:
                layout.sample_slots.append(sequence.slot)
                layout.rows.extend(() if plain else _rows(part))
            spans[index] = (low, len(layout.sample_slots))
    layout.spans = [spans[index] for index in range(len(plan.parts))]
    return layout


def _add_rows(layout: Layout, part: Part) -> None:
    """The position to decode, and one row for each guess behind it."""
    sequence, start = part.sequence, part.start
    tokens = sequence.tokens
    layout.ids.append(tokens[start] if start < len(tokens) else -1)
    layout.ids.extend(part.guesses)
    layout.slots.extend([sequence.slot] * part.count)
    layout.positions.extend(range(start, start + part.count))


def _plain(part: Part) -> bool:
    """Greedy without anything that needs the whole distribution."""
    request = part.sequence.request
    sampling = request.sampling
    plain = sampling.greedy and not sampling.penalized and not sampling.bias
    return plain and sampling.logprobs is None and request.grammar is None


def _rows(part: Part) -> list[Row]:
    sequence, request = part.sequence, part.sequence.request
    position = part.start + part.count - len(part.guesses)
    allowed = request.grammar.allowed() if request.grammar is not None else None
    fresh = (list(sequence.tokens), len(request.prompt)) if part.prefill and request.sampling.penalized else None
    return [
        Row(request.sampling, position + i, sequence.slot, allowed, fresh if i == 0 else None)
        for i in range(1 + len(part.guesses))
    ]


def pack(layout: Layout, frame: Frame, idle_slot: int, tile_rows: int) -> Ints:
    """All arrays in one flat buffer, ready for one copy to the device."""
    offsets = frame.offsets()
    flat = np.zeros(offsets[-1], dtype=np.int32)
    sizes = frame.lengths()
    ids, positions, slots, sample_slots, logit_rows, packed, tiles = (
        flat[at : at + n] for at, n in zip(offsets, sizes, strict=False)
    )
    positions.fill(-1)
    slots.fill(idle_slot)
    sample_slots.fill(idle_slot)
    rows = len(layout.ids)
    ids[:rows], positions[:rows], slots[:rows] = layout.ids, layout.positions, layout.slots
    sample_slots[: len(layout.sample_slots)] = layout.sample_slots
    if frame.prefill:
        logit_rows[:rows] = np.arange(rows)
        _pack_prefill(layout, frame, (ids, positions, slots, logit_rows[rows:]), packed, tiles, (idle_slot, tile_rows))
    return flat


def _pack_prefill(
    layout: Layout, frame: Frame, per_token: Seq[Ints], packed: Ints, tiles: Ints, fixed: tuple[int, int]
) -> None:
    ids, positions, slots, logit_rows = per_token
    idle_slot, tile_rows = fixed
    table = packed.reshape(4, frame.sequences)
    table[0], table[3] = frame.rows + layout.prefill, idle_slot  # an empty sequence begins where the last one ends
    pairs = tiles.reshape(-1, 2)
    pairs[:, 0] = frame.sequences - 1
    at, tile, sampled = frame.rows, 0, 0
    for index, part in enumerate(layout.packed):
        start, count, slot = part.start, len(part.tokens), part.slot
        table[:, index] = at, count, start, slot
        ids[at : at + count] = part.tokens
        positions[at : at + count] = np.arange(start, start + count)
        slots[at : at + count] = slot
        for offset in range(0, count, tile_rows):
            pairs[tile] = index, offset
            tile += 1
        at += count
        if part.samples:
            logit_rows[sampled] = at - 1
            sampled += 1
