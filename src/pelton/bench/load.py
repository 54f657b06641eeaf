"""The load generator: an open loop (requests arrive when they want) and a closed one (callers wait for answers).

Latency counts from the moment at which a request was meant to be sent. In the open loop that moment is drawn before
the server has a say, so a server that stalls is charged for every request that would have come meanwhile; generators
that wait for an answer before they send leave those out ("coordinated omission").
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import resource
import time
from array import array
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar, cast

import numpy as np

from pelton.bench.pacer import Pacer
from pelton.bench.wire import BadResponse, Response, read_stages
from pelton.types import Array

# Outcomes that are not an HTTP status.
BROKEN: Final = 0  # the connection failed, or what came was not HTTP
TIMED_OUT: Final = -1
UNSENT: Final = -2  # the step was given up before a connection was free
REFUSALS: Final = (429, 503)

HOPELESS_SHARE: Final = 0.05  # of all requests of a step over the target: nothing more to learn from it
SPARE_FILES: Final = 64  # open files of the process that are no connections
FINEST_WAKE: Final = 50e-6  # seconds; nearer arrivals are sent together

Clock = Callable[[], float]
T = TypeVar("T")


class Samples:
    """One column per fact, one row per request, in the order in which they ended. All times are seconds.

    `sent - intended` is what a request waited in the generator for a free connection.
    """

    __slots__ = ("intended", "known", "latency", "prepare", "queue", "rows", "run", "sent", "status")

    def __init__(self) -> None:
        self.intended, self.sent, self.latency = array("d"), array("d"), array("d")
        self.status, self.rows, self.known = array("h"), array("i"), array("b")
        self.queue, self.run, self.prepare = array("d"), array("d"), array("d")

    def __len__(self) -> int:
        return len(self.intended)

    def add(self, intended: float, sent: float, latency: float, status: int, head: bytes) -> None:
        rows, queue, run, prepare, known = read_stages(head)
        self.intended.append(intended)
        self.sent.append(sent)
        self.latency.append(latency)
        self.status.append(status)
        self.rows.append(rows)
        self.known.append(known)
        self.queue.append(queue)
        self.run.append(run)
        self.prepare.append(prepare)

    def columns(self) -> dict[str, Array]:
        return {name: np.array(getattr(self, name)) for name in self.__slots__}


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.response = Response()
        self.transport: asyncio.Transport | None = None
        self.busy = False
        self.intended = 0.0
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports inherit from nothing
        self.pool.opened(self)

    def send(self, request: bytes, intended: float) -> None:
        assert self.transport is not None
        self.busy, self.intended, self.sent = True, intended, self.pool.clock()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if not self.busy:  # nobody asked: most often a 408 before the server closes an idle connection
            self.drop(BROKEN)
            return
        try:
            complete = self.response.feed(data)
        except BadResponse:
            self.drop(BROKEN)
            return
        if complete:
            self.answered()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.busy and error is None and self.response.ended():
            self.pool.lost(self)
            self.answered()
        else:
            self.drop(BROKEN)

    def answered(self) -> None:
        response = self.response
        now, intended, sent = self.pool.clock(), self.intended, self.sent
        status, head, close = response.status, response.head, response.close or self.transport is None
        response.restart()
        self.busy = False
        if close:
            self.drop(BROKEN)
        else:
            self.pool.release(self)  # first, so that what waits leaves before the bookkeeping
        self.pool.settle(intended, sent, now, status, head)

    def drop(self, outcome: int) -> None:
        """Leaves the connection; a request under way ends with `outcome`."""
        if self.transport is not None:
            self.transport.abort()
            self.transport = None
        self.pool.lost(self)
        if self.busy:
            self.busy = False
            self.pool.settle(self.intended, self.sent, self.pool.clock(), outcome, b"")


class Pool:
    """Connections to one server. A request takes a free one, or opens another up to the limit, or waits.

    `ended` is called after each request; the open and the closed loop set it.
    """

    def __init__(
        self,
        host: str,
        port: int,
        requests: list[bytes],
        *,
        limit: int,
        timeout: float,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.clock = clock
        self.samples = Samples()
        self.ended: Callable[[], None] = lambda: None
        self.under_way = 0
        self.limit = limit
        self.most_open = 0  # connections in this step
        self.starved = 0  # requests of this step for which no connection was free and none could be opened
        self._host, self._port, self._timeout = host, port, timeout
        self._requests: Iterator[bytes] = itertools.cycle(requests)
        self._connections: set[Connection] = set()
        self._free: list[Connection] = []
        self._waiting: deque[float] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    async def open(self, count: int) -> None:
        """Opens up to `count` connections ahead of time. OSError where nothing listens."""
        missing = min(count, self.limit) - len(self._connections)
        await asyncio.gather(*(self._connect() for _ in range(missing)))

    def start(self, ended: Callable[[], None]) -> None:
        """A new step: samples are counted anew, `ended` hears of each request's end."""
        self.samples, self.ended = Samples(), ended
        self.most_open, self.starved = len(self._connections), 0
        self._sweep()

    def submit(self, intended: float) -> None:
        self.under_way += 1
        if self._free:
            self._free.pop().send(next(self._requests), intended)
        else:
            self._waiting.append(intended)
            self.starved += len(self._connections) + len(self._opening) >= self.limit
            self._grow()

    def settle(self, intended: float, sent: float, now: float, status: int, head: bytes) -> None:
        """One request has ended; each one passes here exactly once."""
        self.under_way -= 1
        self.samples.add(intended, sent, now - intended, status, head)
        self.ended()

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self.most_open = max(self.most_open, len(self._connections))
        self.release(connection)

    def release(self, connection: Connection) -> None:
        if self._waiting:
            connection.send(next(self._requests), self._waiting.popleft())
        else:
            self._free.append(connection)

    def lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if self._waiting:
            self._grow()

    def give_up(self) -> None:
        """Ends what waits for a connection; its latency so far is a lower bound."""
        self._end_waiting(UNSENT)

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in list(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        self.ended = lambda: None
        for connection in list(self._connections):
            connection.drop(UNSENT)

    def _end_waiting(self, outcome: int, before: float = float("inf")) -> None:
        now = self.clock()
        while self._waiting and self._waiting[0] < before:
            self.settle(self._waiting.popleft(), now, now, outcome, b"")

    def _grow(self) -> None:
        if len(self._connections) + len(self._opening) < self.limit and len(self._opening) < len(self._waiting):
            task = self._loop.create_task(self._open_another())
            self._opening.add(task)
            task.add_done_callback(self._tried)

    def _tried(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        if self._waiting:
            self._grow()

    async def _open_another(self) -> None:
        try:
            await asyncio.wait_for(self._connect(), self._timeout)
        except OSError:  # refused, reset, or no answer in time: the oldest that waits pays for it
            if self._waiting:
                now = self.clock()
                self.settle(self._waiting.popleft(), now, now, BROKEN, b"")

    async def _connect(self) -> None:
        transport, _ = await self._loop.create_connection(lambda: Connection(self), self._host, self._port)
        peer = transport.get_extra_info("peername")
        if peer:
            self._host = peer[0]  # a name is looked up once, not for every connection

    def _sweep(self) -> None:
        """Ends requests that are older than the timeout; runs a few times per timeout."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        before = self.clock() - self._timeout
        for connection in [c for c in self._connections if c.busy and c.intended < before]:
            connection.drop(TIMED_OUT)
        self._end_waiting(TIMED_OUT, before)
        self._sweeper = self._loop.call_later(min(0.1, self._timeout / 10), self._sweep)


class Window:
    """What one step gave: its samples, between which times they count, and what the generator itself cost.

    `late`: seconds by which each arrival was handed over late by the generator. `cpu`: its share of one core.
    `connections`: the most that were open at once; `starved`: requests that waited because no more were allowed.
    """

    def __init__(
        self, samples: Samples, begin: float, end: float, late: array[float], cpu: float, gave_up: bool
    ) -> None:
        self.samples, self.begin, self.end = samples, begin, end
        self.late, self.cpu, self.gave_up = late, cpu, gave_up
        self.connections = self.starved = 0

    @classmethod
    def of(cls, pool: Pool, begin: float, end: float, late: array[float], cpu: float, gave_up: bool = False) -> Window:
        """What the step of a pool gave."""
        window = cls(pool.samples, begin, end, late, cpu, gave_up)
        window.connections, window.starved = pool.most_open, pool.starved
        return window


def arrivals(rate: float, settle: float, count: int, seed: int) -> Array:
    """Poisson arrival times in seconds from the start: those of the first `settle` seconds, then `count` more."""
    random = np.random.default_rng(seed)
    before = random.poisson(rate * settle) if settle else 0
    early = np.sort(random.uniform(0.0, settle, before))
    return np.concatenate([early, settle + np.cumsum(random.exponential(1.0 / rate, count))])


class _OpenLoop:
    """Hands requests over at their arrival times, whatever the server does."""

    def __init__(self, pool: Pool, times: list[float], over_after: float, hopeless: int) -> None:
        self._pool, self._times, self._next = pool, times, 0
        self._over_after, self._hopeless, self._over, self._seen = over_after, hopeless, 0, 0
        self.late: array[float] = array("d")
        self.gave_up = False
        self.done = asyncio.get_running_loop().create_future()
        self.pacer = Pacer(asyncio.get_running_loop(), self.wake, pool.clock)

    def wake(self) -> None:
        pool, times, now = self._pool, self._times, self._pool.clock()
        position, count = self._next, len(times)
        while position < count and times[position] <= now:
            self.late.append(now - times[position])
            pool.submit(times[position])
            position += 1
            now = pool.clock()
            if position % 64 == 0:  # far behind: let answers in between
                break
        if self._next == count:
            return
        self._next = position
        if position < count:
            self.pacer.arm(max(times[position], now + FINEST_WAKE))

    def ended(self) -> None:
        samples = self._pool.samples
        status, latency = samples.status[-1], samples.latency[-1]
        if latency > self._over_after or not 200 <= status < 300:
            self._over += 1
            if self._over == self._hopeless:
                self.gave_up, self._next = True, len(self._times)
                self._pool.give_up()
        if self._next >= len(self._times) and not self._pool.under_way and not self.done.done():
            self.done.set_result(None)


async def open_loop(pool: Pool, times: Array, settle: float, *, over_after: float, give_up: bool) -> Window:
    """Sends at `times` (seconds from now) and waits until every request has ended.

    With `give_up` the step ends early once HOPELESS_SHARE of all its requests took longer than `over_after` seconds or
    failed.
    """
    hopeless = max(20, int(len(times) * HOPELESS_SHARE)) if give_up else -1
    start = pool.clock() + 0.01
    loop = _OpenLoop(pool, (times + start).tolist(), over_after, hopeless)
    pool.start(loop.ended)
    cpu, begun = time.process_time(), time.perf_counter()
    try:
        loop.pacer.arm(start)
        await loop.done
    finally:
        loop.pacer.close()
    spent = (time.process_time() - cpu) / max(1e-9, time.perf_counter() - begun)
    end = start + float(times[-1]) if not loop.gave_up else max(pool.samples.intended)
    begin = start + settle if end > start + settle else start  # given up before it had settled
    return Window.of(pool, begin, end, loop.late, spent, loop.gave_up)


async def closed_loop(pool: Pool, callers: int, seconds: float, settle: float) -> Window:
    """`callers` callers for settle + seconds; each sends its next request when it has its answer."""
    loop = asyncio.get_running_loop()
    await pool.open(callers)
    start = pool.clock()
    end = start + settle + seconds
    done = loop.create_future()

    def ended() -> None:
        now = pool.clock()
        if now < end:
            pool.submit(now)
        elif not pool.under_way and not done.done():
            done.set_result(None)

    pool.start(ended)
    cpu = time.process_time()
    for _ in range(callers):
        pool.submit(pool.clock())
    await done
    spent = (time.process_time() - cpu) / max(1e-9, pool.clock() - start)
    return Window.of(pool, start + settle, end, array("d"), spent)


def connection_limit(wanted: int) -> int:
    """`wanted`, or what the limit on open files leaves. The soft limit is raised where that helps: it is often 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE_FILES))


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` on uvloop where it is installed; without the garbage collector, whose pauses would count as latency."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        pass
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main)
    finally:
        if collecting:
            gc.enable()
