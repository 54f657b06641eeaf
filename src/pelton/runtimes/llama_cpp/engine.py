"""llama.cpp as a step engine: its streams run by themselves; a step waits for what they say and reports it.

    waiting -> a free slot -> exchange with the server -> chunks -> one report for what came at once

Which slot a request gets, and whether it may use what lies there, is decided here: llama.cpp alone would share the
beginnings of prompts between all callers.
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pelton.errors import PeltonError
from pelton.runtimes.llama_cpp.ask import UNKNOWN, PrefixCache, body, by_token, common, may_share
from pelton.runtimes.llama_cpp.exchange import Chunk, Exchange, Probability, Refused
from pelton.runtimes.llama_cpp.library import Library
from pelton.runtimes.step_engine import FinishReason, LmOutput, LmRequest, Share, StepReport, TokenLogprobs

TOGETHER: Final = 0.002  # seconds that a report waits for the other streams of the same step of llama.cpp
LONGEST_WAIT: Final = 1.0  # seconds of a step in which nothing happens
_LOST: Final = TokenLogprobs(UNKNOWN, ())


@dataclass(slots=True, eq=False)
class Stream:
    """A request that runs."""

    request: LmRequest
    slot: int
    exchange: Exchange | None = None
    made: list[int] = field(default_factory=list)
    begun: int = 0  # tokens that were made before the exchange
    heard: int = 0  # tokens of the exchange that were taken
    computed: int = 0  # positions of the prompt, cached ones included
    asked: int = 0  # tokens of a whole answer; 0: it is a stream
    told: bool = False  # `cached_tokens` were reported
    # of the step that runs now
    prefill: int = 0
    cached: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: FinishReason | None = None
    error: str = ""


@dataclass(slots=True, eq=False)
class Slot:
    """What llama.cpp keeps for one stream. `salt` is None while it is empty."""

    salt: str | None = None
    tokens: tuple[int, ...] = ()
    stream: Stream | None = None
    used: int = 0  # number of the last request in it


class LlamaEngine:
    """A step engine (`pelton.runtimes.step_engine.StepEngine`). First come, first served within a priority."""

    def __init__(self, library: Library, streams: int, context: int, kv_tokens: int, prefix_cache: PrefixCache) -> None:
        self.context, self.kv_tokens = context, kv_tokens
        self._library = library  # lives as long as the engine
        self._place = library.place
        self._mode = prefix_cache
        self._slots = [Slot() for _ in range(streams)]
        self._waiting: list[tuple[int, int, LmRequest]] = []
        self._streams: dict[str, Stream] = {}
        self._ids: set[str] = set()
        self._notices: list[LmOutput] = []
        self._arrivals = 0
        self._steps = 0
        self._since = 0.0  # when the time of the next report begins
        self._poll = select.poll()
        self._files: dict[int, Stream] = {}

    # ---- the contract

    def interrupt(self, fds: Sequence[int]) -> None:
        """A step ends early when one of these files becomes readable."""
        for fd in fds:
            self._poll.register(fd, select.POLLIN)

    def add(self, request: LmRequest) -> None:
        total = len(request.prompt) + request.max_tokens
        if request.id in self._ids:
            raise ValueError(f"request {request.id!r} is here already: ids must be unique")
        if total > min(self.context, self.kv_tokens):
            raise ValueError(
                f"request {request.id!r} needs {total} tokens of context, the engine allows "
                f"{min(self.context, self.kv_tokens)}: send a shorter prompt or ask for fewer tokens"
            )
        if request.prompt_logprobs:
            raise ValueError(f"request {request.id!r}: llama.cpp cannot tell the logprobs of a prompt")
        self._ids.add(request.id)
        self._arrivals += 1
        heapq.heappush(self._waiting, (request.priority, self._arrivals, request))

    def cancel(self, request_id: str) -> bool:
        if request_id not in self._ids:
            return False
        self._ids.discard(request_id)
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            self._leave(stream)
        else:
            self._waiting = [entry for entry in self._waiting if entry[2].id != request_id]
            heapq.heapify(self._waiting)
        self._notices.append(LmOutput(request_id, (), "cancelled"))
        return True

    def has_work(self) -> bool:
        return bool(self._ids or self._notices)

    def step(self) -> StepReport:
        if not self._streams:
            self._since = time.perf_counter()
        self._start_waiting()
        if self._streams and not self._notices:
            self._listen()
        now = time.perf_counter()
        shares, outputs = self._told()
        seconds = 0.0
        if shares:  # else this time belongs to the next report that has some
            seconds, self._since = now - self._since, now
        self._steps += 1
        return StepReport(
            number=self._steps,
            shares=shares,
            outputs=outputs,
            seconds=seconds,
            preempted=(),
            waiting=len(self._waiting),
            running=len(self._streams),
            free_blocks=max(0, self.kv_tokens - self._reserved()),
        )

    # ---- requests into slots

    def _reserved(self) -> int:
        return sum(len(s.request.prompt) + s.request.max_tokens for s in self._streams.values())

    def _start_waiting(self) -> None:
        while self._waiting:
            request = self._waiting[0][2]
            free = [number for number, slot in enumerate(self._slots) if slot.stream is None]
            if not free or self._reserved() + len(request.prompt) + request.max_tokens > self.kv_tokens:
                return
            heapq.heappop(self._waiting)
            number = max(free, key=lambda known: self._fit(self._slots[known], request))
            stream = Stream(request, number)
            slot = self._slots[number]
            slot.stream, slot.used = stream, self._arrivals
            self._streams[request.id] = stream
            self._ask(stream)

    def _fit(self, slot: Slot, request: LmRequest) -> tuple[int, bool, int]:
        """The longest beginning that may be shared; else an empty slot; else the one that was used longest ago."""
        shared = common(slot.tokens, request.prompt) if may_share(self._mode, slot.salt, request.salt) else 0
        return shared, slot.salt is None, -slot.used

    def _ask(self, stream: Stream, whole: int = 0) -> None:
        """Begins, or goes on, with a request of its own to llama.cpp."""
        slot, request = self._slots[stream.slot], stream.request
        cached = may_share(self._mode, slot.salt, request.salt) or bool(stream.made)
        stream.begun, stream.heard, stream.asked = (
            len(stream.made),
            0,
            whole or (1 if by_token(request.sampling) else 0),
        )
        slot.salt = request.salt
        slot.tokens = (*request.prompt, *stream.made)
        try:
            exchange = Exchange(
                self._place.path,
                self._place.key,
                body(request, stream.made, stream.slot, cached, stream.asked),
            )
        except Refused as error:
            self._fail(stream, str(error))
            return
        stream.exchange = exchange
        self._files[exchange.fileno()] = stream
        self._poll.register(exchange.fileno(), select.POLLIN)

    def _hang_up(self, stream: Stream) -> None:
        exchange, stream.exchange = stream.exchange, None
        if exchange is not None:
            fd = next((fd for fd, known in self._files.items() if known is stream), -1)
            if fd >= 0:
                del self._files[fd]
                self._poll.unregister(fd)
            exchange.close()

    def _leave(self, stream: Stream) -> None:
        """Frees the slot. What llama.cpp still computes for a request that was hung up ends with its next token."""
        self._hang_up(stream)
        slot = self._slots[stream.slot]
        slot.tokens = (*stream.request.prompt, *stream.made)
        slot.stream = None

    def _fail(self, stream: Stream, error: str) -> None:
        stream.finish, stream.error = "failed", error
        self._hang_up(stream)
        self._slots[stream.slot].salt = None

    # ---- what the streams say

    def _listen(self) -> None:
        """Until something was said; then for what belongs to the same step of llama.cpp."""
        wait, begin = LONGEST_WAIT, time.perf_counter()
        silent = set(self._files)
        while silent:
            ready = [fd for fd, _ in self._poll.poll(wait * 1000)]
            if not ready:
                return
            for fd in ready:
                stream = self._files.get(fd)
                if stream is not None:
                    self._read(stream)
            if not silent.issuperset(ready):
                return  # an order came, or a stream says its second word
            silent.difference_update(ready)
            if wait == LONGEST_WAIT:
                begin = time.perf_counter()
            wait = TOGETHER - (time.perf_counter() - begin)
            if wait <= 0:
                return

    def _read(self, stream: Stream) -> None:
        exchange = stream.exchange
        assert exchange is not None
        fd = exchange.fileno()
        try:
            for chunk in exchange.read():
                if stream.finish is None:
                    self._take(stream, chunk)
            if exchange.ended and stream.exchange is exchange and stream.finish is None:
                self._fail(stream, "llama.cpp ended the stream without a reason")
        except Refused as error:
            self._fail(stream, str(error))
        if exchange.ended and stream.exchange is exchange and self._files.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _take(self, stream: Stream, chunk: Chunk) -> None:
        if chunk.prompt_progress is not None:
            self._take_progress(stream, chunk.prompt_progress.cache, chunk.prompt_progress.processed)
            return
        fresh = chunk.tokens_predicted - stream.heard
        if stream.asked:
            self._take_whole(stream, chunk)
        elif fresh > 0 and not chunk.stop:
            stream.heard = chunk.tokens_predicted
            self._take_tokens(stream, self._restored(chunk, fresh), chunk.completion_probabilities)
        elif chunk.stop and stream.finish is None:
            self._take_end(stream, chunk, fresh)

    def _take_progress(self, stream: Stream, cache: int, processed: int) -> None:
        if stream.made:
            return  # of a continued request: its prompt was counted
        if not stream.told:
            stream.told = True
            stream.computed = stream.cached = cache
        stream.prefill += max(0, processed - stream.computed)
        stream.computed = max(stream.computed, processed)

    def _restored(self, chunk: Chunk, fresh: int) -> list[int]:
        """llama.cpp holds back tokens that end within a character and tells the id of the last one only: the others
        are found by their text."""
        if fresh == 1:
            return chunk.tokens[-1:]
        asked = {"content": chunk.content, "add_special": False, "parse_special": False}
        try:
            tokens = Exchange(self._place.path, self._place.key, asked, "/tokenize").whole().tokens
        except Refused:
            tokens = []
        return tokens or chunk.tokens[-1:]

    def _take_tokens(self, stream: Stream, tokens: list[int], known: list[Probability]) -> None:
        """New tokens, in order; ends the request where one of them does."""
        request = stream.request
        entries = {entry.id: entry for entry in known}
        for token in tokens:
            if not self._follows(stream, token):
                return
            stream.made.append(token)
            stream.tokens.append(token)
            if request.sampling.logprobs is not None:
                stream.logprobs.append(_logprobs(entries.get(token), request.sampling.logprobs))
            if token in request.stop_tokens:
                stream.finish = "stop"
            elif len(stream.made) >= request.max_tokens:
                stream.finish = "length"
            if stream.finish is not None:
                self._hang_up(stream)
                return

    def _follows(self, stream: Stream, token: int) -> bool:
        """Follows the grammar, where there is one: llama.cpp drops a grammar without a word when it fails."""
        grammar = stream.request.grammar
        if grammar is None or token in stream.request.stop_tokens:
            return True
        try:
            grammar.advance(token)
        except PeltonError as error:
            self._fail(stream, str(error))
            return False
        return True

    def _take_whole(self, stream: Stream, chunk: Chunk) -> None:
        if not stream.told and chunk.timings is not None:
            self._take_progress(stream, chunk.timings.cache_n, chunk.timings.cache_n + chunk.timings.prompt_n)
        self._take_tokens(stream, chunk.tokens, chunk.completion_probabilities)
        if stream.finish is None:
            self._go_on(stream, chunk)

    def _take_end(self, stream: Stream, chunk: Chunk, fresh: int) -> None:
        """llama.cpp has ended a stream whose own end was not seen."""
        if fresh > 0:  # within a character: these tokens have no text yet, and no ids were told
            self._hang_up(stream)
            self._ask(stream, whole=min(fresh, stream.request.max_tokens - len(stream.made)))
        else:
            self._go_on(stream, chunk)

    def _go_on(self, stream: Stream, chunk: Chunk) -> None:
        """An end that is none of this request's: a token that ends texts but not this one, or a part of the answer."""
        self._hang_up(stream)
        if stream.request.grammar is not None and chunk.stop_type == "eos":
            stream.finish = "stop"
        elif len(stream.made) > stream.begun:
            self._ask(stream)
        else:
            self._fail(stream, f"llama.cpp ended the stream without a token ({chunk.stop_type or 'no reason'})")

    # ---- the report

    def _told(self) -> tuple[tuple[Share, ...], tuple[LmOutput, ...]]:
        outputs, self._notices = self._notices, []
        shares = []
        for stream in list(self._streams.values()):
            request_id = stream.request.id
            if stream.prefill or stream.tokens or stream.cached:
                first = bool(stream.tokens) and len(stream.tokens) == len(stream.made)
                decode = len(stream.tokens) - (1 if first else 0)  # the first comes from the prompt's last position
                shares.append(Share(request_id, stream.prefill, decode, stream.cached))
            if stream.tokens or stream.finish is not None:
                wanted = stream.request.sampling.logprobs is not None
                outputs.append(
                    LmOutput(
                        request_id,
                        tuple(stream.tokens),
                        stream.finish,
                        tuple(stream.logprobs) if wanted else None,
                        error=stream.error,
                    )
                )
            stream.prefill = stream.cached = 0
            stream.tokens, stream.logprobs = [], []
            if stream.finish is not None:
                del self._streams[request_id]
                self._ids.discard(request_id)
                self._leave(stream)
        return tuple(shares), tuple(outputs)


def _logprobs(entry: Probability | None, count: int) -> TokenLogprobs:
    if entry is None:
        return _LOST
    return TokenLogprobs(entry.logprob, tuple((top.id, top.logprob) for top in entry.top_logprobs[:count]))
