"""Calls of models whose rows differ in length: a call of many texts is cut by length, and put together in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from pelton.engine.pieces import BULK, Pieces
from pelton.errors import TooLarge
from pelton.replicas import Replica
from pelton.replicas.lengths import width
from pelton.scheduling import LengthBatcher, LengthScheduler
from pelton.scheduling.length_batcher import STEP
from pelton.scheduling.lengths import Limits, split
from pelton.types import Array, Call, Outcome, TensorSpec

BULK_FROM: Final = 4  # full batches

Part = tuple[Sequence[int], int]  # numbers of rows, and the tokens that they are filled up to


class LengthPieces(Pieces):
    """The pieces of a call whose rows differ in length."""

    def __init__(
        self,
        whole: Call,
        parts: Sequence[Part],
        specs: Sequence[TensorSpec],
        scheduler: LengthScheduler,
        settle: Callable[[Call, Outcome], None],
        priority: int,
    ) -> None:
        self._parts = parts
        self._specs = specs
        self._priority = priority
        super().__init__(whole, 0, scheduler, settle)

    def _cut(self, cap: int) -> list[Call]:
        whole = self.whole
        return [
            Call(
                inputs=[
                    _part(array, rows, tokens, spec) for array, spec in zip(whole.inputs, self._specs, strict=True)
                ],
                rows=len(rows),
                done=self._piece_done,
                received=whole.received,
                deadline=whole.deadline,
                own_deadline=whole.own_deadline,
                priority=self._priority,
                bucket=whole.bucket,
                length=tokens,
                tokens=sum([whole.lengths[row] for row in rows]) if whole.lengths is not None else 0,
                parent=whole,
            )
            for rows, tokens in self._parts
        ]

    def _joined(self) -> list[Array]:
        """The rows in the order of the call."""
        order = np.concatenate([np.asarray(rows) for rows, _ in self._parts])
        joined = []
        for array in super()._joined():
            sorted_again = np.empty_like(array)
            sorted_again[order] = array
            joined.append(sorted_again)
        return joined


def _part(array: Array, rows: Sequence[int], tokens: int, spec: TensorSpec) -> Array:
    part: Array = array[rows] if not isinstance(rows, range) else array[rows.start : rows.stop]
    if spec.pad is not None and spec.shape == (-1,) and part.shape[1] > tokens:
        part = part[:, :tokens]
    return part


def parts_of(replica: Replica, call: Call, batcher: LengthBatcher, most: int) -> list[Part]:
    """How a call is cut; one part: it is not. Raises TooLarge."""
    if call.rows > most:
        raise TooLarge(f"one call may have {most} rows, this one has {call.rows}: send several calls")
    limits = Limits(batcher.cap, batcher.most_rows)
    if call.lengths is not None and call.rows > 1 and all(spec.fixed for spec in replica.signature.outputs):
        return [(rows, min(tokens, call.length)) for rows, tokens in split(call.lengths, limits, STEP)]
    each = max(1, min(limits.rows, limits.tokens // call.length))
    if call.rows <= each:
        return [(range(call.rows), call.length)]
    return [(range(i, min(i + each, call.rows)), call.length) for i in range(0, call.rows, each)]


def measure(replica: Replica, call: Call) -> None:
    """Notes how long the rows of a call are."""
    if replica.ragged is not None:
        call.length = max(1, width(call.inputs[replica.ragged]))


def priority_of(call: Call, load: int, cap: int) -> int:
    """Pieces of a call that takes several batches yield to small calls."""
    return call.priority + (BULK if load > BULK_FROM * cap else 0)
