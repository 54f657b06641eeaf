"""Loaded models (`runtimes.contract.LoadedModel`) without weights."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np

from pelton.testing.clock import ManualClock
from pelton.types import Array, Signature, TensorSpec

SCALAR_ECHO: Final = Signature((TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),))


class EchoModel:
    """Answers a copy of its inputs, so that every row can be checked to have reached its own caller.

    `signature` must have as many outputs as inputs, of the same types and shapes (default: x FP32[1] -> y FP32[1]).
    `closed` tells whether `close` was called; a run after that raises RuntimeError.
    """

    def __init__(self, signature: Signature = SCALAR_ECHO) -> None:
        if [(s.datatype, s.shape) for s in signature.inputs] != [(s.datatype, s.shape) for s in signature.outputs]:
            raise ValueError("an echo needs outputs of the same types and shapes as its inputs")
        self.signature = signature
        self.closed = False

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        if self.closed:
            raise RuntimeError("this model was closed")
        return [array.copy() for array in inputs]

    def close(self) -> None:
        self.closed = True


class FaultyModel(EchoModel):
    """An echo that raises `error` for any batch with a poisoned row: one whose first element of the first input is in
    `poison`. `batches` holds a copy of the first input of every batch that it was given, poisoned ones included."""

    def __init__(
        self,
        poison: Collection[Any],
        signature: Signature = SCALAR_ECHO,
        error: type[Exception] = RuntimeError,
    ) -> None:
        super().__init__(signature)
        self.poison = frozenset(poison)
        self.batches: list[Array] = []
        self._error = error

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        first = inputs[0]
        self.batches.append(first.copy())
        bad = [element for element in _first_elements(first) if element in self.poison]
        if bad:
            raise self._error(f"poisoned row: {bad[0]!r}")
        return super().run(inputs)


class SleepyModel(EchoModel):
    """An echo that takes S(b) = t0 + a * b seconds for b rows, like a real device.

    With a ManualClock it moves that clock instead of sleeping. `busy_seconds` adds up what it took.
    """

    def __init__(
        self,
        t0: float,
        a: float,
        clock: ManualClock | None = None,
        signature: Signature = SCALAR_ECHO,
    ) -> None:
        super().__init__(signature)
        self.t0 = t0
        self.a = a
        self.busy_seconds = 0.0
        self._clock = clock

    def seconds(self, rows: int) -> float:
        """S(rows)."""
        return self.t0 + self.a * rows

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        seconds = self.seconds(len(inputs[0]))
        if self._clock is None:
            time.sleep(seconds)
        else:
            self._clock.advance(seconds)
        self.busy_seconds += seconds
        return super().run(inputs)


def _first_elements(array: Array) -> list[Any]:
    """The first element of every row, as Python values."""
    rows = len(array)
    if rows == 0 or array.size == 0:
        return []
    first: list[Any] = np.reshape(array, (rows, -1))[:, 0].tolist()
    return first
