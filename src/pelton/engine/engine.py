"""The path of every inference: resolve the version -> prepare -> admit -> schedule -> run -> settle -> record.

Live requests of every protocol, and later jobs, shadows and trials, are `Call`s that go through `Engine.submit`. All
methods belong to the event loop; the model itself runs on the loop or in a slot, as the executor decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakSet

from pelton.engine.account import error_kind, record_of, record_of_stream, records_of
from pelton.engine.generation import Generation
from pelton.engine.lengths import LengthPieces, measure, parts_of, priority_of
from pelton.engine.pieces import Pieces
from pelton.engine.preparation import Preparation, attempt
from pelton.engine.served import Directory, Served
from pelton.engine.stream import Stream
from pelton.errors import (
    Cancelled,
    Draining,
    InvalidInput,
    ModelFailed,
    PeltonError,
    Refused,
    TooLarge,
    Unsupported,
)
from pelton.records import Ledger, Record
from pelton.replicas import Replica, bucket, target_seconds
from pelton.replicas.lengths import longest
from pelton.scheduling import Batcher, BatchPolicy, Executor, LatencyModel, LengthBatcher, LengthScheduler, Scheduler
from pelton.scheduling.fair_queue import even
from pelton.transforms import Prepared
from pelton.types import QUEUED, RUNNING, SETTLED, Batch, Call, Outcome

if TYPE_CHECKING:
    from pelton.engine.lane import Lane
    from pelton.replicas.language import LanguageReplica

log = logging.getLogger(__name__)

MAX_ROWS = 65_536  # of one call
OFF_THE_LOOP = frozenset({"python", "whisper"})  # runtimes whose batches may take seconds though the last one was short


def hand_back(calls: Sequence[Call]) -> None:
    """Tells callers that their calls are settled."""
    for call in calls:
        try:
            call.done(call)
        except Exception:
            log.exception("handing an answer on failed (request %s)", call.request_id)


class Engine:
    """The one path. `ledger` receives exactly one record per call. `hand_on` gives settled calls back to their callers;
    it never raises. `weight` of a tenant is its share of a language model."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        ledger: Ledger,
        clock: Callable[[], float],
        hand_on: Callable[[Sequence[Call]], None] = hand_back,
        weight: Callable[[str], float] = even,
    ) -> None:
        self.clock = clock
        self.ledger = ledger
        self.directory = Directory()
        self.in_flight = 0
        self.draining = False
        self._loop = loop
        self._hand_on = hand_on
        self._weight = weight
        self._executor = executor
        self._preparation = Preparation(loop, max(2, executor.slots), clock)
        self._pieces: dict[int, Pieces] = {}  # by id of the whole call
        self._idle: asyncio.Future[None] | None = None
        self._lanes: WeakSet[Lane] = WeakSet()  # also of versions that nobody finds any more

    def serve(self, replica: Replica, latency: LatencyModel, current: bool = True) -> Served:
        """From now on `replica` answers for its name, or, not `current`, for callers that name its version.

        `latency` is its S(b) as measured while loading."""
        target = target_seconds(replica.package, latency)
        manifest = replica.package.manifest
        policy = BatchPolicy(
            target, replica.max_rows, manifest.batching.objective, manifest.runtime not in OFF_THE_LOOP
        )
        ends = partial(self._settle_batch, replica), partial(self._settle, replica)
        if replica.ragged is None:
            scheduler = Scheduler(Batcher(policy, latency), self._executor, replica.run, *ends)
        else:
            batcher = LengthBatcher(policy, latency, longest(replica.package))
            scheduler = LengthScheduler(batcher, self._executor, replica.run, *ends)
        scheduler.most = replica.parallel
        served = Served(replica, scheduler, target)
        served.varies = replica.varies or replica.ragged is not None
        self.admit(served, current)
        return served

    def prepare_language(self, replica: LanguageReplica) -> Served:
        """A language model with its lane, which takes generations from now on; nobody finds it before `admit`."""
        from pelton.engine.bounds import Bounds
        from pelton.engine.lane import Lane
        from pelton.engine.prompts import Prompts

        bounds = Bounds.of(replica.package.manifest.slo)
        close = partial(self._close_stream, replica)
        lane = Lane(replica.name, replica.engine, bounds, self._loop, self.clock, close, self._weight)
        self._lanes.add(lane)
        prompts = Prompts(replica, lane, partial(self._settle, replica), self.clock)
        served = Served(replica, prompts, bounds.target)
        served.varies = True
        served.language, served.lane = replica.language, lane
        replica.through(prompts.answer)
        return served

    def admit(self, served: Served, current: bool = True) -> None:
        """From now on `served` answers for its name, or, not `current`, for callers that name its version."""
        if current:
            self.directory.put(served)
        else:
            self.directory.add(served)

    def resolve(self, name: str, version: str = "") -> Served:
        """The version that answers for `name`. Raises NotFound, NotReady, or Draining when the process stops."""
        if self.draining:
            raise Draining("this server is stopping; ask another one", retry_after=1.0)
        return self.directory.find(name, version)

    def submit(self, served: Served, call: Call, returned_after: float = 0.0) -> None:
        """Takes a call on: `call.done` is called exactly once from here on, unless the caller leaves."""
        self.in_flight += 1
        if call.fields is not None:
            self._prepare(served, call)
        elif call.rows == 1 and not served.varies:  # most calls: nothing of `_schedule` applies
            try:
                served.scheduler.submit(call, call.received, returned_after)
            except Refused as error:
                self._settle(served.replica, call, error)
        else:
            self._schedule(served, call, returned_after)

    def submit_all(self, served: Served, calls: list[Call], returned_after: list[float]) -> None:
        """`submit` for calls of one row each that came together, where nothing of `_schedule` applies."""
        if not served.varies and served.scheduler.submit_all(calls, calls[0].received, returned_after):
            self.in_flight += len(calls)
            return
        for call, seconds in zip(calls, returned_after, strict=True):
            self.submit(served, call, seconds)

    def generate(self, served: Served, generation: Generation) -> None:
        """Takes a generation on: `generation.done` is called exactly once, perhaps before this returns, unless the
        caller hangs up. `served` is a language model; for others it is done with Unsupported, and not recorded."""
        if served.lane is None:
            generation.done(Unsupported(f"model {served.name!r} is no language model: it makes no text"))
            return
        if not generation.part:
            self.in_flight += 1
        served.lane.submit(generation)

    def hang_up(self, served: Served, generation: Generation) -> None:
        """The caller left, or has enough (`generation.satisfied`): it is not told anything from here on, and its place
        in the engine is free at the next step."""
        if served.lane is not None:
            served.lane.hang_up(generation)

    def cancel(self, served: Served, call: Call) -> None:
        """The caller left: a queued call gives up its place, a running one is not answered. Its neighbours are."""
        call.abandoned = True
        if call.state == QUEUED:
            served.scheduler.cancel(call)
            self._settle(served.replica, call, Cancelled("the caller left"))
        pieces = self._pieces.get(id(call))
        if pieces is not None:
            self._settle(served.replica, call, Cancelled("the caller left"))

    def fail(self, served: Served, call: Call, error: PeltonError) -> None:
        """The caller is told `error` now, whatever becomes of the call. Nothing happens where it has its answer already."""
        if call.state == QUEUED:
            served.scheduler.cancel(call)
        self._settle(served.replica, call, error)
        call.abandoned = True  # by whoever still prepares it

    def reject(self, name: str, protocol: str, error: PeltonError, received: float) -> None:
        """Records a request that never became a call. Names that nobody serves are not kept: labels stay bounded."""
        served = self.directory.current().get(name)
        reason = error.reason if isinstance(error, Refused) else ""
        now = self.clock()
        self.ledger.append(
            Record(
                name if served else "",
                served.version if served else "",
                protocol,
                "",
                0,
                0,
                reason,
                error_kind(error),
                now,
                0.0,
                0.0,
                0.0,
                now - received,
                0.0,
            )
        )

    def turn_away(self, served: Served, protocol: str, received: float, route: int = 0, key: int = 0) -> None:
        """Records a request that was refused before it was decoded."""
        now = self.clock()
        record = Record(
            served.name,
            served.version,
            protocol,
            "",
            0,
            0,
            "overloaded",
            "refused",
            now,
            0.0,
            0.0,
            0.0,
            now - received,
            0.0,
            "",
            "",
            route,
            key,
        )
        self.ledger.append(record)
        if self.ledger.full():
            self.ledger.fold()

    def give_up(self) -> None:
        """The process ends and waits no longer: generations that wait or run end with an error."""
        for lane in list(self._lanes):
            lane.give_up(Draining("this server is stopping, the rest of this answer will not come; ask another one"))

    async def idle(self) -> None:
        """Returns when no call is in flight."""
        while self.in_flight:
            self._idle = self._loop.create_future()
            await self._idle

    def close(self) -> None:
        """Ends the threads."""
        self._preparation.close()
        self._executor.close()

    # ---- prepare

    def _prepare(self, served: Served, call: Call) -> None:
        prepare = served.replica.prepare
        if not prepare.heavy:
            self._prepared(served, call, attempt(partial(prepare, call.fields or {})))
            return
        scheduler = served.scheduler
        after = scheduler.expected_seconds(call, self.clock())
        try:
            self._preparation.start(served.name, call, prepare, after, partial(self._ready, served))
        except Refused as error:
            self._settle(served.replica, call, error)
        else:
            scheduler.expected += 1

    def _ready(self, served: Served, call: Call, result: Prepared | PeltonError) -> None:
        """A call comes back from the threads that prepare."""
        served.scheduler.expected -= 1
        self._prepared(served, call, result)
        served.scheduler.check_drained()

    def _prepared(self, served: Served, call: Call, result: Prepared | PeltonError) -> None:
        call.prepared = self.clock() - call.received
        if call.abandoned:
            result = Cancelled("the caller left")
        if isinstance(result, PeltonError):
            self._settle(served.replica, call, result)
            return
        call.inputs, call.counts, call.fields = result.inputs, result.counts, None
        call.rows = len(result.inputs[0])
        if result.lengths is not None:
            call.lengths, call.tokens = result.lengths, sum(result.lengths)
        if not served.replica.signature.batched:
            if call.rows != 1:
                self._settle(served.replica, call, Unsupported("this model takes one instance per call"))
                return
            call.inputs = [array[0] for array in call.inputs]
        self._schedule(served, call, 0.0)

    # ---- schedule

    def _schedule(self, served: Served, call: Call, returned_after: float) -> None:
        scheduler = served.scheduler
        try:
            if not call.rows:
                raise InvalidInput("this call has no rows; send at least one")
            if call.inputs and served.replica.varies:
                call.bucket = bucket(served.replica.signature, call.inputs)
            if isinstance(scheduler, LengthScheduler):
                self._schedule_lengths(served, scheduler, call, returned_after)
            elif call.rows > scheduler.batcher.cap and call.rows > 1:
                self._schedule_pieces(served, call)
            else:
                scheduler.submit(call, self.clock(), returned_after)
        except (Refused, InvalidInput, Unsupported) as error:
            self._settle(served.replica, call, error)

    def _schedule_pieces(self, served: Served, call: Call) -> None:
        if call.rows > MAX_ROWS:
            raise TooLarge(f"one call may have {MAX_ROWS} rows, this one has {call.rows}: send several calls")
        scheduler, now = served.scheduler, self.clock()
        cap = scheduler.batcher.cap
        if not call.own_deadline:  # the target is meant for what fits one batch
            call.deadline += served.target * (call.rows // cap)
        scheduler.admit(call, now)
        self._enqueue(served, Pieces(call, cap, scheduler, partial(self._settle, served.replica)), now)

    def _schedule_lengths(self, served: Served, lane: LengthScheduler, call: Call, returned_after: float) -> None:
        """A call of a model whose rows differ in length: what is about as long runs together."""
        replica, batcher, now = served.replica, lane.batcher, self.clock()
        assert isinstance(batcher, LengthBatcher)
        measure(replica, call)
        parts = parts_of(replica, call, batcher, MAX_ROWS)
        if len(parts) == 1:
            lane.submit(call, now, returned_after)
            return
        load = sum([len(rows) * tokens for rows, tokens in parts])
        if load > batcher.cap and not call.own_deadline:
            call.deadline += served.target * (load // batcher.cap)
        if load > batcher.cap or lane.running or batcher.rows:
            lane.admit(call, now)
        specs, settle = replica.signature.inputs, partial(self._settle, replica)
        self._enqueue(served, LengthPieces(call, parts, specs, lane, settle, priority_of(call, load, batcher.cap)), now)

    def _enqueue(self, served: Served, pieces: Pieces, now: float) -> None:
        call = pieces.whole
        self._pieces[id(call)] = pieces
        call.queued = now
        call.state = RUNNING
        for piece in pieces.calls:
            served.scheduler.enqueue(piece, now)

    # ---- settle: `_settle` is the only place where a call ends that has no answer, `_settled` for those that have one

    def _settle_batch(self, replica: Replica, batch: Batch, outcomes: list[Outcome]) -> None:
        calls = batch.calls
        if len(outcomes) != len(calls):
            failure = ModelFailed(f"model {replica.name!r}: {len(outcomes)} answers for {len(calls)} calls")
            outcomes = [failure] * len(calls)
        # A call knows its batch from here on, and the batch forgets its calls: a cycle would leave every request to the
        # garbage collector, which costs more than answering it.
        batch.calls = []
        answered: list[Call] = []
        for call, outcome in zip(calls, outcomes, strict=True):
            call.batch = batch
            if type(outcome) is list and call.state == RUNNING and not call.abandoned and call.parent is None:
                call.state = SETTLED
                call.outcome = outcome
                answered.append(call)
            else:
                self._settle(replica, call, outcome)
        self._settled(replica, batch, answered)

    def _settled(self, replica: Replica, batch: Batch, calls: list[Call]) -> None:
        """Calls of a batch that have their answers: their records, then each answer goes to its caller."""
        self.ledger.extend(records_of(replica.name, replica.version, batch, calls))
        self.in_flight -= len(calls)
        self._hand_on(calls)
        if self._idle is not None:
            self._tell_idle()
        if self.ledger.full():
            self._loop.call_soon(self.ledger.fold)

    def _settle(self, replica: Replica, call: Call, outcome: Outcome) -> None:
        """A call ends, alone: once, with one record."""
        if call.state == SETTLED:
            return
        call.state = SETTLED
        call.outcome = outcome
        if call.parent is None:
            batch = call.batch
            now = batch.finished if batch is not None and batch.finished else self.clock()
            self.ledger.append(record_of(replica.name, replica.version, call, outcome, now))
            self.in_flight -= 1
            if self._pieces or self._idle is not None:
                self._close_account(call)
            if call.abandoned:
                return
        self._hand_on([call])

    def _close_stream(self, replica: Replica, stream: Stream) -> None:
        """A generation's account is closed: its record."""
        if stream.generation.part:
            return
        self.ledger.append(record_of_stream(replica.name, replica.version, stream))
        self.in_flight -= 1
        if self._idle is not None:
            self._tell_idle()
        if self.ledger.full():
            self._loop.call_soon(self.ledger.fold)

    def _close_account(self, call: Call) -> None:
        """A call ended: its pieces that still wait are dropped, and who waits for the last call is told."""
        pieces = self._pieces.pop(id(call), None)
        if pieces is not None:
            pieces.drop()
        self._tell_idle()

    def _tell_idle(self) -> None:
        if not self.in_flight and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
