"""Two engines for one model, seen as one: `solo` is the faster for few streams, `many` for many.

While fewer than `crowd` requests are there, they run on `solo`, unless `many` would be done sooner: with a long prompt that
`solo` has not seen before, if `many` is the faster reader. From then on new ones go to `many`, and those that run on
`solo` follow: they are cancelled there and added to `many` with what they have written so far. When nothing runs any more
and it has been quiet for a moment, `solo` gets the next one.

Requests that cannot go on elsewhere (a grammar, penalties, logprobs: they have a state) start on `many`.
Where one half dies, its requests fail and the other takes what comes; only when both are gone the engine is lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from pelton.runtimes.language import Facts, LanguageEngine, Listener, Order, Speed
from pelton.runtimes.step_engine import FinishReason, LmOutput, LmRequest, Share, StepReport

SETTLE: Final = 0.003  # seconds that the first request waits for company: requests that come together start together
USUAL, FORGET = 128.0, 16  # tokens of an answer, until that many answers have told
CONVERSATIONS: Final = 32  # that are remembered
QUIET: Final = 2.0  # seconds without a crowd until `solo` is asked again


class Place(Enum):
    """Where a request is."""

    HERE = "here"  # it has not been given to an engine yet
    SOLO = "solo"
    MOVING = "moving"  # cancelled on `solo`, its last output is awaited
    MANY = "many"


@dataclass(slots=True, eq=False)
class Entry:
    """A request that has not had its last output."""

    order: Order
    place: Place = Place.HERE
    made: list[int] = field(default_factory=list)
    moved: bool = False
    hung_up: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A conversation that a half has computed: the prompt and its answer."""

    solo: bool
    salt: str
    tokens: tuple[int, ...]


class Duet:
    """A `LanguageEngine` (`pelton.runtimes.language`). Both halves are loaded already and belong to it."""

    def __init__(
        self,
        solo: LanguageEngine,
        many: LanguageEngine,
        crowd: int,
        why: str = "",
        settle: float = SETTLE,
        quiet: float = QUIET,
    ) -> None:
        """`crowd`: so many requests at once belong to `many`."""
        self._solo, self._many = Half(self, solo), Half(self, many)
        self._crowd = crowd
        self._why = why
        self._settle, self._quiet = settle, quiet
        self._entries: dict[str, Entry] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: Listener | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._usual = USUAL
        self._seen: deque[Seen] = deque(maxlen=CONVERSATIONS)
        self._crowded = float("-inf")  # the loop's time when there was a crowd last
        self._number = 0
        self._closing = False

    # ---- the contract

    @property
    def facts(self) -> Facts:
        return together(self._solo.engine.facts, self._many.engine.facts, self._crowd, self._why)

    @property
    def pids(self) -> tuple[int, ...]:
        return (*self._solo.engine.pids, *self._many.engine.pids)

    @property
    def restarts(self) -> int:
        return self._solo.engine.restarts + self._many.engine.restarts

    def attach(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        if self._loop is not None:
            raise RuntimeError("the engine is attached already")
        self._loop, self._listener = loop, listener
        for half in (self._solo, self._many):
            half.engine.attach(loop, half)
        for request_id in list(self._entries):
            self._fail([request_id], "the engine was not attached yet")

    def add(self, order: Order) -> None:
        entry = self._entries[order.request.id] = Entry(order)
        if self._loop is None:
            return
        if len(self._entries) >= self._crowd:
            self._crowded = self._loop.time()
        if self._alone(entry):
            if self._settling is None:
                self._settling = self._loop.call_later(self._settle, self._begin)
            return
        self._begin()

    def cancel(self, request_id: str) -> None:
        entry = self._entries.get(request_id)
        if entry is None:
            return
        entry.hung_up = True
        if entry.place is Place.HERE:
            self._say([LmOutput(request_id, (), "cancelled")])
        elif entry.place is not Place.MOVING:  # else it is being cancelled, and will not be added again
            self._half(entry.place).engine.cancel(request_id)

    def close(self) -> None:
        self._closing = True
        for half in (self._solo, self._many):
            half.engine.close()

    # ---- where a request goes

    def _alone(self, entry: Entry) -> bool:
        """Whether it is one for `solo`."""
        assert self._loop is not None
        few = len(self._entries) < self._crowd and self._loop.time() - self._crowded >= self._quiet
        idle = all(other.place in (Place.HERE, Place.SOLO) for other in self._entries.values())
        able = not self._solo.away and movable(entry.order) and fits(entry.order, self._solo.engine.facts)
        return few and idle and able and self._sooner(entry.order.request)

    def _sooner(self, request: LmRequest) -> bool:
        """Whether `solo` is expected to have the whole answer before `many` would."""
        answer = min(request.max_tokens, self._usual)
        solo, many = (
            half.pace.seconds(len(request.prompt) - known_tokens(self._seen, half is self._solo, request), answer)
            for half in (self._solo, self._many)
        )
        if solo > many:
            self._solo.pace.hope()
        return solo <= many

    def _begin(self) -> None:
        """Gives away what is here; where that makes a crowd, what runs on `solo` follows."""
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        here = [entry for entry in self._entries.values() if entry.place is Place.HERE]
        if all(self._alone(entry) for entry in here) or self._many.away:
            for entry in here:
                self._give(entry, Place.MANY if self._solo.away else Place.SOLO)
            return
        for entry in list(self._entries.values()):
            if entry.place is Place.SOLO and movable(entry.order) and not self._many.away and not entry.hung_up:
                entry.place = Place.MOVING
                self._solo.engine.cancel(entry.order.request.id)
        for entry in here:
            self._give(entry, Place.MANY)

    def _give(self, entry: Entry, place: Place) -> None:
        entry.place = place
        self._half(place).engine.add(continued(entry.order, entry.made) if entry.made else entry.order)

    def _half(self, place: Place) -> Half:
        return self._many if place is Place.MANY else self._solo

    # ---- what the halves say

    def reported(self, half: Half, report: StepReport) -> None:
        outputs = [known for output in report.outputs if (known := self._known(half, output)) is not None]
        shares = tuple(self._share(share) for share in report.shares)
        if outputs or shares or report.preempted:
            other = self._solo if half is self._many else self._many
            self._tell(
                replace(
                    report,
                    shares=shares,
                    outputs=tuple(outputs),
                    waiting=report.waiting + other.waiting,
                    running=report.running + other.running,
                    free_blocks=self._many.free_blocks,
                )
            )

    def _known(self, half: Half, output: LmOutput) -> LmOutput | None:
        """The output as the listener shall see it; None for one that is none of its business."""
        entry = self._entries.get(output.request_id)
        if entry is None or self._half(entry.place) is not half:
            return None
        entry.made.extend(output.tokens)
        if entry.place is Place.MOVING and output.finish_reason == "cancelled" and not entry.hung_up:
            entry.moved = True
            self._give(entry, Place.SOLO if self._many.away else Place.MANY)
            return replace(output, finish_reason=None) if output.tokens else None
        if output.finish_reason is not None:
            self._remember(entry, output.finish_reason)
            self._drop(output.request_id)
        return output

    def _remember(self, entry: Entry, finish: FinishReason) -> None:
        """What the half still knows of it, for the next turn of a conversation; and how long answers are."""
        request = entry.order.request
        self._seen.append(Seen(entry.place is Place.SOLO, request.salt, (*request.prompt, *entry.made)))
        if finish in ("stop", "length"):
            self._usual += (len(entry.made) - self._usual) / FORGET

    def _drop(self, request_id: str) -> None:
        if self._loop is not None and len(self._entries) >= self._crowd:
            self._crowded = self._loop.time()
        del self._entries[request_id]

    def _share(self, share: Share) -> Share:
        """Of a request that moved: what the cache saves of it now was counted, or written by it."""
        entry = self._entries.get(share.request_id)
        return replace(share, cached_tokens=0) if entry is not None and entry.moved else share

    def lost(self, half: Half, reason: str) -> None:
        """Its requests fail, unless everything is lost."""
        gone = [
            request_id
            for request_id, entry in self._entries.items()
            if entry.place is not Place.HERE and self._half(entry.place) is half
        ]
        if self.both_away:
            self._entries.clear()
            if self._settling is not None:
                self._settling.cancel()
                self._settling = None
            if self._listener is not None and not self._closing:
                self._listener.lost(reason)
            return
        self._fail(gone, f"the engine ended: {reason}")

    @property
    def both_away(self) -> bool:
        return self._solo.away and self._many.away

    def back(self, both_were_away: bool) -> None:
        if both_were_away and self._listener is not None and not self._closing:
            self._listener.back(self.facts)

    # ---- to the listener

    def _fail(self, request_ids: Sequence[str], why: str) -> None:
        if request_ids:
            self._say([LmOutput(request_id, (), "failed", error=why) for request_id in request_ids])

    def _say(self, outputs: Sequence[LmOutput]) -> None:
        """What no engine says. Later, never inside of `add` or `cancel`."""
        for output in outputs:
            self._drop(output.request_id)
        if self._loop is not None:
            report = StepReport(0, (), tuple(outputs), 0.0, (), 0, 0, self._many.free_blocks)
            self._loop.call_soon(self._tell, report)

    def _tell(self, report: StepReport) -> None:
        self._number += 1
        if self._listener is not None and not self._closing:
            self._listener.reported(replace(report, number=self._number))


class Pace:
    """Seconds that a half takes for a token of a prompt and for one of an answer, alone: first as it was measured, then as
    it is seen."""

    def __init__(self, speed: Speed) -> None:
        self.prefill = 1.0 / max(speed.prefill, 1e-9)
        self.decode = speed.decode.get(1) or min(speed.decode.values(), default=0.0)

    def seconds(self, prompt: int, answer: float) -> float:
        return prompt * self.prefill + answer * self.decode

    def saw(self, report: StepReport) -> None:
        """Learns from steps of one request, reading or writing."""
        if len(report.shares) != 1:
            return
        share = report.shares[0]
        if share.decode_tokens and not share.prefill_tokens:
            self.decode += (report.seconds / share.decode_tokens - self.decode) * 0.05
        elif share.prefill_tokens >= 16 and not share.decode_tokens:
            self.prefill += (report.seconds / share.prefill_tokens - self.prefill) * 0.2

    def hope(self) -> None:
        """What is thought too slow is not seen any more: it is thought a little better of each time, until it is tried."""
        self.prefill *= 0.99
        self.decode *= 0.99


class Half:
    """One of the two, as its listener."""

    def __init__(self, duet: Duet, engine: LanguageEngine) -> None:
        self.engine = engine
        self.away = False
        self.running = self.waiting = self.free_blocks = 0
        self.pace = Pace(engine.facts.speed)
        self._duet = duet

    def reported(self, report: StepReport) -> None:
        self.pace.saw(report)
        if report.number:
            self.running, self.waiting, self.free_blocks = report.running, report.waiting, report.free_blocks
        self._duet.reported(self, report)

    def lost(self, reason: str) -> None:
        self.away = True
        self.running = self.waiting = 0
        self._duet.lost(self, reason)

    def back(self, facts: Facts) -> None:
        both = self._duet.both_away
        self.away = False
        self._duet.back(both)


def known_tokens(seen: Iterable[Seen], solo: bool, request: LmRequest) -> int:
    """How much of the prompt a half has computed before, for the same salt."""
    most = 0
    for one in seen:
        if one.solo == solo and one.salt == request.salt and one.tokens[: most + 1] == request.prompt[: most + 1]:
            most = max(most, beginning(one.tokens, request.prompt))
    return most


def beginning(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with together. By halves: comparing slices is quick."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def movable(order: Order) -> bool:
    """Whether it may go on in another engine: nothing of it depends on what the first one remembers."""
    request = order.request
    sampling = request.sampling
    stateful = order.grammar is not None or request.grammar is not None or sampling.penalized
    return not (stateful or sampling.logprobs is not None or request.prompt_logprobs)


def fits(order: Order, facts: Facts) -> bool:
    """Whether an engine can run it at all."""
    request = order.request
    total = len(request.prompt) + request.max_tokens
    return total <= min(facts.context, facts.kv_tokens) and (facts.bias or not request.sampling.bias)


def continued(order: Order, made: Sequence[int]) -> Order:
    """The rest of it, after what was `made`. A drawn text goes on with another seed: with the same one the first draws
    would come again."""
    request: LmRequest = order.request
    sampling = request.sampling
    if not sampling.greedy:
        sampling = replace(sampling, seed=sampling.seed + len(made))
    rest = replace(
        request, prompt=(*request.prompt, *made), max_tokens=request.max_tokens - len(made), sampling=sampling
    )
    return replace(order, request=rest)


def together(solo: Facts, many: Facts, crowd: int, why: str) -> Facts:
    """What both are as one: the abilities of `many`, and the speed of whichever runs."""
    decode = {count: seconds for count, seconds in many.speed.decode.items() if count >= crowd}
    decode |= {count: seconds for count, seconds in solo.speed.decode.items() if count < crowd}
    return replace(
        many,
        engine=f"{solo.engine}+{many.engine}",
        speed=Speed(many.speed.prefill, decode),
        why=why or f"{solo.engine} for fewer than {crowd} streams, {many.engine} from then on",
    )
