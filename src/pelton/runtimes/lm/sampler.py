"""Draws the next tokens on the device.

Each row's randomness is one number, a hash of (seed, position): a result does not depend on what else is in the
batch, on how often the sequence was preempted, or on the kind of device. Rows are drawn by inverting the
cumulative distribution, so no noise of the size of the vocabulary is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pelton.runtimes.lm.layout import Row
from pelton.runtimes.step_engine import Sampling

_MASK = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """A number in (0, 1), the same on every machine: splitmix64 of seed and position."""
    x = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    x ^= x >> 31
    return ((x >> 41) + 0.5) / (1 << 23)  # as many bits as float32 keeps


Logprobs = tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]
"""Of the rows that asked: which rows, the chosen token's, the top values, the top ids."""


@dataclass(slots=True)
class Drawn:
    """tokens [rows] int32, and logprobs, on the device."""

    tokens: torch.Tensor
    logprobs: Logprobs | None = None


class Penalties:
    """Counts of tokens per slot, on the device; memory is taken when the first request asks for penalties."""

    def __init__(self, slots: int, vocab: int, device: torch.device) -> None:
        self._shape, self._device = (slots, vocab), device
        self._output: torch.Tensor | None = None
        self._prompt: torch.Tensor | None = None

    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._output is None or self._prompt is None:
            self._output = torch.zeros(self._shape, dtype=torch.int16, device=self._device)
            self._prompt = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
        return self._output, self._prompt

    def start(self, slot: int, tokens: Sequence[int], prompt_length: int) -> None:
        output, prompt = self._tensors()
        ids = torch.tensor(tokens, dtype=torch.int64, device=self._device)
        output[slot] = torch.bincount(ids[prompt_length:], minlength=self._shape[1]).to(torch.int16)
        prompt[slot] = False
        prompt[slot, ids[:prompt_length]] = True

    def apply(self, logits: torch.Tensor, indices: list[int], rows: Sequence[Row]) -> None:
        """Change logits [rows, vocab] in place where a row has penalties."""
        output, prompt = self._tensors()
        at = torch.tensor(indices, device=self._device)
        slots = torch.tensor([rows[i].slot for i in indices], device=self._device)
        counts = output[slots]
        x = logits[at]

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=logits.dtype, device=self._device)[:, None]

        repetition = column([rows[i].sampling.repetition for i in indices])
        x = torch.where((counts > 0) | prompt[slots], torch.where(x > 0, x / repetition, x * repetition), x)
        x = x - counts * column([rows[i].sampling.frequency for i in indices])
        logits[at] = x - (counts > 0) * column([rows[i].sampling.presence for i in indices])

    def count(self, indices: list[int], rows: Sequence[Row], tokens: torch.Tensor) -> None:
        output, _ = self._tensors()
        slots = torch.tensor([rows[i].slot for i in indices], device=self._device)
        ids = tokens[torch.tensor(indices, device=self._device)].long()
        output.index_put_((slots, ids), torch.ones_like(ids, dtype=torch.int16), accumulate=True)


class Sampler:
    """Any mixture of greedy and random rows. Purely greedy batches do not come here (`Ops.greedy_and_remember`)."""

    def __init__(self, slots: int, vocab: int, device: torch.device) -> None:
        self._vocab, self._device = vocab, device
        self._penalties = Penalties(slots, vocab, device)

    def draw(self, logits: torch.Tensor, rows: Sequence[Row]) -> Drawn:
        """logits [rows, vocab] in any dtype; one Row each."""
        raw = logits.float()
        x = raw.clone()
        self._add_bias(x, rows)
        penalized = [i for i, row in enumerate(rows) if row.sampling.penalized]
        for row in rows:
            if row.fresh is not None and row.sampling.penalized:
                self._penalties.start(row.slot, *row.fresh)
        if penalized:
            self._penalties.apply(x, penalized, rows)
        for i, row in enumerate(rows):
            if row.allowed is not None:
                keep = torch.tensor(row.allowed, dtype=torch.int64, device=self._device)
                mask = torch.ones(self._vocab, dtype=torch.bool, device=self._device)
                mask[keep] = False
                x[i].masked_fill_(mask, float("-inf"))
        tokens = self._choose(x, rows).to(torch.int32)
        if penalized:
            self._penalties.count(penalized, rows, tokens)
        return Drawn(tokens, self._logprobs(raw, rows, tokens))

    def _add_bias(self, x: torch.Tensor, rows: Sequence[Row]) -> None:
        """Change logits [rows, vocab] in place where a request has a bias for some tokens."""
        wanted = [(i, token, value) for i, row in enumerate(rows) for token, value in row.sampling.bias]
        if wanted:
            at, tokens, values = zip(*wanted, strict=True)
            where = torch.tensor([at, tokens], dtype=torch.int64, device=self._device)
            x.index_put_((where[0], where[1]), torch.tensor(values, device=self._device), accumulate=True)

    def _choose(self, x: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        tokens = x.argmax(-1)
        for ranked in (False, True):  # apart, so that a row's order of tokens does not depend on the others
            chosen = [i for i, row in enumerate(rows) if not row.sampling.greedy and _ranked(row.sampling) == ranked]
            if chosen:
                at = torch.tensor(chosen, device=self._device)
                tokens[at] = self._invert(x[at], [rows[i] for i in chosen], ranked)
        return tokens

    def _invert(self, x: torch.Tensor, rows: list[Row], ranked: bool) -> torch.Tensor:
        def column(values: Sequence[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self._device)[:, None]

        probs = torch.softmax(x / column([row.sampling.temperature for row in rows]), -1)
        min_p = column([row.sampling.min_p for row in rows])
        draw = column([uniform(row.sampling.seed, row.position) for row in rows])
        if not ranked:
            probs = torch.where(probs >= min_p * probs.amax(-1, keepdim=True), probs, 0.0)
            return _pick(probs, draw)
        probs, ids = torch.sort(probs, stable=True, dim=-1, descending=True)
        rank = torch.arange(self._vocab, device=self._device)
        top_k = column([row.sampling.top_k or self._vocab for row in rows])
        probs = torch.where(rank < top_k, probs, 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
        top_p = column([row.sampling.top_p for row in rows])
        keep = (probs.cumsum(-1) - probs < top_p) | (top_p >= 1.0)  # up to the one that crosses the line
        keep &= probs >= min_p * probs[:, :1]
        return ids.gather(-1, _pick(torch.where(keep, probs, 0.0), draw)[:, None])[:, 0]

    def _logprobs(self, raw: torch.Tensor, rows: Sequence[Row], tokens: torch.Tensor) -> Logprobs | None:
        asked = [i for i, row in enumerate(rows) if row.sampling.logprobs is not None]
        if not asked:
            return None
        at = torch.tensor(asked, device=self._device)
        logs = torch.log_softmax(raw[at], -1)
        chosen = logs.gather(-1, tokens[at].long()[:, None])[:, 0]
        most = max(rows[i].sampling.logprobs or 0 for i in asked)
        values, ids = logs.topk(most, -1)
        return asked, chosen, values, ids


def _ranked(sampling: Sampling) -> bool:
    """Whether tokens must be sorted: top-k and top-p speak of ranks."""
    return sampling.top_k > 0 or sampling.top_p < 1.0


def _pick(probs: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution of unnormalized probs [rows, n] at draw [rows, 1] of its mass."""
    mass = probs.cumsum(-1)
    target = draw * mass[:, -1:]
    index = torch.searchsorted(mass, target, right=True)[:, 0]
    last = probs.shape[-1] - 1 - (probs > 0).flip(-1).to(torch.int8).argmax(-1)  # rounding must not leave the support
    return torch.minimum(index, last)
