"""The language-model engine: requests in, steps out.

    schedule -> launch -> (meanwhile: the step before) collect -> commit -> report

One step is always in flight while the next is planned: a plan needs how many tokens there are, not which.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pelton.runtimes.lm.attention import AttentionKind, Batch, choose_attention
from pelton.runtimes.lm.blocks import BlockPool
from pelton.runtimes.lm.config import ModelConfig
from pelton.runtimes.lm.model import Model
from pelton.runtimes.lm.ops import choose_ops
from pelton.runtimes.lm.parallel import ALONE, Ranks
from pelton.runtimes.lm.reference import FP8
from pelton.runtimes.lm.runner import InFlight, Memory, Results, Runner
from pelton.runtimes.lm.scheduler import Limits, Part, Plan, Progress, Scheduler
from pelton.runtimes.lm.weights import Loader, RandomSource, Source, open_model
from pelton.runtimes.step_engine import (
    FinishReason,
    Grammar,
    LmOutput,
    LmRequest,
    Share,
    StepEngine,
    StepReport,
    TokenLogprobs,
)

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to run a model. Sizes are in tokens unless they say otherwise."""

    device: str = "auto"  # "cuda", "cuda:1", "cpu"; auto: cuda if there is one
    dtype: str = "auto"  # "bf16", "fp16", "fp32"; auto: bf16 on CUDA, fp32 on CPU
    fp8_weights: bool = False
    fp8_kv: bool = False
    attention: AttentionKind = "auto"
    max_seqs: int = 256
    max_length: int = 0  # prompt and output together; 0: the model's context
    token_budget: int = 4096  # positions per step: bounds how long one step can take
    block_size: int = 0  # tokens per KV block; 0: 64 on CUDA, 16 on CPU
    kv_blocks: int = 0  # 0: what `memory_fraction` of the device leaves (CPU: room for max_seqs of 512 tokens)
    memory_fraction: float = 0.9
    prefix_cache: bool = True
    guesses: int = 0  # prompt lookup: guessed tokens per step; 0: off
    cuda_graphs: bool = True


class LmEngine:
    """A step engine (`pelton.runtimes.step_engine.StepEngine`) for the Llama family."""

    def __init__(
        self, config: ModelConfig, source: Source, options: EngineOptions, ranks: Ranks = ALONE, seed: int | None = None
    ) -> None:
        device = _device(options)
        dtype = _DTYPES[options.dtype] if options.dtype != "auto" else _default_dtype(device)
        if seed is not None:
            source = RandomSource(config, seed, device, dtype)
        self.config, self.options, self.ranks, self.end_tokens = config, options, ranks, frozenset[int]()
        weights = Loader(config, source, device, dtype, ranks, options.fp8_weights).load()
        kv_dtype = FP8 if options.fp8_kv else dtype
        attention = choose_attention(options.attention, device, kv_dtype)
        max_length = min(options.max_length or config.context, config.context)
        self.model = Model(config, weights, choose_ops(device), attention, ranks, max_length, dtype)
        memory = _memory(self.model, options, max_length, kv_dtype)
        self.max_length = max_length
        self.runner = Runner(self.model, memory)
        pool = BlockPool(memory.blocks, memory.block_size, options.prefix_cache)
        budget = max(options.token_budget, options.max_seqs)
        if device.type == "cuda" and options.cuda_graphs:
            self.runner.capture(self.runner.frames(budget))
        self.scheduler = Scheduler(pool, Limits(budget, options.max_seqs, options.guesses))
        self._flights: deque[InFlight] = deque()
        self._notices: list[LmOutput] = []  # outputs that no step brings: cancellations
        self._steps = 0
        # What exists now lives as long as the engine: a full garbage collection that walks it stops all streams
        # for a fifth of a second.
        gc.collect()
        gc.freeze()

    @classmethod
    def load(cls, path: str | Path, options: EngineOptions | None = None, ranks: Ranks = ALONE) -> LmEngine:
        """Load a Hugging Face folder with safetensors, or a .gguf file."""
        opened = open_model(Path(path))
        engine = cls(opened.config, opened.source, options or EngineOptions(), ranks)
        engine.end_tokens = opened.end_tokens
        return engine

    @classmethod
    def random(cls, config: ModelConfig, options: EngineOptions, seed: int = 0, ranks: Ranks = ALONE) -> LmEngine:
        """An engine with random weights: for benchmarks and tests."""
        return cls(config, RandomSource(config, seed, torch.device("cpu"), torch.float32), options, ranks, seed)

    # ---- the contract

    def add(self, request: LmRequest) -> None:
        if request.prompt_logprobs:
            raise ValueError(f"request {request.id!r} asks for logprobs of its prompt, which this engine cannot tell")
        total = len(request.prompt) + request.max_tokens
        if total > self.max_length:
            raise ValueError(
                f"request {request.id!r} needs {total} tokens of context, the engine allows {self.max_length}: "
                "send a shorter prompt, ask for fewer tokens, or raise max_length"
            )
        if not all(0 <= token < self.config.vocab for token in request.prompt):
            raise ValueError(f"request {request.id!r} holds a token outside 0..{self.config.vocab - 1}")
        self.scheduler.add(request)

    def cancel(self, request_id: str) -> bool:
        known = self.scheduler.cancel(request_id)
        if known:
            self._notices.append(LmOutput(request_id, (), "cancelled"))
        return known

    def has_work(self) -> bool:
        return bool(self.scheduler.sequences or self._flights or self._notices)

    def step(self) -> StepReport:
        if not self._flights:
            self._launch()
        self._launch()  # the next step goes to the device before this one's tokens are looked at
        if not self._flights:
            return self._report(None, Results([], [], 0.0), [])
        flight = self._flights.popleft()
        results = self.runner.collect(flight)
        progress = self.scheduler.commit(flight.plan, results.tokens)
        return self._report(flight.plan, results, progress)

    # ---- inside a step

    def _launch(self) -> None:
        if len(self._flights) > 1:
            return
        plan = self.scheduler.plan()
        if plan.parts:
            self._flights.append(self.runner.launch(plan))

    def _report(self, plan: Plan | None, results: Results, progress: list[Progress]) -> StepReport:
        outputs, self._notices = self._notices, []
        logprobs = dict(zip((id(p.sequence) for p in plan.parts), results.logprobs, strict=True)) if plan else {}
        outputs.extend(self._output(item, logprobs.get(id(item.sequence))) for item in progress)
        self._steps += 1
        scheduler = self.scheduler
        return StepReport(
            number=self._steps,
            shares=tuple(_share(part) for part in plan.parts) if plan else (),
            outputs=tuple(outputs),
            seconds=results.seconds,
            preempted=tuple(plan.preempted) if plan else (),
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            free_blocks=scheduler.pool.free,
        )

    def _output(self, item: Progress, logprobs: list[TokenLogprobs] | None) -> LmOutput:
        request, finish, error = item.sequence.request, item.finish, ""
        if request.grammar is not None and finish is None:
            finish, error = _confine(request.grammar, item.tokens)
            if finish is not None:
                self.scheduler.stop_early(item.sequence)
        if request.sampling.logprobs is None or not logprobs:
            return LmOutput(request.id, item.tokens, finish, error=error)
        most = request.sampling.logprobs
        kept = tuple(TokenLogprobs(x.chosen, x.top[:most]) for x in logprobs[: len(item.tokens)])
        return LmOutput(request.id, item.tokens, finish, kept, error=error)


if TYPE_CHECKING:
    _contract: type[StepEngine] = LmEngine  # the type checker compares them


def _share(part: Part) -> Share:
    return Share(part.sequence.request.id, part.prefill, part.count - part.prefill, part.cached)


def _confine(grammar: Grammar, tokens: Sequence[int]) -> tuple[FinishReason | None, str]:
    """Takes new tokens into the grammar. A finish reason where the output ends, and what failed."""
    try:
        for token in tokens:
            grammar.advance(token)
        allowed = grammar.allowed()
    except Exception as error:  # noqa: BLE001 - a grammar that breaks ends its own request and no other
        return "failed", f"the grammar of the output failed: {type(error).__name__}: {error}"
    return ("stop", "") if allowed is not None and not len(allowed) else (None, "")


def _device(options: EngineOptions) -> torch.device:
    if options.device != "auto":
        return torch.device(options.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _default_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _memory(model: Model, options: EngineOptions, max_length: int, kv_dtype: torch.dtype) -> Memory:
    """How many KV blocks there is room for, so that no later step can run out of memory."""
    device = model.weights.embedding.device
    size = options.block_size or (64 if device.type == "cuda" else 16)
    if device.type == "cuda" and kv_dtype == FP8 and size < 32:
        raise ValueError(f"a float8 KV cache needs blocks of at least 32 tokens on CUDA, not {size}")
    blocks = options.kv_blocks
    if not blocks and device.type == "cuda":
        peak = _peak_memory(model, options, max_length, size, kv_dtype)
        free, total = torch.cuda.mem_get_info(device)
        block_bytes = size * model.config.kv_bytes_per_token(kv_dtype.itemsize) // model.ranks.size
        blocks = int((free - (1.0 - options.memory_fraction) * total - peak) // block_bytes)
        if blocks < 1:
            raise MemoryError("the weights leave no room for a KV cache: use FP8 weights or more GPUs")
    elif not blocks:
        blocks = options.max_seqs * max(1, 512 // size)
    return Memory(model.ranks.least(blocks), size, options.max_seqs, max_length, kv_dtype)


def _peak_memory(model: Model, options: EngineOptions, max_length: int, size: int, kv_dtype: torch.dtype) -> int:
    """Bytes that the largest step takes beyond weights and KV, found by running it on a small cache."""
    device = model.weights.embedding.device
    budget = max(options.token_budget, options.max_seqs)
    length = min(budget, max_length)
    runner = Runner(model, Memory(-(-length // size), size, options.max_seqs, length, kv_dtype))
    count = -(-budget // length)
    ids = torch.zeros(budget, dtype=torch.int32, device=device)
    starts = [i * length for i in range(count)]
    counts = [min(length, budget - start) for start in starts]
    packed = torch.tensor([starts, counts, [0] * count, [0] * count], dtype=torch.int32, device=device)
    step = model.attention.tile_rows
    tiles = [(i, at) for i, n in enumerate(counts) for at in range(0, n, step)]
    runner.table[0] = torch.arange(runner.table.shape[1], dtype=torch.int32, device=device)
    positions = torch.arange(budget, dtype=torch.int32, device=device) % length
    rows = torch.arange(min(budget, options.max_seqs), device=device)
    batch = Batch(
        ids, positions, ids, rows.int(), 0, packed, torch.tensor(tiles, device=device).int(), rows.int(), length
    )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.inference_mode():
        logits = model.forward(batch, runner.cache, runner.table, runner.last)
        logits.float().softmax(-1).sort(-1)
    peak = int(torch.cuda.max_memory_allocated(device) - before)
    del runner, batch, logits
    torch.cuda.empty_cache()
    return 2 * peak if options.cuda_graphs else peak  # graphs keep memory of their own for steps of that size
