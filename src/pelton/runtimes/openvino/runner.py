"""Plans into logits: builds the inputs of one step in buffers that stay, and runs it.

All sequences of a step lie one after the other in one row of positions; a table says which KV blocks each has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from pelton.runtimes.lm.scheduler import Part, Plan
from pelton.runtimes.openvino.graph import BLOCK, SAMPLED, Graph
from pelton.runtimes.openvino.scores import PromptScores

Logits = NDArray[np.float32]
_POSITIONS: Final = (("input_ids", np.int64), ("position_ids", np.int64), (SAMPLED, np.int64))
_SEQUENCES: Final = (("past_lens", np.int32), ("subsequence_begins", np.int32), ("block_indices_begins", np.int32))


@dataclass(frozen=True, slots=True)
class Room:
    """How large steps may become: KV blocks in all, sequences and positions in a step, blocks of one sequence."""

    blocks: int
    sequences: int
    positions: int
    blocks_each: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """One part as the model sees it: `tokens` at the positions from `start`, whose KV goes to `slot`'s blocks.

    `wanted`: its rows, counted from the first, whose logits come back.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    wanted: Sequence[int]


class Input:
    """One input of the model: a buffer as large as it can become, and a view of it that the model has now."""

    def __init__(self, request: Any, name: str, dtype: Any, size: int) -> None:
        self._request, self._name = request, name
        self.values = np.zeros(max(1, size), dtype)
        self._length = -1

    def show(self, length: int) -> None:
        """The model sees the first `length` values. It is told only when that changes."""
        if length != self._length:
            self._length = length
            self._request.set_tensor(self._name, ov.Tensor(self.values[:length], shared_memory=True))


class Runner:
    """Owns the KV memory, the block tables and one inference request. Not thread-safe."""

    def __init__(self, graph: Graph, room: Room) -> None:
        self.vocab = graph.vocab
        self.block_bytes = graph.caches.block_bytes
        self._gathers = graph.gathers
        self._request = graph.compiled.create_infer_request()
        self._output = graph.compiled.outputs[0]
        self._caches = [ov.Tensor(kind, [room.blocks, *shape]) for _, kind, shape in graph.caches.blocks]
        for (name, _, _), tensor in zip(graph.caches.blocks, self._caches, strict=True):
            self._request.set_tensor(name, tensor)
        self._table = np.zeros((room.sequences, room.blocks_each), np.int32)
        sizes = dict.fromkeys((name for name, _ in _POSITIONS), room.positions)
        sizes.update(dict.fromkeys((name for name, _ in _SEQUENCES), room.sequences + 1))
        names = (
            [*_POSITIONS, *_SEQUENCES] if graph.gathers else [x for x in (*_POSITIONS, *_SEQUENCES) if x[0] != SAMPLED]
        )
        self._inputs = {name: Input(self._request, name, dtype, sizes[name]) for name, dtype in names}
        self._inputs["block_indices"] = Input(
            self._request, "block_indices", np.int32, room.sequences * room.blocks_each
        )
        self._longest = np.zeros((), np.int32)
        self._request.set_tensor("max_context_len", ov.Tensor(self._longest, shared_memory=True))

    def place(self, placed: Sequence[tuple[int, int, int]]) -> None:
        """New entries of the block tables: (slot, index in the sequence, block)."""
        for slot, index, block in placed:
            self._table[slot, index] = block

    def run(self, chunks: Sequence[Chunk]) -> Logits:
        """The wanted rows' logits [rows, vocab], in order. The array is the model's own: it lasts until the next run."""
        wanted = self._fill(chunks)
        self._request.infer()
        logits: Logits = self._request.get_tensor(self._output).data.reshape(-1, self.vocab)
        return logits[: len(wanted)] if self._gathers else logits[wanted]

    def _fill(self, chunks: Sequence[Chunk]) -> list[int]:
        """Writes one step's inputs. Returns the wanted rows."""
        inputs, table = self._inputs, self._table
        ids, positions = inputs["input_ids"].values, inputs["position_ids"].values
        indices = inputs["block_indices"].values
        past, begins, block_begins = (inputs[name].values for name, _ in _SEQUENCES)
        wanted: list[int] = []
        row = used = longest = 0
        for number, chunk in enumerate(chunks):
            count = len(chunk.tokens)
            end = chunk.start + count
            if count == 1:
                ids[row], positions[row] = chunk.tokens[0], chunk.start
            else:
                ids[row : row + count] = chunk.tokens
                positions[row : row + count] = np.arange(chunk.start, end)
            past[number] = chunk.start
            blocks = -(-end // BLOCK)
            indices[used : used + blocks] = table[chunk.slot, :blocks]
            wanted.extend([row + own for own in chunk.wanted])
            row += count
            used += blocks
            longest = max(longest, end)
            begins[number + 1], block_begins[number + 1] = row, used
        self._longest[...] = longest
        number = len(chunks)
        for name, length in (("input_ids", row), ("position_ids", row), ("past_lens", number), ("block_indices", used)):
            inputs[name].show(length)
        inputs["subsequence_begins"].show(number + 1)
        inputs["block_indices_begins"].show(number + 1)
        if self._gathers:
            inputs[SAMPLED].values[: len(wanted)] = wanted  # none: whatever was there; the product needs a row
            inputs[SAMPLED].values[0] %= row
            inputs[SAMPLED].show(max(1, len(wanted)))
        return wanted


def chunks(plan: Plan, scores: Mapping[str, PromptScores]) -> list[Chunk]:
    """What a plan computes. `scores`: of the requests that want their prompt's logits."""
    return [_chunk(part, scores.get(part.sequence.request.id)) for part in plan.parts]


def _chunk(part: Part, scores: PromptScores | None) -> Chunk:
    end = part.start + part.count
    tokens = part.sequence.tokens[part.start : end - len(part.guesses)]
    tokens += part.guesses
    drawn = range(part.count - 1 - len(part.guesses) if part.samples else part.count, part.count)
    wanted = drawn if scores is None else [*scores.rows(part.start, part.count), *drawn]
    return Chunk(part.sequence.slot, part.start, tokens, wanted)
