"""The lane of one language model: what waits, what its engine has, and what becomes of each generation.

Generations wait in a fair queue and go to the engine when there is a place; the engine's reports come back here. The
caller's part ends exactly once, in `_end`; the account is closed exactly once, in `_close`, when the engine has let go
as well: until then its steps are still paid for. All methods belong to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from pelton.engine.bounds import Bounds, refusal_of
from pelton.engine.company import Company, bearable
from pelton.engine.generation import Generation
from pelton.engine.stream import NEVER, State, Stream
from pelton.errors import Cancelled, DeadlineExceeded, ModelFailed, NotReady, Overloaded, PeltonError
from pelton.runtimes.language import Facts, LanguageEngine
from pelton.runtimes.step_engine import LmOutput, StepReport
from pelton.scheduling.fair_queue import FairQueue, even, shares
from pelton.scheduling.token_admission import Ahead, answer_seconds, first_token_seconds, tokens_left
from pelton.scheduling.token_speed import TokenSpeed

log = logging.getLogger(__name__)

MARGIN: Final = 2  # requests more than places that the engine has: a place that is left is taken in the next step
PATIENCE: Final = 2.0  # times the target: what then still waits for its first step is given up
ITS_OWN_END: Final = frozenset({"stop", "length"})

Close = Callable[[Stream], None]


class Lane:
    """`close` is told of each generation when its account is closed."""

    def __init__(
        self,
        name: str,
        engine: LanguageEngine,
        bounds: Bounds,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        close: Close,
        weight: Callable[[str], float] = even,
    ) -> None:
        self.name = name
        self.away = ""  # why the engine takes nothing now; empty: it does
        self.bounds = bounds
        facts = engine.facts
        self.facts: Facts = facts
        self.speed = TokenSpeed(facts.speed.prefill, facts.speed.decode)
        self.queue: FairQueue[Stream] = FairQueue(weight)
        self.busy_seconds = 0.0  # of all steps
        self._engine = engine
        self.loop = loop
        self._clock = clock
        self._closed = close
        self._streams: dict[Generation, Stream] = {}
        self._sent: dict[str, Stream] = {}  # by the engine's id, until the engine has let go
        self._company = Company()
        self._held: dict[str, int] = {}  # places of each tenant: streams in the engine that are to go on there
        self._alive = 0
        self._reserved = 0  # tokens of KV memory that these may need
        self._number = 0
        self._drained: asyncio.Future[None] | None = None
        engine.attach(loop, self)

    # ---- what it is asked

    @property
    def running(self) -> int:
        """Generations in the engine."""
        return len(self._sent)

    @property
    def waiting(self) -> int:
        return self.queue.count

    @property
    def waiting_tokens(self) -> int:
        """Of prompts."""
        return sum([stream.size for stream in self.queue])

    @property
    def restarts(self) -> int:
        """How often a process of the engine has ended by itself."""
        return self._engine.restarts

    @property
    def kv_used(self) -> float:
        """The share of the KV memory that what runs now fills, 0 to 1; what is only kept for later prompts is free."""
        filled = sum([one.size - one.uncomputed for one in self._sent.values()])
        return min(1.0, filled / self.facts.kv_tokens) if self.facts.kv_tokens else 0.0

    def submit(self, generation: Generation) -> None:
        """Takes a generation on: `generation.done` is called exactly once, perhaps before this returns."""
        stream = Stream(generation)
        self._streams[generation] = stream
        generation.receipt.engine = self.facts.engine
        generation.receipt.prompt_tokens = len(generation.prompt)
        self.queue.enter(stream.tenant)
        now = self._clock()
        try:
            self._admit(stream, now)
        except PeltonError as error:
            self._end(stream, error, now)
            self._close(stream)
            return
        stream.state = State.WAITING
        self.queue.push(stream)
        self._dispatch(now)
        self._arm(stream, now)

    def hang_up(self, generation: Generation) -> None:
        """The caller left, or has enough. Nothing happens where it has its answer already."""
        stream = self._streams.get(generation)
        if stream is not None and not stream.ended:
            if generation.satisfied:
                stream.finish = "stop"
                self.speed.ended(len(stream.tokens))
            self._end(stream, None if generation.satisfied else Cancelled("the caller left"), self._clock(), tell=False)
            self._let_go(stream)

    async def drained(self) -> None:
        """Returns when nothing waits or runs; from then on nothing is taken. Called once."""
        if self._streams:
            self._drained = self.loop.create_future()
            await self._drained
        self.away = self.away or "this version was replaced or unloaded; try again"

    def give_up(self, error: PeltonError) -> None:
        """Ends all that waits and runs with `error`; from then on nothing is taken."""
        now = self._clock()
        self.away = str(error)
        for stream in list(self._streams.values()):
            if not stream.ended:
                self._end(stream, error, now)
                self._let_go(stream)

    # ---- admission

    def _admit(self, stream: Stream, now: float) -> None:
        generation, facts = stream.generation, self.facts
        error = refusal_of(generation, facts, self.name)
        if error is not None:
            raise error
        if self.away:
            raise NotReady(f"model {self.name!r} cannot answer now: {self.away}")
        mine = [one for one in self.queue if one.tenant == stream.tenant]
        full = self.bounds.full(stream.size, mine, list(self.queue))
        if full:
            raise Overloaded(f"{full}; try again", retry_after=self.speed.step(facts.streams) * 8)
        if not self._sent and not self.queue.count:
            return  # nobody is before it: it is tried, whatever is believed of it
        ahead = self._ahead(stream)
        waited = now - generation.received
        first = waited + first_token_seconds(ahead, stream.size, self.speed)
        target = self.bounds.first_token(stream.size, self.speed)
        if first > target:
            raise Overloaded(
                f"the queue of this model is full: a first token would take {first:.1f} s, its target is {target:.1f} s",
                retry_after=min(max(first - target, 0.1), 60.0),
            )
        finish = answer_seconds(first, generation.max_tokens, ahead.streams, self.speed)
        if generation.timeout and finish > generation.timeout:
            raise Overloaded(
                f"an answer would take {finish:.1f} s, the call's own deadline is {generation.timeout:.1f} s",
                retry_after=min(max(finish - generation.timeout, 0.1), 60.0),
            )

    def _ahead(self, stream: Stream) -> Ahead:
        tenant, usual = stream.tenant, self.speed.length
        before = self.queue.ahead(tenant, stream.priority)
        running = [one for one in self._sent.values() if one.state is State.SENT]
        places = self._usable([*running, *before, stream])
        share = self._shares(tenant, places)[tenant]
        alone = share >= 1.0  # it has places of its own, whatever the others do
        mine = [one for one in before if not alone or one.tenant == tenant or one.priority > stream.priority]
        rivals = [one for one in running if not alone or one.tenant == tenant]
        begun = [one for one in rivals if one.computed]
        mine = [*(one for one in rivals if not one.computed), *mine]  # the engine has them, and no place for them yet
        return Ahead(
            prefill=sum([one.uncomputed for one in running]) + sum([one.size for one in before]),
            streams=min(len(running), places),
            free=(int(share) if alone else places) - len(begun),
            waiting=[tokens_left(len(one.tokens), one.generation.max_tokens, usual) for one in mine],
            left=[tokens_left(len(one.tokens), one.generation.max_tokens, usual) for one in begun],
        )

    def _usable(self, streams: Sequence[Stream]) -> int:
        """How many of `streams` run at once, as places and memory go."""
        places, memory = self._places(), self.facts.kv_tokens
        if not memory:
            return places
        if self.facts.fair:
            usual = self.speed.length
            need = sum([one.size + tokens_left(len(one.tokens), one.generation.max_tokens, usual) for one in streams])
        else:
            need = float(sum([one.most for one in streams]))
        return max(1, min(places, int(memory * len(streams) / max(need, 1.0))))

    # ---- to the engine

    def _places(self) -> int:
        """How many streams run at once, but for tenants below their share."""
        places = self._room()
        if self.facts.fair:
            return places
        return bearable(places, self._company.wanted(self._wanted(), self._clock()), self.speed)

    def _room(self) -> int:
        return self.bounds.places(self.facts.streams, self.speed)

    def _wanted(self) -> dict[str, int]:
        """How many streams of each tenant wait or run."""
        wanted = self.queue.tenants()
        for tenant, held in self._held.items():
            wanted[tenant] = wanted.get(tenant, 0) + held
        return wanted

    def _shares(self, newcomer: str | None = None, places: int = 0) -> dict[str, float]:
        """How many places (0: of all) each tenant may hold, of those that want any."""
        wanted = self._wanted()
        if newcomer is not None:
            wanted[newcomer] = wanted.get(newcomer, 0) + 1
        return shares(wanted, places or self._places(), self.queue.weight)

    def _dispatch(self, now: float) -> None:
        """Gives the engine what it has places for; a tenant below its share gets one of a tenant above its own."""
        if self.away or not self.queue.count:
            return
        usable = self._usable([*self._sent.values(), *self.queue]) if self.facts.kv_tokens else 0
        places, room, parts, held = self._places(), self._room(), self._shares(places=usable), self._held

        def below(stream: Stream) -> bool:
            return held.get(stream.tenant, 0) + 1 <= parts.get(stream.tenant, 0.0)

        def urgent(stream: Stream) -> bool:
            return below(stream) and stream.deadline < now + self.bounds.urgency

        while self.queue.count:
            beyond = places == room and self._unbegun() < MARGIN  # a few that the engine has ready

            def goes(stream: Stream, beyond: bool = beyond) -> bool:
                return beyond or self._fits(stream, room if below(stream) else places)

            def goes_first(stream: Stream, beyond: bool = beyond) -> bool:
                return below(stream) and goes(stream, beyond)

            stream = self.queue.pop(goes_first, urgent) or self.queue.pop(goes, urgent)
            if stream is None:
                if self._alive >= 2 * room + MARGIN:
                    return
                stream = self.queue.pop(below, urgent)
                if stream is None:
                    return
            if not self.facts.fair and below(stream):
                self._make_room(stream, room, parts)
            self._send(stream)

    def _unbegun(self) -> int:
        """Streams that the engine has and has not begun."""
        return sum([1 for one in self._sent.values() if one.state is State.SENT and not one.computed])

    def _fits(self, stream: Stream, places: int) -> bool:
        """Whether the engine would begin it at once. One that shares its steps finds memory itself."""
        if self._alive >= places:
            return False
        memory = self.facts.kv_tokens
        return self.facts.fair or not memory or self._reserved + stream.most <= memory

    def _make_room(self, stream: Stream, places: int, parts: dict[str, float]) -> None:
        """The engine takes requests as they come: the youngest of tenants that hold more than their share go back."""
        while not self._fits(stream, places):
            over = {other: held - parts.get(other, 0.0) for other, held in self._held.items() if other != stream.tenant}
            victims = [
                one
                for one in self._sent.values()
                if one.state is State.SENT and one.movable and over.get(one.tenant, 0.0) > 0.0
            ]
            if not victims:
                return
            victim = max(victims, key=lambda one: (over[one.tenant], one.generation.received))
            victim.state = State.RETURNING
            self._hold(victim, -1)
            self._engine.cancel(victim.engine_id)

    def _send(self, stream: Stream) -> None:
        self._number += 1
        stream.sent(f"{self._number:x}")
        if stream.runs == 1:
            self.queue.charge(stream.tenant, stream.size, 0)
        self._sent[stream.engine_id] = stream
        self._hold(stream, 1)
        self._engine.add(stream.order(stream.engine_id, self.queue.weight(stream.tenant)))
        if stream.timer is not None and stream.deadline == NEVER:
            stream.timer.cancel()
            stream.timer = None

    def _hold(self, stream: Stream, change: int) -> None:
        """It takes a place, or gives it up."""
        self._alive += change
        self._reserved += change * stream.most
        held = self._held.get(stream.tenant, 0) + change
        if held:
            self._held[stream.tenant] = held
        else:
            del self._held[stream.tenant]

    # ---- what the engine reports

    def reported(self, report: StepReport) -> None:
        """A step was done."""
        now = self._clock()
        self._account(report, now - report.seconds)
        ended = False
        for output in report.outputs:
            stream = self._sent.get(output.request_id)
            if stream is not None:
                self._output(stream, output, now)
                ended = ended or output.finish_reason is not None
        if ended:
            self._dispatch(now)

    def lost(self, reason: str) -> None:
        """The engine's process ended with all that it had. What waits, waits on."""
        now = self._clock()
        self.away = f"the engine ended ({reason}) and is started again"
        log.error("model %s: %s; %d generations fail", self.name, self.away, len(self._sent))
        gone, self._sent = list(self._sent.values()), {}
        for stream in gone:
            if stream.state is State.SENT:
                self._hold(stream, -1)
            returning = stream.state is State.RETURNING
            stream.state = State.OUT
            if returning:
                self._wait_again(stream)
                continue
            if not stream.ended:
                self._end(stream, ModelFailed(f"model {self.name!r}: {self.away}"), now)
            self._close(stream)

    def back(self, facts: Facts) -> None:
        """The process runs again."""
        self.facts = facts
        self.away = ""
        log.info("model %s: the engine runs again", self.name)
        self._dispatch(self._clock())

    def _account(self, report: StepReport, began: float) -> None:
        """Shares a step's seconds among those who took part: together they are exactly the step's."""
        self.busy_seconds += report.seconds
        if not report.shares:
            return
        prefill, decode = report.prefill_tokens, report.decode_tokens
        streams = sum([1 for share in report.shares if share.decode_tokens])
        of_prefill, of_decode = self.speed.split(prefill, decode, streams, report.seconds)
        self.speed.observe(prefill, streams, report.seconds)
        for share in report.shares:
            stream = self._sent.get(share.request_id)
            if stream is None:
                continue
            device = share.prefill_tokens * of_prefill + share.decode_tokens * of_decode
            saved = stream.took_part(share, began, device)
            self.queue.charge(stream.tenant, -saved, share.decode_tokens)

    def _output(self, stream: Stream, output: LmOutput, now: float) -> None:
        reason = output.finish_reason
        if reason is not None:
            del self._sent[stream.engine_id]
            if stream.state is State.SENT:
                self._hold(stream, -1)
            state, stream.state = stream.state, State.OUT
        if not stream.ended:
            stream.got(output, now)
            if reason in ITS_OWN_END:
                stream.finish = reason or ""
            if output.tokens or output.logprobs or output.prompt_logprobs is not None or reason in ITS_OWN_END:
                self._heard(stream, output)
        if reason is None:
            return
        if reason == "cancelled" and state is State.RETURNING and not stream.ended:
            self._wait_again(stream)
            return
        if not stream.ended:
            if reason in ITS_OWN_END:
                self.speed.ended(len(stream.tokens))
            self._end(stream, self._error_of(output), now)
        self._close(stream)

    def _heard(self, stream: Stream, output: LmOutput) -> None:
        try:
            stream.generation.heard(output)
        except Exception:
            log.exception("model %s: handing tokens on failed (request %s)", self.name, stream.generation.request_id)
            if not stream.ended:
                self._end(stream, ModelFailed("internal error; the log of the server has the details"), self._clock())
                self._let_go(stream)

    def _error_of(self, output: LmOutput) -> PeltonError | None:
        if output.finish_reason in ITS_OWN_END:
            return None
        if output.finish_reason == "cancelled":
            return Cancelled("the engine gave it up")
        return ModelFailed(f"model {self.name!r} failed: {output.error or 'it did not say why'}")

    def _wait_again(self, stream: Stream) -> None:
        """It goes on later from where it is."""
        stream.state = State.WAITING
        self.queue.push(stream, front=True)

    # ---- time

    def _arm(self, stream: Stream, now: float) -> None:
        """A deadline of its own ends it wherever it is; without one, it is given up when its first step does not come."""
        if stream.ended:
            return
        if stream.deadline != NEVER:
            stream.timer = self.loop.call_later(max(0.0, stream.deadline - now), self._late, stream)
        elif stream.state is State.WAITING:
            patience = PATIENCE * self.bounds.first_token(stream.size, self.speed)
            stream.timer = self.loop.call_later(patience, self._given_up, stream)

    def _late(self, stream: Stream) -> None:
        now = self._clock()
        if not stream.ended:
            made = len(stream.tokens)
            allowed = stream.generation.timeout * 1e3
            self._end(
                stream,
                DeadlineExceeded(f"the call's own deadline passed after {allowed:.0f} ms and {made} tokens"),
                now,
            )
            self._let_go(stream)

    def _given_up(self, stream: Stream) -> None:
        now = self._clock()
        if stream.ended or stream.state is not State.WAITING:
            return
        error: PeltonError
        if self.away:
            error = NotReady(f"model {self.name!r} cannot answer: {self.away}")
        else:
            waited = now - stream.generation.received
            error = Overloaded(f"the call waited {waited:.1f} s for its first step; try again", reason="late")
        self._end(stream, error, now)
        self._let_go(stream)

    # ---- the end

    def _end(self, stream: Stream, error: PeltonError | None, now: float, tell: bool = True) -> None:
        """The caller's part is over: the only place where it is told so."""
        stream.ended, stream.error = now, error
        if not stream.begun:
            stream.generation.receipt.queue = now - stream.generation.received
        if not tell:
            return
        try:
            stream.generation.done(error)
        except Exception:
            log.exception("model %s: handing an end on failed (request %s)", self.name, stream.generation.request_id)

    def _let_go(self, stream: Stream) -> None:
        """Wherever it is, nobody needs it there any more."""
        if stream.state is State.WAITING:
            self.queue.remove(stream)
            stream.state = State.OUT
            self._close(stream)
        elif stream.state is State.SENT:
            stream.state = State.LEAVING
            self._hold(stream, -1)
            self._engine.cancel(stream.engine_id)
            self._dispatch(self._clock())
        elif stream.state is State.RETURNING:
            stream.state = State.LEAVING

    def _close(self, stream: Stream) -> None:
        """Its account is closed: once."""
        del self._streams[stream.generation]
        self.queue.leave(stream.tenant)
        self._company.left(stream.tenant, stream.ended)
        if stream.timer is not None:
            stream.timer.cancel()
            stream.timer = None
        self._closed(stream)
        if self._drained is not None and not self._streams and not self._drained.done():
            self._drained.set_result(None)
