"""The OpenVINO engine: schedule, run, choose, commit, report. One step at a time; the caller owns the time.

The step after this one is not started ahead: a request that arrives while a step runs takes part in the very next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pelton.runtimes.lm.blocks import BlockPool
from pelton.runtimes.lm.scheduler import Limits, Part, Plan, Progress, Scheduler
from pelton.runtimes.openvino import sampler
from pelton.runtimes.openvino.runner import Logits, Runner, chunks
from pelton.runtimes.openvino.sampler import Chooser
from pelton.runtimes.openvino.scores import PromptScores
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
from pelton.scheduling.token_speed import TokenSpeed


class OpenVinoEngine:
    """A step engine (`pelton.runtimes.step_engine.StepEngine`) on the CPU."""

    def __init__(
        self,
        runner: Runner,
        pool: BlockPool,
        limits: Limits,
        context: int,
        speed: TokenSpeed,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.runner, self.context, self.speed = runner, context, speed
        self.shares_prefixes = False  # also between requests of different salts
        self.scheduler = Scheduler(pool, limits, speed)
        self._clock = clock
        self._choosers: dict[str, Chooser] = {}
        self._scores: dict[str, PromptScores] = {}
        self._notices: list[LmOutput] = []  # outputs that no step brings
        self._steps = 0

    # ---- the contract

    def add(self, request: LmRequest) -> None:
        total = len(request.prompt) + request.max_tokens
        if total > self.context:
            raise ValueError(
                f"request {request.id!r} needs {total} tokens of context, the engine has {self.context}: "
                "send a shorter prompt, or ask for fewer tokens"
            )
        if min(request.prompt) < 0 or max(request.prompt) >= self.runner.vocab:
            raise ValueError(f"request {request.id!r} holds a token outside 0..{self.runner.vocab - 1}")
        chooser = Chooser(request, self.runner.vocab)
        self.scheduler.add(replace(request, salt="") if self.shares_prefixes else request)
        self._choosers[request.id] = chooser
        if request.prompt_logprobs:
            self._scores[request.id] = PromptScores(request.prompt, request.sampling.logprobs or 0)
        if request.grammar is not None and (end := _confine(chooser, request.grammar, ())) is not None:
            self.scheduler.cancel(request.id)
            self._forget(request.id)
            self._notices.append(LmOutput(request.id, (), end[0], error=end[1]))

    def cancel(self, request_id: str) -> bool:
        known = self.scheduler.cancel(request_id)
        if known:
            self._forget(request_id)
            self._notices.append(LmOutput(request_id, (), "cancelled"))
        return known

    def has_work(self) -> bool:
        return bool(self.scheduler.sequences or self._notices)

    def step(self) -> StepReport:
        start = self._clock()
        plan = self.scheduler.plan()
        if not plan.parts:
            return self._report(plan, [], 0.0)
        self.runner.place(plan.placed)
        logits = self.runner.run(chunks(plan, self._scores))
        if self._scores:
            logits = self._score(plan, logits)
        drawn, found = self._draw(plan, logits)
        progress = self.scheduler.commit(plan, drawn)
        outputs = [self._output(item, found.get(item.sequence.request.id)) for item in progress]
        seconds = self._clock() - start
        self._learn(plan, seconds)
        return self._report(plan, outputs, seconds)

    # ---- inside a step

    def _score(self, plan: Plan, logits: Logits) -> Logits:
        """Takes the rows that only prompt logprobs asked for. Returns the others, from which tokens are drawn."""
        kept: list[int] = []
        row = 0
        for part in plan.parts:
            scores = self._scores.get(part.sequence.request.id)
            if scores is not None and (own := len(scores.rows(part.start, part.count))):
                scores.take(logits[row : row + own])
                row += own
            kept.extend(range(row, row + _drawn(part)))
            row += _drawn(part)
        return logits[kept]

    def _draw(self, plan: Plan, logits: Logits) -> tuple[list[list[int]], dict[str, TokenLogprobs]]:
        """New tokens of each part, and, of the requests that asked, how likely they were."""
        choosers: list[Chooser] = []
        positions: list[int] = []
        asked: dict[str, int] = {}
        for part in plan.parts:
            if part.samples:
                chooser = self._choosers[part.sequence.request.id]
                if chooser.logprobs is not None:
                    asked[part.sequence.request.id] = len(choosers)  # such a request makes no guesses: one row
                end = part.start + part.count
                for position in range(end - len(part.guesses), end + 1):
                    choosers.append(chooser)
                    positions.append(position)
        if not choosers:
            return [[] for _ in plan.parts], {}
        tokens = sampler.draw(logits, choosers, positions)
        found: dict[str, TokenLogprobs] = {}
        if asked:
            rows = list(asked.values())
            most = [choosers[row].logprobs or 0 for row in rows]
            found = dict(zip(asked, sampler.logprobs(logits[rows], [tokens[row] for row in rows], most), strict=True))
        left = iter(tokens)
        return [[next(left) for _ in range(_drawn(part))] for part in plan.parts], found

    def _output(self, item: Progress, found: TokenLogprobs | None) -> LmOutput:
        request, finish, error = item.sequence.request, item.finish, ""
        chooser = self._choosers[request.id]
        chooser.took(item.tokens)
        if request.grammar is not None and finish is None:
            end = _confine(chooser, request.grammar, item.tokens)
            if end is not None:
                finish, error = end
                self.scheduler.stop_early(item.sequence)
        scores = self._scores.pop(request.id, None)
        if finish is not None:
            self._forget(request.id)
        logprobs = None if found is None else (found,)
        prompt_logprobs = None if scores is None else scores.result()
        return LmOutput(request.id, item.tokens, finish, logprobs, prompt_logprobs, error)

    def _forget(self, request_id: str) -> None:
        self._choosers.pop(request_id, None)
        self._scores.pop(request_id, None)

    def _learn(self, plan: Plan, seconds: float) -> None:
        prefill = sum(part.prefill for part in plan.parts)
        streams = sum(1 for part in plan.parts if not part.prefill)
        self.speed.observe(prefill, streams, seconds)

    def _report(self, plan: Plan, outputs: Sequence[LmOutput], seconds: float) -> StepReport:
        notices, self._notices = self._notices, []
        self._steps += 1
        scheduler = self.scheduler
        return StepReport(
            number=self._steps,
            shares=tuple([_share(part) for part in plan.parts]),
            outputs=(*notices, *outputs),
            seconds=seconds,
            preempted=tuple(plan.preempted),
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            free_blocks=scheduler.pool.free,
        )


if TYPE_CHECKING:
    _contract: type[StepEngine] = OpenVinoEngine  # the type checker compares them


def _share(part: Part) -> Share:
    return Share(part.sequence.request.id, part.prefill, part.count - part.prefill, part.cached)


def _drawn(part: Part) -> int:
    """How many tokens come of a part: one for each guess and one more."""
    return 1 + len(part.guesses) if part.samples else 0


def _confine(chooser: Chooser, grammar: Grammar, tokens: Sequence[int]) -> tuple[FinishReason, str] | None:
    """Takes new tokens into the grammar and asks what may follow. Not None where the output ends: how, and what failed."""
    try:
        for token in tokens:
            grammar.advance(token)
        allowed = grammar.allowed()
    except Exception as error:  # noqa: BLE001 - a grammar that breaks ends its own request and no other
        return "failed", f"the grammar of the output failed: {type(error).__name__}: {error}"
    chooser.allowed = None if allowed is None else np.asarray(allowed, np.int64)
    return ("stop", "") if allowed is not None and not len(allowed) else None
