"""Draws the next tokens from logits, in numpy.

A row's randomness is one number, a hash of (seed, position): a draw does not depend on what else is in the batch, nor on
how often its sequence was preempted. Rows are drawn by inverting the cumulative distribution, so no noise of the size of
the vocabulary is needed. The most frequent case, greedy rows, is one argmax over the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pelton.runtimes.step_engine import Grammar, LmRequest, Sampling, TokenLogprobs

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
_MASK: Final = (1 << 64) - 1
_FOLD: Final = 64  # logits of a row are looked at in this many layers, to find its largest without sorting all
_SHORTLIST: Final = 192  # tokens among which top-p is looked for before all are sorted


def uniform(seed: int, position: int) -> float:
    """A number in (0, 1), the same on every machine: splitmix64 of seed and position."""
    x = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    x ^= x >> 31
    return ((x >> 12) + 0.5) / (1 << 52)


class Counts:
    """Which tokens a sequence has, and how often in its output: what penalties ask for."""

    def __init__(self, prompt: Iterable[int], output: Iterable[int] = ()) -> None:
        ids = sorted(set(prompt))
        self._at = {token: i for i, token in enumerate(ids)}
        self._ids = np.zeros(max(64, 2 * len(ids)), np.int64)
        self._ids[: len(ids)] = ids
        self._times = np.zeros(len(self._ids), np.float32)
        self.add(output)

    def add(self, output: Iterable[int]) -> None:
        for token in output:
            at = self._at.get(token)
            if at is None:
                at = self._at[token] = len(self._at)
                if at == len(self._ids):
                    self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                    self._times = np.concatenate([self._times, np.zeros_like(self._times)])
                self._ids[at] = token
            self._times[at] += 1

    def penalize(self, logits: Floats, sampling: Sampling) -> None:
        """Changes a row in place."""
        size = len(self._at)
        ids, times = self._ids[:size], self._times[:size]
        x = logits[ids]
        if sampling.repetition != 1.0:
            x = np.where(x > 0, x / np.float32(sampling.repetition), x * np.float32(sampling.repetition))
        logits[ids] = x - times * np.float32(sampling.frequency) - (times > 0) * np.float32(sampling.presence)


class Chooser:
    """How one request chooses, and what it needs to remember for that."""

    def __init__(self, request: LmRequest, vocab: int) -> None:
        sampling = request.sampling
        self.sampling = sampling
        self.seed = sampling.seed
        self.grammar: Grammar | None = request.grammar
        self.logprobs = sampling.logprobs
        self.counts = Counts(request.prompt) if sampling.penalized else None
        self._bias = _bias(request, vocab)
        self._changes = self.counts is not None or self._bias is not None
        self.plain = sampling.greedy and not self._changes and request.grammar is None
        self.ranked = sampling.top_k > 0 or sampling.top_p < 1.0  # they speak of ranks: tokens must be sorted
        self.simple = not self._changes and request.grammar is None and not self.ranked  # shares its numpy calls
        self.allowed: Ints | None = None  # set before each draw where there is a grammar

    def took(self, tokens: Sequence[int]) -> None:
        """These are now part of the output."""
        if self.counts is not None:
            self.counts.add(tokens)

    def changed(self, logits: Floats) -> Floats:
        """The row with bias and penalties; the model's own row stays as it is."""
        if not self._changes:
            return logits
        logits = logits.copy()
        if self._bias is not None:
            logits[self._bias[0]] += self._bias[1]
        if self.counts is not None:
            self.counts.penalize(logits, self.sampling)
        return logits


def _bias(request: LmRequest, vocab: int) -> tuple[Ints, Floats] | None:
    if not request.sampling.bias:
        return None
    added: dict[int, float] = {}
    for token, value in request.sampling.bias:
        if not 0 <= token < vocab:
            raise ValueError(f"request {request.id!r} has a bias for token {token}, which is not in 0..{vocab - 1}")
        added[token] = added.get(token, 0.0) + value
    return np.fromiter(added, np.int64, len(added)), np.fromiter(added.values(), np.float32, len(added))


def draw(logits: Floats, choosers: Sequence[Chooser], positions: Sequence[int]) -> list[int]:
    """One token per row of logits [rows, vocab]. `positions`: of each new token in its sequence."""
    tokens: list[int] = logits.argmax(-1).tolist()
    simple: list[int] = []
    for row, chooser in enumerate(choosers):
        if chooser.plain:
            continue
        if chooser.simple:
            simple.append(row)
        else:
            tokens[row] = _choose(logits[row], chooser, positions[row])
    if simple:
        rows = logits if len(simple) == len(logits) else logits[simple]
        chosen = [choosers[row] for row in simple]
        drawn = [uniform(c.seed, positions[row]) for c, row in zip(chosen, simple, strict=True)]
        for row, token in zip(simple, _draw_all(rows, chosen, drawn), strict=True):
            tokens[row] = token
    return tokens


def _choose(row: Floats, chooser: Chooser, position: int) -> int:
    """One row with everything that a request can ask for."""
    sampling, allowed = chooser.sampling, chooser.allowed
    row = chooser.changed(row)
    if allowed is not None:
        row = row[allowed]
    if sampling.greedy:
        index = int(row.argmax())
    else:
        index = _draw_one(row, sampling, uniform(chooser.seed, position), chooser.ranked)
    return index if allowed is None else int(allowed[index])


def _draw_all(logits: Floats, choosers: Sequence[Chooser], drawn: Sequence[float]) -> list[int]:
    """Rows with a temperature and perhaps min-p, many at once."""
    scale = np.array([1.0 / chooser.sampling.temperature for chooser in choosers], np.float32)[:, None]
    weights = logits - logits.max(-1, keepdims=True)
    weights *= scale
    np.exp(weights, out=weights)  # the most likely has weight 1
    floors = np.array([chooser.sampling.min_p for chooser in choosers], np.float32)
    if floors.any():
        weights[weights < floors[:, None]] = 0.0
    return [_invert(row, u) for row, u in zip(weights, drawn, strict=True)]


def _draw_one(logits: Floats, sampling: Sampling, u: float, ranked: bool) -> int:
    weights = logits - logits.max()
    weights *= np.float32(1.0 / sampling.temperature)
    np.exp(weights, out=weights)
    if not ranked:
        weights[weights < sampling.min_p] = 0.0
        return _invert(weights, u)
    ids = support(weights, sampling)
    return int(ids[_search(weights[ids].astype(np.float64), u)])


def support(weights: Floats, sampling: Sampling) -> Ints:
    """The tokens that top-k, top-p and min-p leave, ascending. Of equally likely ones the first stay."""
    size = len(weights)
    among = min(sampling.top_k or _SHORTLIST, size)
    ids = np.flatnonzero(weights >= _floor(weights, among))
    if sampling.top_p < 1.0 and not sampling.top_k:
        limit = sampling.top_p * weights.sum(dtype=np.float64)
        if weights[ids].sum(dtype=np.float64) < limit:
            ids = np.arange(size)
    values = np.sort(weights[ids])[::-1]
    keep = among if sampling.top_k else len(ids)
    if sampling.top_p < 1.0:
        mass = np.cumsum(values[:keep], dtype=np.float64)
        if sampling.top_k:
            limit = sampling.top_p * mass[-1]
        keep = min(int(np.searchsorted(mass, limit)) + 1, keep)  # up to the one that crosses the line
    keep = int(np.count_nonzero(values[:keep] >= sampling.min_p * values[0]))
    least = values[keep - 1]
    ids = ids[weights[ids] >= least]
    if len(ids) > keep:
        equal = np.flatnonzero(weights[ids] == least)
        ids = np.delete(ids, equal[keep - len(ids) :])
    chosen: Ints = ids
    return chosen


def _floor(values: Floats, count: int) -> Any:
    """A value that at least `count` values reach, and of long rows not many more.

    A long row is folded into columns: `count` columns whose maxima reach it hold as many values that do."""
    size = len(values)
    count = min(count, size)
    columns = size // _FOLD
    if count * 4 > columns:
        return np.partition(values, size - count)[size - count]
    folded = values[: columns * _FOLD].reshape(_FOLD, columns).max(0)
    return np.partition(folded, columns - count)[columns - count]


def largest(values: Floats, count: int) -> Ints:
    """Indices of the `count` largest values, largest first; of equal ones the first."""
    candidates = np.flatnonzero(values >= _floor(values, count))
    order = np.lexsort((candidates, -values[candidates]))[:count]
    found: Ints = candidates[order]
    return found


def _invert(weights: Floats, u: float) -> int:
    """Inverts the cumulative distribution in two steps: which layer of the row, then where in it."""
    size = len(weights)
    width = max(1, size // _FOLD)
    starts = np.arange(0, size, width)
    sums = np.add.reduceat(weights, starts, dtype=np.float64)
    target = u * sums.sum()
    layer = _search(sums, u)
    before = float(sums[:layer].sum())
    inside = weights[starts[layer] : starts[layer] + width].astype(np.float64)
    return int(starts[layer]) + _at(np.cumsum(inside), target - before, inside)


def _search(weights: NDArray[np.float64], u: float) -> int:
    mass = np.cumsum(weights)
    return _at(mass, u * mass[-1], weights)


def _at(mass: NDArray[np.float64], target: float, weights: NDArray[np.float64]) -> int:
    index = int(np.searchsorted(mass, target, side="right"))
    if index < len(weights) and weights[index] > 0.0:
        return index
    return int(np.flatnonzero(weights)[-1])  # rounding must not leave the support


# ---- log probabilities


def logprobs(logits: Floats, tokens: Sequence[int], most: Sequence[int]) -> list[TokenLogprobs]:
    """Of rows [rows, vocab]: the chosen tokens' natural-log probabilities, and the `most[row]` most likely tokens."""
    highest = logits.max(-1)
    shifted = logits - highest[:, None]
    np.exp(shifted, out=shifted)
    normal = highest.astype(np.float64) + np.log(shifted.sum(-1, dtype=np.float64))
    found: list[TokenLogprobs] = []
    for row, (token, count) in enumerate(zip(tokens, most, strict=True)):
        values = logits[row]
        ids = largest(values, count) if count > 1 else np.array([values.argmax()] if count else [], np.int64)
        top: Any = (values[ids].astype(np.float64) - normal[row]).tolist()
        found.append(TokenLogprobs(float(values[token] - normal[row]), tuple(zip(ids.tolist(), top, strict=True))))
    return found
