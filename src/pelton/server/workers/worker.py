"""One of several serving processes that share a port. Started by the supervisor, told by it what to do.

Beside the port it listens on a Unix socket, `<number>.sock` in the server's private folder, where its siblings send
calls for the models that it alone holds, and ask how it stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from pelton.deployments import Deployment
from pelton.errors import NotReady, PeltonError
from pelton.packages import Package
from pelton.records.snapshot import Snapshot
from pelton.registry import Registry
from pelton.server.call_headers import request_id
from pelton.server.control.start import read_desired
from pelton.server.dispatcher import Dispatcher
from pelton.server.fleet import stored
from pelton.server.inference import reply_error
from pelton.server.lifecycle import end_now, run_loop
from pelton.server.process import MEGABYTE, Server
from pelton.server.wire.asgi import App, Message
from pelton.server.wire.connection import Connection
from pelton.server.wire.listener import BACKLOG, Listener
from pelton.server.wire.request import Request
from pelton.server.workers.board import BOARD, Board, Counted
from pelton.server.workers.channel import (
    Asked,
    Change,
    Channel,
    Closed,
    Done,
    Drained,
    Finish,
    Handover,
    Homeless,
    Known,
    Place,
    Serving,
    Stop,
    done,
)
from pelton.server.workers.forward import Forward, Link, Sibling
from pelton.server.workers.placement import EVERYWHERE
from pelton.server.workers.places import WorkerPlaces

log = logging.getLogger(__name__)

ACCEPT_AT_ONCE: Final = 4  # connections per turn of the loop: siblings that are idle shall get some, too
ANSWER_SECONDS: Final = 1.0  # for a sibling to tell how it stands
STORE_SECONDS: Final = 3.0  # for the store to say what should be served
SNAPSHOT: Final = "/internal/snapshot"


class Worker:
    """A `Server` among siblings."""

    def __init__(
        self, handover: Handover, channel: Channel, registry: Registry, desired: Mapping[str, Deployment]
    ) -> None:
        self._handover = handover
        self._desired = desired
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        me, settings = handover.index, handover.settings
        self._registry = registry
        self._siblings = {n: Sibling(path_of(handover.folder, n)) for n in range(handover.workers) if n != me}
        self._places = WorkerPlaces(handover, registry, self._tell)
        self._elsewhere = self._places.elsewhere
        most = int(settings.max_body * MEGABYTE)
        forward = Forward(self._siblings, self._elsewhere, self._reject, most)
        sock = socket.socket(fileno=handover.listener)
        self._board = Board(handover.folder, handover.workers)
        self._clients = Counted(self._board.counts, me)
        self.server = Server(
            settings, registry, sock, forward, self._share, self._clients, handover.scope, self._places
        )
        self.server.site.siblings = self
        self.server.site.worker = me
        assert self.server.following is not None
        self._following = self.server.following
        self._following.reporter.worker = me
        self._following.told = lambda desired: self._tell(Known(dict(desired)))
        self._inside = self.server.inside
        limits = msgspec.structs.replace(self.server.limits, idle_timeout=float("inf"))  # siblings end what they opened
        self._local = Dispatcher(self.server.engine, self.server.routes, self._internal(self.server.app), limits)
        self._limits = limits
        self._path = path_of(handover.folder, me)
        self._listener = Listener(listen_inside(self._path), self._connection, lambda: False)
        self._finish = asyncio.Event()
        self._orphan = False
        self._asked: dict[int, asyncio.Future[Done]] = {}
        self._numbers = itertools.count(1)
        self._changes: asyncio.Queue[Change] = asyncio.Queue()
        self._loop.add_reader(channel.sock.fileno(), self._read)

    async def run(self) -> int:
        """Serves until the supervisor says stop, or is gone; returns the exit code."""
        settings = self._handover.settings
        for number, grace in ((signal.SIGTERM, settings.grace), (signal.SIGINT, 0.0)):
            self._loop.add_signal_handler(number, self.server.stop, grace)
        changing = self._loop.create_task(self._change_in_turn())
        code = await self.server.run(self._packages(), self._loaded, self._last, self._desired)
        changing.cancel()
        self._listener.close()
        for sibling in self._siblings.values():
            sibling.close()
        remove_inside(self._path, self._orphan)
        return code

    def _share(self, coming: int) -> int:
        """How many waiting connections this worker should take: up to one more than the sibling that has the fewest."""
        counts, me = self._board.counts, self._handover.index
        counts[me] = mine = len(self._clients) + coming
        fewest = min(count for worker, count in enumerate(counts) if worker != me)
        return min(ACCEPT_AT_ONCE, fewest - mine + 1)

    # ---- the supervisor

    def _read(self) -> None:
        try:
            for message in self._channel.messages():
                self._heed(message)
        except Closed:
            self._loop.remove_reader(self._channel.sock.fileno())
            self._orphan = True
            log.error("the supervisor is gone: answering what was accepted, then ending")
            self.server.stop(0.0)
            self._finish.set()

    def _heed(self, message: object) -> None:
        if isinstance(message, Stop):
            self.server.stop(message.grace)
        elif isinstance(message, Finish):
            self._finish.set()
        elif isinstance(message, Change):
            self._changes.put_nowait(message)
        elif isinstance(message, Place):
            if self._places.put(message.name, message.where):
                self.server.engine.directory.drop_state(message.name)
            self._following.converger.placed(message.name)
        elif isinstance(message, Done):
            future = self._asked.pop(message.id, None)
            if future is not None and not future.done():
                future.set_result(message)

    def _tell(self, message: Serving | Drained | Done | Asked | Homeless | Known) -> None:
        with contextlib.suppress(Closed):  # `_read` notices
            self._channel.send(message)

    def _loaded(self) -> None:
        self._tell(Serving())

    async def _last(self) -> None:
        """Own clients are answered; siblings may still forward calls until theirs are, too."""
        self._tell(Drained())
        await self._finish.wait()

    # ---- models

    def _packages(self) -> list[Package]:
        packages = []
        for name, placed in self._handover.models.items():
            if name in self._elsewhere or not placed.version:
                continue
            if name in self._desired and self._handover.scope.follows(name):
                continue  # the store decides
            try:
                packages.append(stored(self._registry, name, placed.version))
            except PeltonError as error:
                log.error("model %s cannot be served: %s", name, error)
                self.server.engine.directory.announce(name, f"it failed to load: {error}")
        return packages

    async def _change_in_turn(self) -> None:
        while True:
            change = await self._changes.get()
            error: PeltonError | None = None
            try:
                await self._change(change)
            except PeltonError as caught:
                error = caught
            except Exception as caught:
                log.exception("changing model %s failed", change.name)
                error = PeltonError(f"{type(caught).__name__}: {caught}")
            self._tell(done(change.id, error))

    async def _change(self, change: Change) -> None:
        fleet, directory, name, placed = self.server.fleet, self.server.engine.directory, change.name, change.placed
        if placed is not None and placed.where in (EVERYWHERE, self._handover.index):
            await fleet.load(f"{name}:{placed.version}")
            self._elsewhere.pop(name, None)
        elif placed is not None:
            self._elsewhere[name] = placed.where
        else:
            self._elsewhere.pop(name, None)
            if name in directory.current():
                await fleet.unload(name)

    async def change(self, action: str, name: str) -> None:
        """Has the supervisor load or unload a model in all workers. Raises what made it fail."""
        number = next(self._numbers)
        future = self._asked[number] = self._loop.create_future()
        self._tell(Asked(number, "load" if action == "load" else "unload", name))
        (await future).check()

    # ---- siblings

    async def snapshots(self) -> dict[int, Snapshot | None]:
        """How each sibling stands; None: it does not answer in time."""
        answers = await asyncio.gather(*(self._ask(sibling) for sibling in self._siblings.values()))
        return dict(zip(self._siblings, answers, strict=True))

    async def _ask(self, sibling: Sibling) -> Snapshot | None:
        question = Question(self._loop)
        sibling.send(b"GET %b HTTP/1.1\r\nhost: worker\r\n\r\n" % SNAPSHOT.encode(), b"", question, question.taken)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await question.answer
        except TimeoutError:
            question.drop()
            return None
        head, _, body = answer.partition(b"\r\n\r\n")
        return Snapshot.from_bytes(body) if head.startswith(b"HTTP/1.1 200 ") else None

    def _connection(self) -> Connection:
        return Connection(self._local, self._inside, self._limits, self.server.clock)

    def _internal(self, app: App) -> App:
        """What siblings may ask: how this process stands, and every page, answered from what is here."""

        async def internal(scope: Message, receive: Any, send: Any) -> None:
            if scope["path"] != SNAPSHOT:
                await app(scope, receive, send)
                return
            body = msgspec.structs.replace(self.server.site.own(), worker=self._handover.index).to_bytes()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})

        return internal

    def _reject(self, connection: Connection, request: Request, name: str, protocol: str, error: PeltonError) -> None:
        if protocol:
            self.server.engine.reject(name, protocol, error, request.received)
        reply_error(connection, request, error, request_id(request))


class Question:
    """One question to a sibling (`forward.Receiver`)."""

    in_parts = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.answer: asyncio.Future[bytes] = loop.create_future()
        self._link: Link | None = None

    def taken(self, link: Link) -> bool:
        self._link = link
        return not self.answer.done()

    def answered(self, answer: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)

    def failed(self) -> None:
        self.answered(b"")

    def part(self, data: bytes) -> None:
        """Whole answers only."""

    def drop(self) -> None:
        """Nobody waits for the answer any more."""
        if self._link is not None:
            self._link.abort()


def path_of(folder: str, number: int) -> str:
    """Where a worker listens for its siblings."""
    return os.path.join(folder, f"{number}.sock")


def listen_inside(path: str) -> socket.socket:
    """A listening Unix socket; one that a dead process left there is replaced."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    sock.listen(BACKLOG)
    return sock


def remove_inside(path: str, last: bool) -> None:
    """Removes the socket's file; where nobody else will (`last`), the folder too once it is empty."""
    with contextlib.suppress(OSError):
        os.unlink(path)
    if last:
        folder = os.path.dirname(path)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(folder, BOARD))
        with contextlib.suppress(OSError):
            os.rmdir(folder)


async def _serve(handover: Handover, channel: Channel) -> int:
    registry = Registry(handover.settings.home_path, handover.settings.store_url)
    worker = Worker(handover, channel, registry, await _read_desired(handover, registry))
    code = await worker.run()
    if worker.server.stuck:
        end_now(code)
    return code


async def _read_desired(handover: Handover, registry: Registry) -> Mapping[str, Deployment]:
    """What the store says now: a worker that is started again must not begin with what it was. Where the store is away,
    what its siblings heard last."""
    if handover.fresh:
        return handover.desired
    try:
        async with asyncio.timeout(STORE_SECONDS):
            return await asyncio.to_thread(read_desired, registry)
    except (PeltonError, TimeoutError) as error:
        log.error("the store does not answer (%s): starting with what was known of it", error or "in time")
        return handover.desired


def run(handover: Handover, channel: Channel) -> int:
    """Runs this process as a worker; returns the exit code."""
    return run_loop(_serve(handover, channel))


def take_over(fd: int) -> tuple[Handover, Channel]:
    """The inherited channel, and who this process is. Raises NotReady where the supervisor is gone already."""
    channel = Channel(socket.socket(fileno=fd))
    os.set_inheritable(fd, False)  # processes of models shall not hold it open
    try:
        handover = channel.receive()
    except Closed:
        raise NotReady("the supervisor is gone") from None
    if not isinstance(handover, Handover):
        raise NotReady("the supervisor did not say what to do")
    os.set_inheritable(handover.listener, False)
    return handover, channel
