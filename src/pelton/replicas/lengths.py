"""Models whose rows differ in length: which input tells it, and S by padded tokens, measured while the model loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from pelton.packages import Package
from pelton.packages.preprocess import Text
from pelton.scheduling import LatencyModel
from pelton.types import Array, Signature, TensorSpec

# rows x tokens, as long as there is time: what one text costs, then what company costs
SHAPES: Final = ((1, 8), (1, 16), (1, 32), (1, 64), (2, 64), (4, 64), (8, 64), (16, 64))
TURNS: Final = 3  # runs of each shape; the median counts
LONGEST: Final = 8192  # tokens of a row, where the package does not tell


def ragged(signature: Signature) -> int | None:
    """The position of the input that tells how long a row is: the first that varies and is filled up (None: none is)."""
    if not signature.batched:
        return None
    for place, spec in enumerate(signature.inputs):
        if spec.pad is not None and not spec.fixed:
            return place
    return None


def width(array: Array) -> int:
    """Tokens of a row as it is now, filling included."""
    tokens = 1
    for dim in array.shape[1:]:
        tokens *= dim
    return tokens


def longest(package: Package) -> int:
    """Tokens that one row may have."""
    limits = [block.max_tokens for block in package.manifest.preprocess if isinstance(block, Text)]
    return max(limits, default=LONGEST)


def profile(
    package: Package,
    recorded: Mapping[str, Array],
    run: Callable[[Sequence[Array], int], object],
    clock: Callable[[], float],
    seconds: float,
) -> LatencyModel:
    """S by padded tokens, as far as the time reaches. `recorded`: the golden requests' rows; `run` takes inputs, rows."""
    points: list[tuple[int, float]] = []
    end = clock() + seconds
    most = longest(package)
    for rows, tokens in SHAPES:
        if rows > package.manifest.batching.max_rows or (points and clock() + TURNS * 2 * points[-1][1] > end):
            break
        tokens = min(tokens, most)
        inputs = [_sample(spec, recorded.get(spec.name), rows, tokens) for spec in package.manifest.signature.inputs]
        if not points:
            run(inputs, rows)
        times = []
        for _ in range(TURNS):
            begin = clock()
            run(inputs, rows)
            times.append(clock() - begin)
        points = [point for point in points if point[0] != rows * tokens]
        points.append((rows * tokens, sorted(times)[TURNS // 2]))
    return LatencyModel(points)


def _sample(spec: TensorSpec, recorded: Array | None, rows: int, tokens: int) -> Array:
    """A recorded row, repeated until it is long enough; without one, zeros."""
    shape = tuple(tokens if dim == -1 else dim for dim in spec.shape)
    if recorded is None or not recorded.size:
        row = np.zeros(shape, spec.type.dtype) if spec.datatype != "BYTES" else np.full(shape, b"", object)
    else:
        row = np.resize(recorded[0], shape)
    return np.repeat(row[None], rows, axis=0)
