"""Processor time of the path itself: bytes are fed to connections, answers are taken from them; no socket, no client.

    python benchmarks/serving/path.py [--callers 32] [--body plain|v2|v2bin] [--stub] [--profile]

All callers ask in every turn of a loop that is no more than a list of callbacks. `--stub` answers with constants, so that
what is left is Pelton's own; the figure is microseconds of processor time a request, the best of many short runs. It is much
steadier than requests per second: a change of half a microsecond shows.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import payloads

from pelton import importers
from pelton.engine import Engine
from pelton.records import Ledger
from pelton.registry import Registry
from pelton.replicas import Replica
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.contract import load as load_runtime
from pelton.scheduling import Executor
from pelton.server.dispatcher import Dispatcher
from pelton.server.inference import hand_on
from pelton.server.lifecycle import settle_garbage
from pelton.server.routes import Routes
from pelton.server.wire.connection import Connection
from pelton.server.wire.inbox import Inbox
from pelton.server.wire.known_heads import Heads
from pelton.server.wire.limits import Limits

HOME = Path(os.environ.get("PEERBENCH_HOME", "~/.cache/pelton-peerbench")).expanduser()
TARGETS = {"plain": "/predict/m", "v2": "/v2/models/m/infer", "v2bin": "/v2/models/m/infer"}


class Timer:
    """A callback that may be called off."""

    def __init__(self, callback: Any, arguments: Any) -> None:
        self._callback, self._arguments = callback, arguments

    def run(self) -> None:
        if self._callback is not None:
            self._callback(*self._arguments)

    def cancel(self) -> None:
        self._callback = None


class Loop:
    """What the path needs of an event loop."""

    def __init__(self) -> None:
        self.callbacks: deque[Any] = deque()

    def call_soon(self, callback: Any, *arguments: Any) -> None:
        self.callbacks.append((callback, arguments))

    call_soon_threadsafe = call_soon  # a deque takes from any thread

    def call_later(self, seconds: float, callback: Any, *arguments: Any) -> Timer:
        """A wait is spent on asking again: nothing else could happen meanwhile."""
        timer = Timer(callback, arguments)
        self.call_soon(timer.run)
        return timer

    def turn(self) -> None:
        for _ in range(len(self.callbacks)):
            callback, arguments = self.callbacks.popleft()
            callback(*arguments)


class Transport:
    """Counts answers and keeps the last one."""

    def __init__(self) -> None:
        self.answers = 0
        self.last = b""

    def write(self, data: bytes) -> None:
        self.answers += 1
        self.last = data


class Stub:
    """Answers at once, with the same numbers."""

    def __init__(self, model: Any) -> None:
        self.signature = model.signature
        self._answers = np.random.default_rng(0).random((4096, 2), np.float32)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        return [self._answers[: len(inputs[0])]]

    def close(self) -> None:
        pass


class Composition:
    """The composition of `pelton.server.process`, less sockets."""

    def __init__(self, home: Path, stub: bool) -> None:
        registry = Registry(home)
        package = importers.add(str(HOME / "models" / "T.onnx"), registry, importers.Options(name="m"))
        model = load_runtime(package, RuntimeOptions())
        clock = time.perf_counter
        self.replica = Replica(package, Stub(model) if stub else model, clock)
        self.loop: Any = Loop()
        executor = Executor(self.loop, 1, clock)
        self.engine = Engine(self.loop, executor, Ledger(clock), clock, hand_on)
        self.engine.serve(self.replica, self.replica.profile())
        limits, heads = Limits(), Heads()
        inbox = Inbox(self.loop.call_soon, clock, lambda: (dispatch.submit(), executor.pump()))  # type: ignore[arg-type, return-value]
        dispatch = Dispatcher(self.engine, Routes(limits), None, limits, None, inbox)  # type: ignore[arg-type]
        self._make = lambda: Connection(dispatch, set(), limits, clock, heads, inbox)

    def connect(self) -> tuple[Connection, Transport]:
        connection, transport = self._make(), Transport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        return connection, transport

    def run(self, callers: list[tuple[Connection, Transport]], requests: list[bytes], turns: int) -> float:
        """Seconds of processor time for `turns` requests of each caller."""
        loop, place = self.loop, 0
        asked = sum([transport.answers for _, transport in callers])
        begin = time.process_time()
        for _ in range(turns):
            for connection, _ in callers:
                connection.data_received(requests[place])
                place = (place + 1) % len(requests)
            asked += len(callers)
            while loop.callbacks or sum([transport.answers for _, transport in callers]) < asked:
                loop.turn()
        return time.process_time() - begin


def request(kind: str, i: int) -> bytes:
    body, headers = payloads.encode("T", kind, i)
    lines = [f"POST {TARGETS[kind]} HTTP/1.1", "Host: 127.0.0.1:8080", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *[f"{name}: {value}" for name, value in headers.items()], "", ""]).encode() + body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--body", choices=sorted(TARGETS), default="plain")
    parser.add_argument("--stub", action="store_true", help="constants instead of the model")
    parser.add_argument("--profile", action="store_true", help="where the time goes, by function")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        path = Composition(Path(home), arguments.stub)
        callers = [path.connect() for _ in range(arguments.callers)]
        requests = [request(arguments.body, i) for i in range(4096)]
        path.run(callers, requests, 200)
        settle_garbage()
        seconds = [path.run(callers, requests, arguments.turns) for _ in range(arguments.runs)]
        each = sorted([one / arguments.turns / arguments.callers * 1e6 for one in seconds])
        if not callers[0][1].last.startswith(b"HTTP/1.1 200"):
            raise SystemExit(callers[0][1].last.decode())
        print(f"{arguments.body}: {each[0]:.2f} us a request at best, {each[len(each) // 2]:.2f} in the middle")
        if arguments.profile:
            profile = cProfile.Profile()
            profile.runcall(path.run, callers, requests, arguments.turns)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
