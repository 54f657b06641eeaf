"""The supervisor: binds the port once, starts the workers, and keeps them alive. It serves nothing itself.

All workers accept from the same socket, which the supervisor holds open: connections that wait are not lost when a
worker dies, and an idle worker takes more of them than a busy one (each its own queue, as SO_REUSEPORT gives, would do
neither). A worker that dies is started again; its siblings notice nothing but a model that may be away for a moment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from pelton.deployments import Deployment
from pelton.errors import NotFound, NotReady, PeltonError
from pelton.packages import Package
from pelton.registry import Registry
from pelton.server.control.plan import Scope
from pelton.server.lifecycle import cores
from pelton.server.workers.board import AWAY, Board
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
    Message,
    Place,
    Placed,
    Serving,
    Stop,
    done,
)
from pelton.server.workers.placement import Weight, place, weigh
from pelton.settings import Settings
from pelton.types import ModelRef

log = logging.getLogger(__name__)

COMMAND: Final = (sys.executable, "-P", "-m", "pelton.cli.worker")
MEBIBYTE: Final = 1024 * 1024
FAILED_STARTS: Final = 5  # in a row, of one worker: then the server ends
STEADY_SECONDS: Final = 30.0  # a worker that lived so long has not failed because of how it was started
PAUSE_FIRST, PAUSE_LONGEST = 0.1, 10.0
MARGIN_SECONDS: Final = 6.0  # that workers may take beyond what they were told, for giving models back
PATH_LIMIT: Final = 90  # of the folder; the name of a Unix socket may have about 104 bytes


class Restarts:
    """When a worker that ended is started again."""

    def __init__(self) -> None:
        self._crashes = 0
        self._failed_starts = 0

    def pause(self, served: bool, lived: float) -> float | None:
        """Seconds until the next start: none the first time, then more each time. None: it will never start.

        `served`: it had tried to load its models and took calls. `lived`: seconds since it was started."""
        self._failed_starts = 0 if served else self._failed_starts + 1
        if self._failed_starts >= FAILED_STARTS:
            return None
        self._crashes = 1 if lived >= STEADY_SECONDS else self._crashes + 1
        if self._crashes == 1:
            return 0.0
        return min(PAUSE_FIRST * 2.0 ** (self._crashes - 2), PAUSE_LONGEST)


class Child:
    """A running worker."""

    def __init__(self, index: int, process: subprocess.Popen[bytes], channel: Channel, now: float) -> None:
        self.index = index
        self.process = process
        self.channel = channel
        self.started = now
        self.serving = False
        self.drained = False

    def send(self, message: Message) -> None:
        with contextlib.suppress(Closed):  # it died; the kernel tells
            self.channel.send(message)


class Order(msgspec.Struct):
    """A change on its way. `asker`: who hears how it ended, and under which number; None: nobody."""

    change: Change
    asker: Child | None
    number: int
    waiting: set[int]
    error: Done | None = None


class Supervisor:
    """The parent of `settings.workers` processes that serve `packages` on `sock`."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        packages: Sequence[Package],
        sock: socket.socket,
        command: Sequence[str] = COMMAND,
        scope: Scope | None = None,
        desired: Mapping[str, Deployment] | None = None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._sock = sock
        self._command = command
        self._scope = scope or Scope(False, frozenset(package.name for package in packages))
        self._desired = dict(desired or {})  # what the store said last, as far as workers told
        self._fresh = True  # `_desired` was read a moment ago
        self._weights: dict[str, Weight] = {package.name: weigh(package) for package in packages}
        self._models: dict[str, Placed] = {}
        places = self._place()
        self._models = {package.name: Placed(package.version, places[package.name]) for package in packages}
        self._folder = ""
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, Child] = {}
        self._restarts = [Restarts() for _ in range(settings.workers)]
        self._due: dict[int, float] = {}  # workers that are started again, and when
        self._orders: dict[int, Order] = {}
        self._orders_given = 0
        self._stopping = False
        self._kill_at = float("inf")
        self._code = 0

    def run(self) -> int:
        """Serves until a signal; returns the exit code: the worst of the workers'."""
        with private_folder() as self._folder, self._signals() as wakeup:
            self._board = Board(self._folder, self._settings.workers)
            self._selector.register(wakeup, selectors.EVENT_READ, lambda: self._on_signals(wakeup))
            try:
                for index in range(self._settings.workers):
                    self._start(index)
                self._fresh = False
                while self._children or not self._stopping:
                    for key, _ in self._selector.select(self._wait_for()):
                        key.data()
                    self._on_time(time.monotonic())
            finally:
                self._kill()
                self._selector.close()
                self._board.close()
        return self._code

    # ---- signals and time

    @contextlib.contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """A socket that becomes readable at a signal."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        before = [signal.signal(number, lambda *_: None) for number in numbers]
        wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
            ours.close()
            theirs.close()

    def _on_signals(self, wakeup: socket.socket) -> None:
        for number in wakeup.recv(4096):
            if number == signal.SIGCHLD:
                self._reap()
            elif self._stopping:
                log.warning("second signal: ending now")
                self._code = 1
                self._kill()
            else:
                self._stop(self._settings.grace if number == signal.SIGTERM else 0.0)

    def _wait_for(self) -> float | None:
        """Seconds until something is due."""
        first = min([*self._due.values(), self._kill_at])
        return None if first == float("inf") else max(0.0, first - time.monotonic())

    def _on_time(self, now: float) -> None:
        for index in [index for index, due in self._due.items() if due <= now]:
            del self._due[index]
            self._start(index)
        if now >= self._kill_at:
            log.error("%d workers did not end in time: killing them", len(self._children))
            self._code = 1
            self._kill()

    # ---- the life of a worker

    def _start(self, index: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [*self._command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._sock.fileno()),
                process_group=0,  # Ctrl-C in a terminal is for the supervisor, which tells the workers
            )
        child = self._children[index] = Child(index, process, Channel(ours), time.monotonic())
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._hear(child))
        child.send(
            Handover(
                index,
                self._settings.workers,
                self._folder,
                self._sock.fileno(),
                self._settings_of(index),
                self._models,
                self._scope,
                self._desired,
                self._fresh,
            )
        )
        for order in self._orders.values():
            child.send(order.change)

    def _settings_of(self, index: int) -> Settings:
        """A worker without a big model of its own runs its share of the cores' batches."""
        slots = self._settings.slots
        if not slots:
            owner = any(placed.where == index for placed in self._models.values())
            slots = cores() if owner else max(1, cores() // self._settings.workers)
        return msgspec.structs.replace(self._settings, slots=slots)

    def _reap(self) -> None:
        for child in list(self._children.values()):
            if child.process.poll() is not None:
                self._ended(child, child.process.returncode)

    def _ended(self, child: Child, code: int) -> None:
        self._hear(child)  # its last words
        self._board.counts[child.index] = AWAY
        del self._children[child.index]
        with contextlib.suppress(KeyError):
            self._selector.unregister(child.channel.sock)
        child.channel.close()
        for number in list(self._orders):
            self._answered(number, child.index, None)
        if self._stopping:
            early = code == -signal.SIGTERM and not child.serving  # told to end by another, before it had a call
            self._code = max(self._code, 0 if early else 1 if code < 0 else code)
            self._finish_together()
            return
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        now = time.monotonic()
        pause = self._restarts[child.index].pause(child.serving, now - child.started)
        if pause is None:
            log.error(
                "worker %d %s; it ended %d times before it could serve: giving up. What it logged says why",
                child.index,
                how,
                FAILED_STARTS,
            )
            self._code = max(self._code, code, 1)
            self._stop(0.0)
            return
        log.error("worker %d (process %d) %s; it is started again", child.index, child.process.pid, how)
        self._due[child.index] = now + pause

    def _stop(self, grace: float) -> None:
        """All workers drain together. The port closes when the last of them has closed it."""
        self._stopping = True
        self._due.clear()
        self._sock.close()
        self._kill_at = time.monotonic() + grace + self._settings.stop_timeout + MARGIN_SECONDS
        for child in self._children.values():
            child.send(Stop(grace))

    def _finish_together(self) -> None:
        """No worker may go while a sibling's client waits for a model that only it holds."""
        if all(child.drained for child in self._children.values()):
            for child in self._children.values():
                child.send(Finish())

    def _kill(self) -> None:
        for child in self._children.values():
            child.process.kill()
        for child in list(self._children.values()):
            child.process.wait()
            child.channel.close()
        self._children.clear()

    # ---- what workers say

    def _hear(self, child: Child) -> None:
        if self._children.get(child.index) is not child:  # it ended a moment ago
            return
        try:
            for message in child.channel.messages():
                self._heed(child, message)
        except Closed:  # it is ending; SIGCHLD tells when it has
            with contextlib.suppress(KeyError):
                self._selector.unregister(child.channel.sock)

    def _heed(self, child: Child, message: Message) -> None:
        if isinstance(message, Serving):
            child.serving = True
        elif isinstance(message, Drained):
            child.drained = True
            if self._stopping:
                self._finish_together()
            else:
                child.send(Finish())  # somebody stopped this one alone
        elif isinstance(message, Done):
            self._answered(message.id, child.index, message)
        elif isinstance(message, Homeless):
            self._find_home(message)
        elif isinstance(message, Known):
            self._desired = message.desired
        elif isinstance(message, Asked):
            try:
                self._order(message.name, self._wanted(message), child, message.id)
            except PeltonError as error:
                child.send(done(message.id, error))

    # ---- models come and go

    def _wanted(self, asked: Asked) -> Placed | None:
        """What should be served under a name from now on. Raises what `Registry.resolve` raises, and NotFound."""
        if self._stopping:
            raise NotReady("the server is stopping")
        if asked.action == "unload":
            if asked.name not in self._models:
                raise NotFound(
                    f"unknown model {asked.name!r}; served here: {', '.join(sorted(self._models)) or 'none'}"
                )
            return None
        package = self._registry.resolve(ModelRef.parse(asked.name))
        self._weights[package.name] = weigh(package)
        return Placed(package.version, self._place()[package.name])

    def _find_home(self, homeless: Homeless) -> None:
        """Several workers may ask for the same model: they all hear the first answer."""
        name = homeless.name
        if name not in self._models:
            self._weights[name] = Weight(homeless.size, homeless.alone)
            self._models[name] = Placed("", self._place()[name])
        for child in self._children.values():
            child.send(Place(name, self._models[name].where))

    def _place(self) -> dict[str, int]:
        """Where each model lives; those that have a place keep it."""
        known = {name: placed.where for name, placed in self._models.items()}
        below = int(self._settings.replicate_below * MEBIBYTE)
        return place(self._weights, self._settings.workers, below, known)

    def _order(self, name: str, placed: Placed | None, asker: Child | None, number: int) -> None:
        self._orders_given += 1
        change = Change(self._orders_given, name, placed)
        self._orders[change.id] = Order(change, asker, number, set(self._children))
        for child in self._children.values():
            child.send(change)

    def _answered(self, number: int, index: int, answer: Done | None) -> None:
        """A worker has done its part of a change; None: it died, and its successor starts with what is wanted then."""
        order = self._orders.get(number)
        if order is None or index not in order.waiting:
            return
        order.waiting.discard(index)
        if answer is not None and answer.kind and order.error is None:
            order.error = answer
        if not order.waiting:
            del self._orders[number]
            self._changed(order)

    def _changed(self, order: Order) -> None:
        name, placed = order.change.name, order.change.placed
        error = order.error or Done(0)
        if error.kind and order.asker is not None:
            self._order(name, self._models.get(name), None, 0)  # all workers serve the same
        elif placed is None:
            self._models.pop(name, None)
            self._weights.pop(name, None)
        else:
            self._models[name] = placed
        if order.asker is not None:
            order.asker.send(Done(order.number, error.kind, error.message))


@contextlib.contextmanager
def private_folder() -> Iterator[str]:
    """A new folder that only this user may enter, with a path short enough for Unix sockets; removed at the end."""
    folder = tempfile.mkdtemp(prefix="pelton-")
    if len(os.fsencode(folder)) > PATH_LIMIT:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="pelton-", dir="/tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
