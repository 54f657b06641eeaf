"""User classes in processes of their own: nothing that they do, crash, exit, leak or print, reaches the server.

caller's thread --- run --> a free Worker --- socket pair, shared memory --> python_worker
keeper thread (one per process): starts it, logs what it prints, buries it, starts the next one
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from pelton.errors import InvalidInput, ModelFailed, NotReady, PackageInvalid
from pelton.runtimes.child_process import LogPipe, fate, process_file
from pelton.runtimes.python_class import UserClass
from pelton.runtimes.python_wire import (
    ANSWER,
    CALL,
    FAILED,
    READY,
    START,
    STOP,
    Broken,
    Channel,
    Header,
    pack,
    unpack,
)
from pelton.types import Array

LOG: Final = logging.getLogger("pelton.runtimes.python")
ATTEMPTS: Final = 3  # processes that a call tries when they died before it reached them
STOP_SECONDS: Final = 2.0  # asked to end; then SIGTERM
TERM_SECONDS: Final = 1.0  # then SIGKILL
PAUSE_FIRST, PAUSE_LONGEST = 0.1, 30.0
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Limits(msgspec.Struct, frozen=True):
    """Seconds: for import and `setup`; for one `predict`; that a call waits while no process is up."""

    setup: float
    predict: float
    restart: float


class NeverArrived(Exception):
    """The worker was gone before the model saw the request: another one may take it."""


class Raised(Exception):
    """`predict` raised, or answered what the signature forbids (then without a trace)."""

    def __init__(self, fault: str, trace: str) -> None:
        super().__init__(fault)
        self.trace = trace


class Traces:
    """Tracebacks of `predict` in the log: at most one a second, for callers decide how often it raises."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._next = 0.0
        self._left_out = 0

    def __call__(self, trace: str) -> None:
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        more = f" ({self._left_out} others since the last one shown)" if self._left_out else ""
        self._next, self._left_out = now + 1.0, 0
        LOG.error("[%s] predict raised%s\n%s", self._model, more, trace)


class Worker:
    """One process. Its keeper's thread calls `watch`; whoever took it calls `call`; anybody calls `stop` and `kill`."""

    def __init__(self, spec: UserClass, threads: int) -> None:
        self._spec = spec
        self.exited = threading.Event()
        self.fate = ""  # how it ended, once `exited` is set
        self.served = False  # has answered at least once
        self.ready = False
        self._asked = False
        self._reaping = threading.Lock()
        ours, theirs = socket.socketpair()
        try:
            command = [sys.executable, "-P", "-m", "pelton.runtimes.python_worker", str(theirs.fileno()), spec.model]
            self._process = subprocess.Popen(  # noqa: S603 - our own module; the model's name was checked
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in a terminal is for the server; helpers of the user's code die with it
                env=dict.fromkeys(_THREAD_VARIABLES, str(threads)) | os.environ,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.channel = Channel(ours, views=False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, inputs: Sequence[Array], limit: float) -> list[Array]:
        """Blocks, without any lock. Raises Raised; ModelFailed where the process died; NeverArrived where it had before."""
        specs = self._spec.signature.inputs
        request = Header(CALL, shapes=[list(array.shape) for array in inputs])
        blocks = [pack(array, spec) for array, spec in zip(inputs, specs, strict=True)]
        try:
            self.channel.send(request, blocks)
        except OSError:
            self._lost()
            raise NeverArrived from None
        try:
            header, body = self.channel.receive()
            if header.kind not in (ANSWER, FAILED):
                raise Broken("the answer is of another kind")
            outputs = unpack(header, body, self._spec.signature.outputs) if header.kind == ANSWER else []
        except BlockingIOError:
            self.kill()
            self._lost()
            raise ModelFailed(
                f"model {self._spec.model!r}: no answer within {limit:g} s; its process was ended"
            ) from None
        except ConnectionResetError:  # it ended with the request unread (or STOP, behind a request that it had read)
            self._lost()
            if not self._asked:
                raise NeverArrived from None
            raise self._died() from None
        except OSError:
            self._lost()
            raise self._died() from None
        self.channel.release()
        if header.held:
            self.channel.forget()
        if header.kind == FAILED:
            raise Raised(header.fault, header.trace)
        self.served = True
        return outputs

    def _died(self) -> ModelFailed:
        return ModelFailed(f"model {self._spec.model!r}: its process ended: {self.fate}")

    def _lost(self) -> None:
        """The channel is useless. An orderly exit may take a moment more; a process that only closed it is ended."""
        if not self.exited.wait(STOP_SECONDS):
            self.kill()
            self.exited.wait()

    def watch(self, started: Callable[[Worker, Header | None, str], None], limit: float) -> None:
        """Until the process is gone and reaped. Calls `started` once: with the READY header, or None and what failed."""
        log = LogPipe(LOG, self._spec.model, self._process.stdout)
        handle = process_file(self.pid)
        poll = select.poll()
        for fd in (log.fd, self.channel.fileno(), handle):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        channel = self.channel.fileno()
        deadline: float | None = time.monotonic() + limit
        try:
            self._greet()
            while not self._gone(handle):
                for fd, _ in poll.poll(_milliseconds(deadline, handle < 0)):
                    if fd == log.fd and not log.read():
                        poll.unregister(fd)
                    elif fd == channel:
                        poll.unregister(fd)
                        deadline = deadline if self._started(started) else None
                if deadline is not None and time.monotonic() > deadline:
                    deadline = None
                    started(self, None, f"setup took longer than {limit:g} s")
                    self.kill()
        finally:
            self._bury(handle)
            log.rest()
            self.exited.set()
        if deadline is not None:
            started(self, None, f"its process ended in setup: {self.fate}")

    def _greet(self) -> None:
        with contextlib.suppress(OSError):  # it died already: the loop below finds out how
            self.channel.send(Header(START, extra=msgspec.msgpack.encode(self._spec)))

    def _started(self, started: Callable[[Worker, Header | None, str], None]) -> bool:
        """True where the channel is broken and the process is about to be gone: how, is not known yet."""
        try:
            header, _ = self.channel.receive()
        except OSError:
            self.kill()
            return True
        if header.trace:
            LOG.error("[%s] setup raised\n%s", self._spec.model, header.trace)
        started(self, header if header.kind == READY else None, header.fault)
        return False

    def _gone(self, handle: int) -> bool:
        if handle >= 0:
            return bool(select.select([handle], [], [], 0)[0])
        return self._process.poll() is not None

    def _bury(self, handle: int) -> None:
        with self._reaping:
            if self._process.returncode is None:  # still a zombie: its group cannot belong to anybody else
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            self.fate = fate(self._process.wait())
        if handle >= 0:
            os.close(handle)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signals the whole group, unless it was reaped already."""
        with self._reaping:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, number)

    def ask(self) -> None:
        """Ends the process in good order once it is idle."""
        self._asked = True
        with contextlib.suppress(OSError):
            self.channel.post(Header(STOP))


class ProcessModel:
    """A pool of processes of one class. `run` takes a free one and waits for it without holding a lock."""

    def __init__(self, spec: UserClass, processes: int, threads: int, limits: Limits) -> None:
        """Returns when all are ready. Raises PackageInvalid where one cannot start."""
        self.signature = spec.signature
        self.declared: dict[str, Any] = {}
        self._spec = spec
        self._threads = threads
        self._limits = limits
        self._log_trace = Traces(spec.model)
        self._dtypes = [tensor.type.dtype for tensor in spec.signature.inputs]
        self._state = threading.Condition()  # guards all below; nobody computes or waits for a process under it
        self._free: list[Worker] = []
        self._workers: set[Worker] = set()
        self._up = 0
        self._trouble = ""
        self._loaded = False
        self._closing = False
        self._keepers = [
            threading.Thread(target=self._keep, name=f"pelton-{spec.model}-keeper-{i}", daemon=True)
            for i in range(processes)
        ]
        for keeper in self._keepers:
            keeper.start()
        with self._state:
            self._state.wait_for(lambda: self._up == processes or self._trouble)
            self._loaded = not self._trouble
        if not self._loaded:
            self.close()
            raise PackageInvalid(f"model {spec.model!r}: {self._trouble}")

    @property
    def pids(self) -> list[int]:
        """Of the processes that are up, for operators."""
        with self._state:
            return sorted(worker.pid for worker in self._workers if worker.ready)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Raises ModelFailed where the class raises, answers wrongly or its process dies; NotReady where none is up."""
        for array, dtype in zip(inputs, self._dtypes, strict=True):
            if array.dtype != dtype:
                raise InvalidInput(f"model {self._spec.model!r} got {array.dtype} for an input of {dtype}")
        for _ in range(ATTEMPTS):
            worker = self._take()
            try:
                return worker.call(inputs, self._limits.predict)
            except NeverArrived:
                continue
            except Raised as error:
                if error.trace:
                    self._log_trace(error.trace)
                raise ModelFailed(f"model {self._spec.model!r}: {error}") from None
            finally:
                self._give(worker)
        raise NotReady(f"model {self._spec.model!r}: its processes end before they can be asked")

    def _take(self) -> Worker:
        deadline = time.monotonic() + self._limits.restart
        with self._state:
            while self._closing or not self._free:
                if self._closing:
                    raise NotReady(f"model {self._spec.model!r} was unloaded")
                if self._up:  # busy, not broken: each call is bounded
                    self._state.wait()
                    deadline = time.monotonic() + self._limits.restart
                    continue
                remaining = deadline - time.monotonic()
                if self._trouble or remaining <= 0:
                    why = self._trouble or "its process is starting again"
                    raise NotReady(f"model {self._spec.model!r} cannot answer now: {why}")
                self._state.wait(remaining)
            return self._free.pop()

    def _give(self, worker: Worker) -> None:
        with self._state:
            if worker in self._workers and not worker.exited.is_set():
                self._free.append(worker)
                self._state.notify_all()
                return
        worker.channel.close()

    def _keep(self) -> None:
        losses = 0
        while not self._closing:
            worker = self._start()
            if worker is not None:
                worker.watch(self._started, self._limits.setup)
                self._remove(worker)
                losses = 0 if worker.served else losses
            losses += 1
            pause = 0.0 if losses == 1 else min(PAUSE_FIRST * 2.0 ** min(losses - 2, 20), PAUSE_LONGEST)
            with self._state:
                if not self._loaded and self._trouble:
                    return
                if self._state.wait_for(lambda: self._closing, pause):
                    return

    def _start(self) -> Worker | None:
        try:
            worker = Worker(self._spec, self._threads)
        except OSError as error:
            self._fail(f"cannot start a process: {error}")
            return None
        with self._state:
            self._workers.add(worker)
            late = self._closing
        if late:
            worker.kill()
        return worker

    def _started(self, worker: Worker, header: Header | None, fault: str) -> None:
        if header is None:
            self._fail(fault)
            return
        try:
            declared = msgspec.msgpack.decode(header.extra, type=dict[str, Any])
        except msgspec.DecodeError as error:
            self._fail(f"its first answer cannot be read: {error}")
            worker.kill()
            return
        worker.channel.timeout(self._limits.predict)
        with self._state:
            self.declared = declared
            worker.ready = True
            self._trouble = ""
            self._up += 1
            self._free.append(worker)
            self._state.notify_all()

    def _fail(self, fault: str) -> None:
        with self._state:
            if self._closing or (self._trouble and not self._loaded):
                return  # it was ended because another one had failed
            self._trouble = fault
            self._state.notify_all()
        LOG.error("[%s] did not start: %s", self._spec.model, fault)

    def _remove(self, worker: Worker) -> None:
        with self._state:
            self._workers.discard(worker)
            self._up -= worker.ready
            idle = worker in self._free
            if idle:
                self._free.remove(worker)
            self._state.notify_all()
            closing = self._closing
        if idle or not worker.ready:
            worker.channel.close()
        if not closing and worker.ready:
            LOG.error("[%s] process %d ended: %s; starting another", self._spec.model, worker.pid, worker.fate)

    def close(self) -> None:
        """Ends the processes: asks, SIGTERM after 2 s, SIGKILL after 3 s. Idle ones end within milliseconds."""
        with self._state:
            self._closing = True
            self._state.notify_all()
            workers = list(self._workers)
        for worker in workers:
            if worker.ready:
                worker.ask()
            else:
                worker.kill()  # still in setup: nothing that is worth an orderly end
        _end(workers)
        for keeper in self._keepers:
            keeper.join()


def _end(workers: Sequence[Worker]) -> None:
    for seconds, number in ((STOP_SECONDS, signal.SIGTERM), (TERM_SECONDS, signal.SIGKILL)):
        deadline = time.monotonic() + seconds
        for worker in workers:
            if not worker.exited.wait(max(0.0, deadline - time.monotonic())):
                worker.kill(number)
    for worker in workers:
        worker.exited.wait()


def _milliseconds(deadline: float | None, ticking: bool) -> float | None:
    """Without a process file the loop has to look itself, five times a second."""
    if deadline is not None:
        left = max(0.0, deadline - time.monotonic()) * 1000 + 1
        return min(left, 200.0) if ticking else left
    return 200.0 if ticking else None
