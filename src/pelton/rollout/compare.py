"""Whether two versions gave the same answer to one call, and by how much the score moved.

Rules, per output of the signature:
- integers, booleans, bytes: any difference is a disagreement.
- classes (the package declares labels for the output, or every row holds two or more floats from 0 to 1 that sum to 1):
  another best class is a disagreement, another score alone is not.
- other floats: numbers that differ by more than `tolerance`, relative to the larger amount, and by more than 1e-6.
  NaN equals NaN, an infinity equals itself.
- other shapes, or another number of outputs: a disagreement that cannot be measured.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pelton.rollout.evidence import SHIFT_LIMIT, Comparison
from pelton.types import Array, Signature, TensorSpec

__all__ = ["Comparison", "compare"]

_CLOSE: Final = 1e-6
_SUM_SLACK: Final = 0.02

Floats = NDArray[np.float64]


UNLIKE: Final = Comparison(True, 0.0, measured=False)


def compare(
    deployed: Sequence[Array],
    shadow: Sequence[Array],
    signature: Signature,
    tolerance: float,
    classes: Collection[str] = (),
) -> Comparison:
    """Compares two answers to the same rows. `classes`: outputs for which the package declares labels. Never raises for
    what a model may answer."""
    specs = signature.outputs
    if len(deployed) != len(specs) or len(shadow) != len(specs):
        return UNLIKE
    disagree, score = False, None
    for spec, old, new in zip(specs, deployed, shadow, strict=True):
        if old.shape != new.shape:
            return UNLIKE
        if spec.type.kind != "float":
            disagree = disagree or not _same(old, new)
            continue
        found = _floats(_float64(old, spec), _float64(new, spec), tolerance, spec.name in classes)
        disagree = disagree or found.disagree
        score = score or found
    if score is None:
        return Comparison(disagree, 0.0)
    return score._replace(disagree=disagree)


def _floats(old: Floats, new: Floats, tolerance: float, declared: bool) -> Comparison:
    if old.size == 0:
        return Comparison(False, 0.0)
    with np.errstate(all="ignore"):
        if old.ndim > 1 and old.shape[-1] > 1 and (declared or (_probabilities(old) and _probabilities(new))):
            best, other = old.argmax(-1), new.argmax(-1)
            shown = np.ones_like(best) if old.shape[-1] == 2 else best
            shift = np.take_along_axis(new - old, shown[..., None], -1)
            unlike = np.isnan(old).any(-1) != np.isnan(new).any(-1)
            return _judged(bool(((best != other) | unlike).any()), shift)
        apart = np.abs(new - old)
        same = (old == new) | (np.isnan(old) & np.isnan(new))
        near = apart <= np.maximum(tolerance * np.maximum(np.abs(old), np.abs(new)), _CLOSE)
        return _judged(bool((~(same | (near & np.isfinite(apart)))).any()), np.where(same, 0.0, new - old))


def _judged(disagree: bool, shift: Floats) -> Comparison:
    """The largest shift, where all of them are numbers."""
    if not np.isfinite(shift).all():
        return Comparison(disagree, 0.0, measured=not disagree)
    flat = shift.ravel()
    largest = float(flat[np.abs(flat).argmax()])
    return Comparison(disagree, min(max(largest, -SHIFT_LIMIT), SHIFT_LIMIT))


def _probabilities(rows: Floats) -> bool:
    return bool((rows >= 0).all() and (rows <= 1).all() and (np.abs(rows.sum(-1) - 1) <= _SUM_SLACK).all())


def _same(old: Array, new: Array) -> bool:
    return bool(np.array_equal(old, new))


def _float64(values: Array, spec: TensorSpec) -> Floats:
    """BF16 comes as its bits."""
    if spec.datatype == "BF16" and values.dtype == np.uint16:
        raised: NDArray[Any] = values.astype(np.uint32) << 16
        return raised.view(np.float32).astype(np.float64)
    return values.astype(np.float64)
