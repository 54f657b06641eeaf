"""Rows of texts for a language model: each row is a generation in the lane, the call is answered when all are done.

It stands where other models have their scheduler, so that every protocol and command reaches a language model too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

import numpy as np

from pelton.engine.generation import Generation
from pelton.engine.lane import Lane
from pelton.errors import PeltonError, TooLarge
from pelton.records import TokenUsage
from pelton.replicas.language import DEFAULT_TOKENS, Asked, LanguageReplica
from pelton.runtimes.step_engine import LmOutput
from pelton.scheduling import Batcher, BatchPolicy
from pelton.types import QUEUED, Batch, Call, Outcome

MOST_ROWS: Final = 256  # of one call
UNCUT: Final = 1 << 20  # rows: no call is cut into pieces

Settle = Callable[[Call, Outcome], None]


class Question:
    """One call: its generations, and what they have answered."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.generations: list[Generation] = []
        self.tokens: list[list[int]] = []
        self.left = 0
        self.first = 0.0
        self.over = False


class Prompts:
    """The scheduler of a language model, as dispatcher, engine and fleet know it."""

    def __init__(self, replica: LanguageReplica, lane: Lane, settle: Settle, clock: Callable[[], float]) -> None:
        self.batcher = Batcher(BatchPolicy(), replica.profile())  # nothing ever waits in it
        self.batcher.cap = UNCUT
        self.expected = 0  # callers that have found this version and are still to ask
        self._unexpected: asyncio.Future[None] | None = None
        self._replica = replica
        self._lane = lane
        self._settle = settle
        self._clock = clock
        self._questions: dict[int, Question] = {}  # by id of the call

    @property
    def running(self) -> int:
        return self._lane.running

    def submit(self, call: Call, now: float, returned_after: float = 0.0) -> None:
        """Takes a call on. Raises InvalidInput, TooLarge."""
        texts = call.inputs[0].reshape(-1)
        if len(texts) > MOST_ROWS:
            raise TooLarge(f"one call may have {MOST_ROWS} prompts, this one has {len(texts)}: send several calls")
        asked = [self._replica.asked(bytes(text)) for text in texts]
        question = self._questions[id(call)] = Question(call)
        call.queued, call.state = now, QUEUED
        question.left = len(asked)
        for place, (prompt, most) in enumerate(asked):
            question.tokens.append([])
            question.generations.append(self._generation(question, place, prompt, most))
        for generation in question.generations:
            if question.over:
                break
            self._lane.submit(generation)

    def submit_all(self, calls: list[Call], now: float, returned_after: list[float]) -> bool:
        """Each is asked for alone."""
        return False

    def enqueue(self, call: Call, now: float, returned_after: float = 0.0) -> None:
        """A call is never cut into pieces here."""
        self.submit(call, now, returned_after)

    def admit(self, call: Call, now: float) -> None:
        """The lane admits each generation."""

    def cancel(self, call: Call) -> None:
        """Its caller left."""
        question = self._questions.pop(id(call), None)
        if question is not None:
            self._drop(question)

    def expected_seconds(self, call: Call, now: float) -> float:
        return 0.0

    def behind(self) -> bool:
        return False

    def one_more(self, now: float) -> float:
        return now

    async def drained(self) -> None:
        """Returns when nothing is expected, waits or runs. Called once, when no new callers find this version."""
        if self.expected:
            self._unexpected = self._lane.loop.create_future()
            await self._unexpected
        await self._lane.drained()

    def check_drained(self) -> None:
        """A caller that was expected is here; the lane itself sees when it is done."""
        if self._unexpected is not None and not self.expected and not self._unexpected.done():
            self._unexpected.set_result(None)

    def answer(self, texts: Sequence[bytes], most: int) -> list[bytes]:
        """The texts that follow, without a record: for checks of the model. Called in a thread, and blocks it. Raises what
        went wrong."""
        asked = [self._replica.asked(text, most) for text in texts]
        futures: list[Future[list[int]]] = [Future() for _ in asked]
        for one, future in zip(asked, futures, strict=True):
            self._lane.loop.call_soon_threadsafe(self._ask, one, future)
        return [self._replica.text_of(future.result()) for future in futures]

    def _ask(self, asked: Asked, future: Future[list[int]]) -> None:
        tokens: list[int] = []

        def heard(output: LmOutput) -> None:
            tokens.extend(output.tokens)

        def done(error: PeltonError | None) -> None:
            if error is None:
                future.set_result(tokens)
            else:
                future.set_exception(error)

        self._lane.submit(
            Generation(*asked, heard, done, self._clock(), stop_tokens=self._replica.language.stop_tokens, part=True)
        )

    # ---- one generation per row

    def _generation(self, question: Question, place: int, prompt: tuple[int, ...], most: int) -> Generation:
        call = question.call

        def heard(output: LmOutput) -> None:
            question.tokens[place].extend(output.tokens)

        def done(error: PeltonError | None) -> None:
            self._done(question, error)

        return Generation(
            prompt, min(most, DEFAULT_TOKENS), heard, done, call.received,
            stop_tokens=self._replica.language.stop_tokens, tenant=call.tenant, priority=call.priority,
            timeout=call.deadline - call.received if call.own_deadline else 0.0,
            protocol=call.protocol, request_id=call.request_id, part=True,
        )  # fmt: skip

    def _done(self, question: Question, error: PeltonError | None) -> None:
        question.left -= 1
        if question.over or (error is None and question.left):
            return
        call = question.call
        self._questions.pop(id(call), None)
        if error is None or any(generation.receipt.device for generation in question.generations):
            call.batch = self._batch(question)
        if error is not None:
            self._drop(question)
            self._settle(call, error)
            return
        texts = np.empty(call.rows, object)
        texts[:] = [self._replica.text_of(tokens) for tokens in question.tokens]
        output = texts.reshape(-1, *[1] * len(self._replica.signature.outputs[0].shape))
        self._settle(call, [output if self._replica.signature.batched else output[0]])

    def _drop(self, question: Question) -> None:
        question.over = True
        for generation in question.generations:
            self._lane.hang_up(generation)

    def _batch(self, question: Question) -> Batch:
        call, now = question.call, self._clock()
        receipts = [generation.receipt for generation in question.generations]
        queue = min([receipt.queue for receipt in receipts])
        started = call.received + queue
        usage = TokenUsage(
            sum([one.prompt_tokens for one in receipts]),
            sum([one.cached_tokens for one in receipts]),
            sum([one.completion_tokens for one in receipts]),
            min([one.queue + one.prefill for one in receipts]),
            sum([one.prefill for one in receipts]),
            sum([one.decode for one in receipts]),
            "",
            receipts[0].engine,
            len(receipts),
        )
        return Batch(
            [], call.rows, "generated", started, now, max(0.0, now - started), usage=usage,
            device=sum([one.device for one in receipts]),
        )  # fmt: skip
