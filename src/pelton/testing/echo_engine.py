"""A language-model engine without weights: it continues a prompt by saying it again, from its first token.

The prompt 5 6 7 is continued with 5 6 7 5 6 7 ... Times, failures and crashes are what `engine_options` say, so that
everything above an engine can be tested in milliseconds, in a real engine process:

    [options]
    engine = "echo"
    streams = 4
    engine_options = { seconds = 0.01, exit_token = 13 }
"""

from __future__ import annotations

import math
import os
import random
import re
import resource
import signal
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from pelton.runtimes.engine_process.order import Built, EngineOrder
from pelton.runtimes.language import Facts, Speed
from pelton.runtimes.step_engine import (
    FinishReason,
    Grammar,
    LmOutput,
    LmRequest,
    Share,
    StepReport,
    TokenLogprobs,
)

BLOCK = 16  # tokens; prompts share whole blocks
CACHED_BLOCKS = 65536
MEMORY = 1 << 32  # bytes of address space: more than a process needs, less than it asks for then
FORCED = 50.0  # a bias of this much or more decides; as much below zero forbids


class EchoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`seconds`: of each step, really slept, plus `token_seconds` for each position computed. `prefill_tokens`: of a step,
    shared by all prompts. A prompt with one of the tokens `..._token` in it makes its first step raise, end the process
    (exit code 3), kill it (SIGKILL), hang for ever, hang without ever giving the interpreter's lock back, or use up all
    memory that it may have (a limit of `MEMORY` is set first). `load_seconds`: before it is ready. `load_error`: what
    loading raises.
    """

    seconds: float = 0.0
    token_seconds: float = 0.0
    prefill_tokens: int = 2048
    vocabulary: int = 0  # token ids must be below; 0: any
    raise_token: int = -1
    exit_token: int = -1
    kill_token: int = -1
    hang_token: int = -1
    seize_token: int = -1
    memory_token: int = -1
    refuse_token: int = -1  # `add` raises ValueError
    load_seconds: float = 0.0
    load_error: str = ""
    load_exit: bool = False  # the process ends while it is loading (exit code 5)


@dataclass(slots=True, eq=False)
class _Stream:
    request: LmRequest
    computed: int = 0  # positions of the prompt
    made: list[int] = field(default_factory=list)


class EchoEngine:
    """A step engine (`pelton.runtimes.step_engine.StepEngine`). First come, first served; `sleep` is passed in."""

    def __init__(
        self,
        options: EchoOptions | None = None,
        streams: int = 16,
        context: int = 8192,
        sleep: Callable[[float], None] = time.sleep,
        share_prefixes: bool = True,
    ) -> None:
        self.options = options or EchoOptions()
        self.streams, self.context = streams, context
        self._sleep = sleep
        self._share = share_prefixes
        self._waiting: deque[_Stream] = deque()
        self._running: list[_Stream] = []
        self._ids: set[str] = set()
        self._notices: list[LmOutput] = []
        self._blocks: OrderedDict[int, None] = OrderedDict()  # hashes of (salt, prompt up to the block's end)
        self._steps = 0

    def add(self, request: LmRequest) -> None:
        if request.id in self._ids:
            raise ValueError(f"request {request.id!r} is here already: ids must be unique")
        total = len(request.prompt) + request.max_tokens
        if total > self.context:
            raise ValueError(f"request {request.id!r} needs {total} tokens of context, the engine has {self.context}")
        limit = self.options.vocabulary
        if limit and not all(0 <= token < limit for token in request.prompt):
            raise ValueError(f"request {request.id!r} holds a token outside 0..{limit - 1}")
        if self.options.refuse_token in request.prompt:
            raise ValueError(f"request {request.id!r} holds the token {self.options.refuse_token}, which is refused")
        self._ids.add(request.id)
        self._waiting.append(_Stream(request))

    def cancel(self, request_id: str) -> bool:
        if request_id not in self._ids:
            return False
        self._ids.discard(request_id)
        self._running = [stream for stream in self._running if stream.request.id != request_id]
        self._waiting = deque(stream for stream in self._waiting if stream.request.id != request_id)
        self._notices.append(LmOutput(request_id, (), "cancelled"))
        return True

    def has_work(self) -> bool:
        return bool(self._waiting or self._running or self._notices)

    def step(self) -> StepReport:
        begin = time.perf_counter()
        outputs, self._notices = self._notices, []
        shares: list[Share] = []
        budget = self.options.prefill_tokens
        while self._waiting and len(self._running) < self.streams:
            self._running.append(self._waiting.popleft())
        for stream in list(self._running):
            share, output = self._advance(stream, budget)
            budget -= share.prefill_tokens
            if share.prefill_tokens or share.decode_tokens:
                shares.append(share)
            if output is not None:
                outputs.append(output)
            if output is not None and output.finish_reason is not None:
                self._running.remove(stream)
                self._ids.discard(output.request_id)
        positions = sum(share.prefill_tokens + share.decode_tokens for share in shares)
        seconds = (self.options.seconds + self.options.token_seconds * positions) if shares else 0.0
        if seconds > 0:
            self._sleep(seconds)
        self._steps += 1
        return StepReport(
            number=self._steps,
            shares=tuple(shares),
            outputs=tuple(outputs),
            seconds=seconds or time.perf_counter() - begin,
            preempted=(),
            waiting=len(self._waiting),
            running=len(self._running),
            free_blocks=(self.streams - len(self._running)) * self.context // BLOCK,
        )

    def _advance(self, stream: _Stream, budget: int) -> tuple[Share, LmOutput | None]:
        """One stream's part in one step: a piece of its prompt, with its end the first token, then a token each."""
        request = stream.request
        cached = 0
        if not stream.computed:
            self._misbehave(request.prompt)
            cached = stream.computed = self._cached(request)
        prefill = min(len(request.prompt) - stream.computed, budget) if not stream.made else 0
        stream.computed += prefill
        if stream.computed < len(request.prompt):
            return Share(request.id, prefill, 0, cached), None
        output = self._output(stream)
        return Share(request.id, prefill, 0 if prefill else 1, cached), output

    def _output(self, stream: _Stream) -> LmOutput:
        request = stream.request
        token = self._choose(stream)
        if token is None:
            return LmOutput(request.id, (), "stop")
        stream.made.append(token)
        reason: FinishReason | None = None
        if token in request.stop_tokens or _complete(request.grammar):
            reason = "stop"
        elif len(stream.made) >= request.max_tokens:
            reason = "length"
        count = request.sampling.logprobs
        prompt_logprobs = None
        if request.prompt_logprobs and len(stream.made) == 1:
            prompt_logprobs = (None, *(logprobs(known, count or 0) for known in request.prompt[1:]))
        return LmOutput(
            request_id=request.id,
            tokens=(token,),
            finish_reason=reason,
            logprobs=None if count is None else (logprobs(token, count),),
            prompt_logprobs=prompt_logprobs,
        )

    def _choose(self, stream: _Stream) -> int | None:
        """The next token of the echo, but what bias, temperature and grammar say comes first. None: the end."""
        request, place = stream.request, len(stream.made)
        bias = dict(request.sampling.bias)
        token = request.prompt[place % len(request.prompt)]
        if not request.sampling.greedy:  # the same seed gives the same
            token = random.Random(f"{request.sampling.seed}/{place}").choice(request.prompt)  # noqa: S311
        if bias and max(bias.values()) >= FORCED:
            token = max(bias, key=lambda known: bias[known])
        elif bias.get(token, 0.0) <= -FORCED:
            token = next((known for known in request.prompt if bias.get(known, 0.0) > -FORCED), token)
        if request.grammar is not None:
            allowed = request.grammar.allowed()
            if allowed is not None and token not in allowed:
                if not len(allowed):
                    return None
                token = allowed[0]
            request.grammar.advance(token)
        return token

    def _cached(self, request: LmRequest) -> int:
        """How much of the prompt this salt has sent before, without its last token; remembers the prompt."""
        if not self._share:
            return 0
        found, digest, all_so_far = 0, hash(request.salt), True
        for end in range(BLOCK, len(request.prompt), BLOCK):
            digest = hash((digest, request.prompt[end - BLOCK : end]))
            all_so_far = all_so_far and digest in self._blocks
            found = end if all_so_far else found
            self._blocks[digest] = None
            self._blocks.move_to_end(digest)
        while len(self._blocks) > CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        return found

    def _misbehave(self, prompt: tuple[int, ...]) -> None:
        options = self.options
        if options.raise_token in prompt:
            raise RuntimeError(f"token {options.raise_token} makes this engine raise")
        if options.exit_token in prompt:
            print(f"token {options.exit_token} makes this engine exit", flush=True)
            os._exit(3)
        if options.kill_token in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if options.hang_token in prompt:
            while True:
                self._sleep(3600.0)
        if options.seize_token in prompt:
            re.match("(a+)+$", "a" * 64 + "b")  # takes 2^64 steps
        if options.memory_token in prompt:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            self._blocks[0] = bytearray(2 * MEMORY)  # type: ignore[assignment]


def _complete(grammar: Grammar | None) -> bool:
    allowed = None if grammar is None else grammar.allowed()
    return allowed is not None and len(allowed) == 0


def logprobs(token: int, count: int) -> TokenLogprobs:
    """Fabricated: the chosen token has a half, each of the others half of the one before."""
    others = [known for known in range(count + 1) if known != token]
    top = [token, *others][:count]
    return TokenLogprobs(-math.log(2), tuple((known, -math.log(2) * (place + 1)) for place, known in enumerate(top)))


def build(order: EngineOrder) -> Built:
    """The engine `echo` of `pelton.toml`."""
    options = order.own(EchoOptions)
    if options.load_seconds:
        time.sleep(options.load_seconds)
    if options.load_exit:
        print("loading makes this engine exit", flush=True)
        os._exit(5)
    if options.load_error:
        raise RuntimeError(options.load_error)
    streams, context = order.options.streams or 16, order.options.context or 8192
    engine = EchoEngine(options, streams, context, share_prefixes=order.options.prefix_cache != "off")
    step = options.seconds + options.token_seconds
    speed = Speed(
        prefill=options.prefill_tokens / max(options.seconds + options.token_seconds * options.prefill_tokens, 1e-4),
        decode={count: max(options.seconds + options.token_seconds * count, 1e-5) for count in {1, streams}},
    )
    facts = Facts(
        engine="echo",
        context=context,
        streams=streams,
        kv_tokens=streams * context,
        speed=speed,
        why=f"echo: a step takes {step:g} s",
        fair=False,
    )
    return Built(engine, facts)
