"""An engine's own process: `python -P -m pelton.runtimes.engine_process.child CHANNEL MODEL`. Started by `process`.

    take orders without waiting -> step -> send the report -> ...

Standard output and error are pipes to the server's log. The process ends when the server closes the channel, also when
the server was killed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from pelton.errors import ExtraMissing, ModelFailed, PeltonError
from pelton.runtimes.child_process import die_first, die_with_server, end_with_server, print_line_by_line
from pelton.runtimes.engine_process import wire
from pelton.runtimes.engine_process.order import Built, EngineOrder
from pelton.runtimes.language import ENGINES, Order
from pelton.runtimes.step_engine import Grammar, GrammarSpec, LmOutput, StepReport

if TYPE_CHECKING:
    from pelton.language.grammar import Vocabulary

STEP_RAISED: Final = 70  # exit code
NICE: Final = 1  # the server's event loop goes first


class Host:
    """The loop around one engine."""

    def __init__(self, channel: socket.socket, built: Built, compile_grammar: Callable[[GrammarSpec], Grammar]) -> None:
        self._channel = channel
        self._engine = built.engine
        self._close = built.close
        self._grammars = built.grammars or compile_grammar
        self._frames = wire.Frames()
        self._live: set[str] = set()  # given to the engine, no last output yet
        self._compiling: dict[str, Order] = {}
        self._compiler = ThreadPoolExecutor(1, "pelton-grammar")
        self._compiled: SimpleQueue[tuple[Order, Grammar | str]] = SimpleQueue()
        self._bell, self._ring = os.pipe()
        os.set_blocking(self._bell, False)
        self._poll = select.poll()
        for fd in (channel.fileno(), self._bell):
            self._poll.register(fd, select.POLLIN)
        interrupt = getattr(built.engine, "interrupt", None)
        if interrupt is not None:
            interrupt((channel.fileno(), self._bell))

    def close(self) -> None:
        if self._close is not None:
            self._close()

    def run(self) -> None:
        """Until the server closes its half of the channel, or a step raises: then all requests fail, and so it does."""
        while self._take_orders(wait=not self._engine.has_work()):
            if not self._engine.has_work():
                continue
            try:
                report = self._engine.step()
            except Exception as error:
                self._fail(sorted(self._live | set(self._compiling)), f"the engine failed in a step: {_words(error)}")
                raise
            self._send(report)

    def _take_orders(self, wait: bool) -> bool:
        """False when the server wants this process to end."""
        for fd, _ in self._poll.poll(None if wait else 0):
            if fd == self._bell:
                self._take_compiled()
                continue
            try:
                data = self._channel.recv(wire.READ_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            if not data:
                return False
            for frame in self._frames.take(data):
                self._take(wire.read_order(frame))
        return True

    def _take(self, message: wire.ToEngine | wire.Unreadable) -> None:
        if isinstance(message, wire.Add):
            order = message.order
            if order.grammar is None:
                self._add(order)
            else:
                self._compiling[order.request.id] = order
                self._compiler.submit(self._compile, order, order.grammar).add_done_callback(_show)
        elif isinstance(message, wire.Cancel):
            if self._compiling.pop(message.request_id, None) is not None:
                self._say([LmOutput(message.request_id, (), "cancelled")])
            else:
                self._engine.cancel(message.request_id)
        elif isinstance(message, wire.Unreadable):
            self._fail([message.request_id], message.error)

    def _compile(self, order: Order, spec: GrammarSpec) -> None:
        """In the compiler's thread: a schema may take longer than a step."""
        try:
            self._compiled.put((order, self._grammars(spec)))
        except Exception as error:  # noqa: BLE001 - whatever the compiler does, it is this request's
            self._compiled.put((order, f"the grammar cannot be used: {_words(error)}"))
        os.write(self._ring, b"!")

    def _take_compiled(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._bell, 4096)
        while not self._compiled.empty():
            order, grammar = self._compiled.get()
            if self._compiling.get(order.request.id) is not order:
                continue  # cancelled meanwhile
            del self._compiling[order.request.id]
            if isinstance(grammar, str):
                self._fail([order.request.id], grammar)
            else:
                self._add(replace(order, request=replace(order.request, grammar=grammar)))

    def _add(self, order: Order) -> None:
        request = order.request
        try:
            self._engine.add(request)
        except ValueError as error:
            self._fail([request.id], str(error))
        else:
            self._live.add(request.id)

    def _send(self, report: StepReport) -> None:
        for output in report.outputs:
            if output.finish_reason is not None:
                self._live.discard(output.request_id)
        if report.outputs or report.shares or report.preempted:
            self._channel.sendall(wire.encode(wire.Report(report)))

    def _say(self, outputs: Sequence[LmOutput]) -> None:
        """What no step brings."""
        self._channel.sendall(wire.encode(wire.Report(StepReport(0, (), tuple(outputs), 0.0, (), 0, 0, 0))))

    def _fail(self, request_ids: Sequence[str], error: str) -> None:
        if request_ids:
            self._say([LmOutput(request_id, (), "failed", error=error) for request_id in request_ids])


def main(arguments: list[str]) -> int:
    print_line_by_line()
    die_first()
    die_with_server()
    faulthandler.enable()
    os.nice(NICE)
    channel = socket.socket(fileno=int(arguments[0]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a service manager signals all at once; the server decides when
    threading.Thread(target=end_with_server, args=(channel.fileno(),), name="pelton-server", daemon=True).start()
    try:
        order = _first(channel)
        host = None if order is None else _build(channel, order)
        if host is not None:
            try:
                host.run()
            finally:
                host.close()
    except ConnectionError as error:
        if isinstance(error, wire.Broken):
            traceback.print_exc()
            return 1
        return 0  # the server is gone
    except Exception:  # noqa: BLE001 - the engine's; the state behind it is unknown
        traceback.print_exc()
        return STEP_RAISED
    return 0


def _first(channel: socket.socket) -> EngineOrder | None:
    """None where the server left before it said what to load."""
    frames = wire.Frames()
    while data := channel.recv(wire.READ_SIZE):
        for frame in frames.take(data):
            message = wire.read_order(frame)
            if not isinstance(message, wire.Start):
                raise wire.Broken("the first frame must be a Start")
            return message.order
    return None


def _build(channel: socket.socket, order: EngineOrder) -> Host | None:
    try:
        built: Built = importlib.import_module(ENGINES[order.engine]).build(order)
        host = Host(channel, built, lambda spec: _compile_grammar(order.folder, spec))
    except PeltonError as error:
        extra = error.extra if isinstance(error, ExtraMissing) else ""
        channel.sendall(wire.encode(wire.Failed(type(error).__name__, str(error), extra)))
        return None
    except Exception as error:  # noqa: BLE001 - the engine's
        traceback.print_exc()
        message = f"model {order.model!r}: engine {order.engine!r} cannot load it: {_words(error)}"
        channel.sendall(wire.encode(wire.Failed(ModelFailed.__name__, message)))
        return None
    channel.sendall(wire.encode(wire.Ready(built.facts)))
    return host


@cache
def _vocabulary(folder: str) -> Vocabulary:
    from pelton.language.grammar import Vocabulary

    return Vocabulary.read(Path(folder))


def _compile_grammar(folder: str, spec: GrammarSpec) -> Grammar:
    return _vocabulary(folder).compile(spec)


def _words(error: BaseException) -> str:
    if isinstance(error, PeltonError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _show(done: Future[None]) -> None:
    if done.exception() is not None:
        traceback.print_exception(done.exception())


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an engine's threads do not hold it up
