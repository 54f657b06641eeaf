"""The generations of one request: started together, heard as text, hung up the moment nobody wants them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pelton.engine import Engine, Served
from pelton.engine.generation import Generation
from pelton.errors import PeltonError
from pelton.language import Language, TextStream
from pelton.runtimes.step_engine import LmOutput, TokenLogprobs
from pelton.server.openai.caller import Caller
from pelton.server.openai.plan import Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Logged:
    """A token of the output and its probabilities. `start` and `end`: its bytes, counted from the output's first."""

    token: int
    start: int
    end: int
    logprobs: TokenLogprobs


class Listener(Protocol):
    """The protocol's part of a run. Called on the event loop; after `complete` or `failed` nothing comes any more."""

    def piece(self, choice: Choice, text: str, logged: Sequence[Logged]) -> None:
        """More of a choice's text, with the tokens that are whole in it. Either may be empty, not both."""

    def ended(self, choice: Choice) -> None:
        """`choice.finish_reason` is set."""

    def complete(self) -> None:
        """All choices have ended."""

    def failed(self, error: PeltonError) -> None:
        """One choice failed, so all did."""


class Choice:
    """One continuation of one prompt."""

    __slots__ = (
        "_bytes_in", "_bytes_out", "_held", "_reason", "_run", "_slack", "_stream", "completion_tokens", "finish_reason", "generation",
        "index", "prompt_logprobs", "stop_string",
    )  # fmt: skip

    def __init__(self, run: Run, index: int, prompt: tuple[int, ...]) -> None:
        plan, caller = run.plan, run.caller
        self._run = run
        tokenizer = run.language.tokenizer
        self._stream = TextStream(tokenizer, plan.stops, plan.include_stop, show=plan.show, start=plan.begins)
        self._slack = int(plan.begins and tokenizer.leading_space)  # bytes that the text may lack at its start
        self._held: list[Logged] = []  # tokens whose text is not certain yet
        self._bytes_in = self._bytes_out = 0
        self.index = index
        self.completion_tokens = 0
        self.finish_reason = ""
        self._reason = ""  # the engine's
        self.stop_string: str | None = None
        self.prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
        self.generation = Generation(
            prompt,
            plan.max_tokens_for(prompt),
            self._heard,
            self._done,
            caller.received,
            plan.sampling_of(index),
            plan.stop_tokens,
            plan.grammar,
            plan.prompt_logprobs,
            tenant=caller.tenant,
            priority=caller.priority,
            timeout=caller.timeout,
            protocol=plan.protocol,
            request_id=caller.request_id if plan.lone else f"{caller.request_id}-{index}",
            trace=caller.trace,
            route=run.route,
            key=run.key,
        )

    def end(self, finish_reason: str) -> None:
        """Enough was said: the engine stops here."""
        if not self.finish_reason:
            self._run.hang_up(self, satisfied=True)
            self._finish(finish_reason)

    # ---- the engine's side

    def _heard(self, output: LmOutput) -> None:
        if self.finish_reason:
            return
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        tokens = output.tokens
        if not tokens:
            return
        self.completion_tokens += len(tokens)
        plan = self._run.plan
        said = tokens
        if output.finish_reason == "stop" and tokens[-1] in plan.stop_tokens:
            said = tokens[:-1]
        if output.logprobs is not None and plan.logprobs is not None:
            self._log(tokens if plan.log_stop_token else said, output.logprobs)
        text = self._stream.push(said)
        if self._stream.stopped is not None:
            self.stop_string = self._stream.stopped
            self._run.hang_up(self, satisfied=True)
            self._tell(text, last=True)
            self._finish("stop")
            return
        if output.finish_reason is not None:
            text += self._stream.finish()
            if self._stream.stopped is not None:
                self.stop_string = self._stream.stopped
            self._reason = "stop" if self.stop_string is not None else str(output.finish_reason)
            self._tell(text, last=True)
        else:
            self._tell(text, last=False)

    def _done(self, error: PeltonError | None) -> None:
        if self.finish_reason:
            return
        if error is not None:
            self._run.fail(error)
            return
        rest = self._stream.finish()
        if rest or self._held:
            self._tell(rest, last=True)
        # a last output without tokens is not told: it was no full one
        self._finish(self._reason or ("length" if self.completion_tokens >= self.generation.max_tokens else "stop"))

    # ---- text

    def _log(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> None:
        tokenizer = self._run.language.tokenizer
        for token, entry in zip(tokens, logprobs, strict=False):
            start = self._bytes_in
            if token not in tokenizer.special_ids:
                self._bytes_in += len(tokenizer.token_bytes(token))
            self._held.append(Logged(token, start, self._bytes_in, entry))

    def _tell(self, text: str, last: bool) -> None:
        held = self._held
        logged: list[Logged] = []
        if held:
            logged = self._certain(text, last)
        if text or logged:
            self._run.listener.piece(self, text, logged)

    def _certain(self, text: str, last: bool) -> list[Logged]:
        """The tokens that go with the text said so far: all, unless a stop string may take some of them back."""
        held, self._held = self._held, []
        if not self._run.plan.stops or (last and self.stop_string is None):
            return held
        self._bytes_out += len(text.encode())
        out = self._bytes_out + self._slack
        for count, entry in enumerate(held):
            if entry.start >= out if last else entry.end > out:
                self._held = [] if last else held[count:]
                return held[:count]
        return held

    def _finish(self, finish_reason: str) -> None:
        if not self.finish_reason:  # the listener may have ended it
            self.finish_reason = finish_reason
            self._run.finished(self)


class Run:
    """All choices of a request. `listener` is told in order; `leave` when the client is gone."""

    def __init__(
        self, engine: Engine, served: Served, language: Language, plan: Plan, caller: Caller, listener: Listener
    ) -> None:
        self.plan = plan
        self.caller = caller
        self.language = language
        self.served = served
        self.listener = listener
        self.route = plan.route
        self.key = plan.key
        self._engine = engine
        self.over = False
        self.choices = [
            Choice(self, number * plan.n + copy, prompt)
            for number, prompt in enumerate(plan.prompts)
            for copy in range(plan.n)
        ]
        self._open = len(self.choices)

    def start(self) -> None:
        """Hands all generations to the engine. What it refuses is told to the listener."""
        for choice in self.choices:
            if self.over:
                return
            try:
                self._engine.generate(self.served, choice.generation)
            except PeltonError as error:
                choice.finish_reason = "failed"
                self.fail(error)

    def leave(self) -> None:
        """The client left, or cannot be told any more: every slot is free at the next step."""
        self.over = True
        for choice in self.choices:
            if not choice.finish_reason:
                choice.finish_reason = "cancelled"
                self.hang_up(choice)

    def fail(self, error: PeltonError) -> None:
        """One choice could not be: the others are of no use."""
        if self.over:
            return
        self.leave()
        self.listener.failed(error)

    def seconds(self) -> float:
        """Since the request came."""
        return self._engine.clock() - self.caller.received

    # ---- for choices

    def hang_up(self, choice: Choice, satisfied: bool = False) -> None:
        choice.generation.satisfied = satisfied
        self._engine.hang_up(self.served, choice.generation)

    def finished(self, choice: Choice) -> None:
        if self.over:
            return
        self.listener.ended(choice)
        self._open -= 1
        if not self._open and not self.over:
            self.over = True
            self.listener.complete()
