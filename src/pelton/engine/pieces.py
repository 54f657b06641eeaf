"""A call with more rows than a batch: cut into pieces that queue one by one, and put together again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pelton.scheduling import Scheduler
from pelton.types import QUEUED, SETTLED, Array, Batch, Call, Outcome

if TYPE_CHECKING:
    from pelton.engine.prompts import Prompts

BULK = -1  # priority of pieces: a large call yields to small ones

SettleWhole = Callable[[Call, Outcome], None]


class Pieces:
    """The pieces of one call. The whole is settled once: with all rows in order, or with the first error."""

    def __init__(self, whole: Call, cap: int, scheduler: Scheduler | Prompts, settle: SettleWhole) -> None:
        self.whole = whole
        self._scheduler = scheduler
        self._settle = settle
        self.calls = self._cut(cap)
        self._left = len(self.calls)
        self._batch = Batch([whole], cap, "pieces")

    def _cut(self, cap: int) -> list[Call]:
        return [self._piece(start, min(start + cap, self.whole.rows)) for start in range(0, self.whole.rows, cap)]

    def _piece(self, start: int, stop: int) -> Call:
        whole = self.whole
        return Call(
            inputs=[array[start:stop] for array in whole.inputs],
            rows=stop - start,
            done=self._piece_done,
            received=whole.received,
            deadline=whole.deadline,
            own_deadline=whole.own_deadline,
            priority=whole.priority + BULK,
            bucket=whole.bucket,
            parent=whole,
        )

    def _piece_done(self, piece: Call) -> None:
        self._left -= 1
        batch = piece.batch
        if batch is not None:
            mine = self._batch
            mine.started = min(mine.started, batch.started) if mine.started else batch.started
            mine.run_seconds += batch.run_seconds * piece.rows / batch.rows
        if self.whole.state == SETTLED or piece.outcome is None:
            return
        if not isinstance(piece.outcome, list):
            self._finish(piece.outcome)
        elif self._left == 0:
            self._finish(self._joined())

    def _finish(self, outcome: Outcome) -> None:
        self._batch.rows = self.whole.rows
        if self._batch.started:
            self.whole.batch = self._batch
        self._settle(self.whole, outcome)

    def _joined(self) -> list[Array]:
        parts = [piece.outcome for piece in self.calls if isinstance(piece.outcome, list)]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def drop(self) -> None:
        """The whole is settled: pieces that still wait are taken out."""
        for piece in self.calls:
            if piece.state == QUEUED:
                piece.state = SETTLED
                self._scheduler.cancel(piece)
