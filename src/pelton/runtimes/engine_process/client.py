"""The server's side of an engine's process: a `LanguageEngine` that starts it, talks to it and starts it again.

event loop   --- add, cancel --> channel --> the process          (never waits: what does not fit is kept and sent later)
event loop  <--- reported ------ channel <-- the process
keeper thread: starts the process, logs what it prints, notices its end, buries it, starts the next one
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from pelton.errors import ModelFailed, PeltonError
from pelton.runtimes.engine_process import wire
from pelton.runtimes.engine_process.order import EngineOrder
from pelton.runtimes.engine_process.process import LOG, Died, Process
from pelton.runtimes.language import Facts, Listener, Order
from pelton.runtimes.step_engine import LmOutput, StepReport

PAUSE_FIRST, PAUSE_LONGEST = 0.1, 30.0  # seconds between an end and the next start
HEALTHY: Final = 60.0  # seconds of life after which the next pause is the first one again
DRAIN_SECONDS: Final = 0.1
STOP_SECONDS: Final = 1.0  # asked to end; then SIGKILL
UNSENT_LIMIT: Final = 64 * 1024 * 1024
LOOKS: Final = 4  # a stalled process is noticed within 1 + 1/LOOKS times the limit


class Link:
    """The channel of one living process. All methods run on the event loop; none waits."""

    def __init__(self, process: Process, loop: asyncio.AbstractEventLoop, heard: Callable[[StepReport], None]) -> None:
        self.process = process
        self.running: set[str] = set()  # given to the engine, no last output yet
        self.last_heard = time.monotonic()  # of the process, or of the first order that it has
        self._loop = loop
        self._heard = heard
        self._channel = process.channel
        self._frames = wire.Frames()
        self._incoming = bytearray(wire.READ_SIZE)  # a fresh one for every read costs 50 us
        self._unsent = bytearray()
        self._writing = False
        self._open = True
        self._channel.setblocking(False)
        loop.add_reader(self._channel.fileno(), self._readable)

    def add(self, order: Order) -> str:
        """Why the order cannot go out; "" if it does."""
        if not self._open:
            return "the engine's process has just ended"
        if len(self._unsent) > UNSENT_LIMIT:
            return "the engine does not read its orders"
        try:
            frame = wire.encode(wire.Add(order))
        except (TypeError, ValueError, OverflowError) as error:
            return f"the order cannot be sent: {error}"
        if not self.running:
            self.last_heard = time.monotonic()
        self.running.add(order.request.id)
        self._send(frame)
        return ""

    def cancel(self, request_id: str) -> None:
        if self._open and request_id in self.running:
            self._send(wire.encode(wire.Cancel(request_id)))

    def _send(self, frame: bytes) -> None:
        if self._unsent:
            self._unsent += frame
            return
        try:
            sent = self._channel.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # it ended: the keeper tells how
        if sent < len(frame):
            self._unsent += frame[sent:]
            self._writing = True
            self._loop.add_writer(self._channel.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            sent = self._channel.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._unsent)
        del self._unsent[:sent]
        if not self._unsent:
            self._writing = False
            self._loop.remove_writer(self._channel.fileno())

    def _readable(self) -> None:
        try:
            size = self._channel.recv_into(self._incoming)
            data = bytes(memoryview(self._incoming)[:size])
            messages = [wire.read_report(frame) for frame in self._frames.take(data)]
        except BlockingIOError:
            return
        except wire.Broken as error:
            LOG.error("[process %d] %s: it is ended", self.process.pid, error)
            self._stop_listening()
            self.process.kill()
            return
        except OSError:
            data, messages = b"", []
        if not data:
            self._stop_listening()  # it ended: the keeper tells how
            return
        self.last_heard = time.monotonic()
        for message in messages:
            if isinstance(message, wire.Report):
                self._deliver(message.report)

    def _deliver(self, report: StepReport) -> None:
        for output in report.outputs:
            if output.finish_reason is not None:
                self.running.discard(output.request_id)
        self._heard(report)

    def _stop_listening(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._channel.fileno())
            if self._writing:
                self._loop.remove_writer(self._channel.fileno())

    def end(self, drain: bool) -> None:
        """Reads what the process still said before its end, if so, and closes the channel."""
        self._channel.settimeout(DRAIN_SECONDS)  # a helper of the engine that survived may hold the other end
        while drain and self._open:
            self._readable()
        self._stop_listening()
        self._channel.close()


class EngineProcess:
    """A `LanguageEngine` (`pelton.runtimes.language`)."""

    def __init__(self, order: EngineOrder) -> None:
        """Returns when the weights are loaded. Raises what building raised; ModelFailed where the process ended."""
        self._order = order
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: Listener | None = None
        self._link: Link | None = None  # the event loop's
        self._early: list[Order] = []
        self._state = threading.Condition()  # guards what follows; nobody waits for a process under it
        self._process: Process | None = None
        self._up = False  # the process has said that it is ready
        self._facts: Facts | None = None
        self._trouble: PeltonError | None = None  # of the first start
        self._reason = ""
        self._why = ""
        self._closing = False
        self.restarts = 0
        self._keeper = threading.Thread(target=self._keep, name=f"pelton-{order.model}-keeper", daemon=True)
        self._keeper.start()
        with self._state:
            self._state.wait_for(lambda: self._facts or self._trouble)
        if self._facts is None:
            self._keeper.join()
            raise self._trouble or ModelFailed(f"model {order.model!r} was closed while it was loading")

    # ---- the contract

    @property
    def facts(self) -> Facts:
        assert self._facts is not None
        return self._facts

    @property
    def pid(self) -> int:
        """Of its process; 0 while there is none."""
        process = self._process
        return process.pid if process is not None and self._up else 0

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.pid,) if self.pid else ()

    def explain(self, why: str) -> None:
        """Why this engine was chosen, instead of what it says of itself. Before it is attached."""
        with self._state:
            self._why = why
            self._facts = replace(self.facts, why=why)

    def attach(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        with self._state:
            if self._loop is not None:
                raise RuntimeError(f"model {self._order.model!r}: its engine is attached already")
            self._loop, self._listener = loop, listener
            process, reason = (self._process if self._up else None), self._reason
        early, self._early = self._early, []
        for order in early:
            self._refuse(order.request.id, "the engine was not attached yet")
        if process is not None:
            self._link = Link(process, loop, self._reported)
        else:
            loop.call_soon(self._tell_lost, reason)

    def add(self, order: Order) -> None:
        if self._loop is None:
            self._early.append(order)
            return
        link = self._link
        why = f"the engine is away: {self._reason}" if link is None else link.add(order)
        if why:
            self._refuse(order.request.id, why)

    def cancel(self, request_id: str) -> None:
        if self._link is not None:
            self._link.cancel(request_id)

    def close(self) -> None:
        """Asks, then SIGKILL after a second."""
        with self._state:
            self._closing = True
            self._state.notify_all()
            process, up = self._process, self._up
        if process is not None:
            if up:
                process.ask()
                process.exited.wait(STOP_SECONDS)
            process.kill()
        self._keeper.join()

    # ---- on the event loop

    def _reported(self, report: StepReport) -> None:
        listener = self._listener
        if self._closing or listener is None:
            return
        try:
            listener.reported(report)
        except Exception:  # noqa: BLE001 - the next report is for others
            LOG.exception("[%s] a report could not be taken", self._order.model)

    def _refuse(self, request_id: str, why: str) -> None:
        """Later, never inside of `add`."""
        assert self._loop is not None
        self._loop.call_soon(self._reported, refused([request_id], why))

    def _tell_lost(self, reason: str) -> None:
        if not self._closing and self._listener is not None:
            self._listener.lost(reason)

    def _ended(self, process: Process) -> None:
        link, self._link = self._link, None
        if link is not None and link.process is process:
            link.end(drain=not self._closing)
        else:
            process.channel.close()
        self._tell_lost(process.reason)

    def _started(self, process: Process, facts: Facts) -> None:
        if self._closing or self._loop is None:
            process.channel.close()
            return
        self._link = Link(process, self._loop, self._reported)
        if self._listener is not None:
            self._listener.back(facts)

    def _on_loop(self, call: Callable[..., None], *arguments: object) -> bool:
        """False where there is no loop, or it is closed: then nobody listens."""
        if self._loop is None:
            return False
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            return False
        return True

    # ---- the keeper's thread

    def _keep(self) -> None:
        pause = PAUSE_FIRST
        while not self._closing:
            started = time.monotonic()
            try:
                process = Process(self._order)
            except OSError as error:
                self._failed(ModelFailed(f"model {self._order.model!r}: cannot start a process: {error}"))
            else:
                self._serve(process)
            with self._state:
                if self._facts is None:
                    return
                if time.monotonic() - started > HEALTHY:
                    pause = PAUSE_FIRST
                self._state.wait_for(lambda: self._closing, pause)
            pause = min(2 * pause, PAUSE_LONGEST)

    def _serve(self, process: Process) -> None:
        """One life."""
        with self._state:
            self._process = process
            late = self._closing
        if late:
            process.kill()
        trouble: PeltonError | None = None
        try:
            self._ready(process, process.start(self._order.options.start_seconds))
            limit = self._order.options.stall_seconds
            process.watch(limit / LOOKS, lambda: self._stalled(process, limit))
        except PeltonError as error:
            trouble = error
            process.kill()
        finally:
            process.bury()
            with self._state:
                self._up, self._process = False, None
                self._reason = process.reason
                attached = self._loop is not None
                if self._facts is not None and not self._closing:
                    self.restarts += 1
        if trouble is not None:
            process.channel.close()
            self._failed(ModelFailed(f"{trouble}: {process.reason}") if isinstance(trouble, Died) else trouble)
            return
        if not self._closing:
            LOG.error("[%s] process %d: %s; starting another", self._order.model, process.pid, process.reason)
        if not (attached and self._on_loop(self._ended, process)):
            process.channel.close()

    def _ready(self, process: Process, facts: Facts) -> None:
        with self._state:
            self._up = True
            self._facts = facts = replace(facts, why=self._why or facts.why)
            attached = self._loop is not None
            self._state.notify_all()
        if attached:
            self._on_loop(self._started, process, facts)

    def _failed(self, trouble: PeltonError) -> None:
        with self._state:
            self._reason = str(trouble)
            if self._facts is None:
                self._trouble = trouble
                self._state.notify_all()
        if self._facts is not None and not self._closing:
            LOG.error("[%s] did not start: %s", self._order.model, trouble)

    def _stalled(self, process: Process, limit: float) -> bool:
        link = self._link
        if link is None or link.process is not process or not link.running:
            return False
        return time.monotonic() - link.last_heard > limit


def refused(request_ids: Sequence[str], error: str) -> StepReport:
    """A report that no step made."""
    outputs = tuple(LmOutput(request_id, (), "failed", error=error) for request_id in request_ids)
    return StepReport(0, (), outputs, 0.0, (), 0, 0, 0)
