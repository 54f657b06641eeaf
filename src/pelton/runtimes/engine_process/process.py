"""One process of an engine, from its start to its burial. Its keeper's thread calls `start` and `watch`."""

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
from collections.abc import Callable
from typing import Final

from pelton import errors
from pelton.errors import ExtraMissing, ModelFailed, PeltonError
from pelton.runtimes.child_process import LogPipe, fate, process_file
from pelton.runtimes.engine_process import wire
from pelton.runtimes.engine_process.order import EngineOrder
from pelton.runtimes.language import Facts

LOG: Final = logging.getLogger("pelton.runtimes.language")
TICK: Final = 0.2  # seconds between looks where the system has no file for a process
LINES_SHOWN: Final = 1
END_SECONDS: Final = 2.0  # from a closed channel to the end of the process


class Died(ModelFailed):
    """The process ended before it was ready: `Process.reason` will say how."""


class Process:
    """A child and both ends of what connects it: the channel for its owner, the log pipe for `watch`."""

    def __init__(self, order: EngineOrder) -> None:
        """Starts it. Raises OSError."""
        self._order = order
        self._reaping = threading.Lock()
        self.exited = threading.Event()
        self.reason = ""  # how it ended, in words, once `exited` is set
        self._sentence = ""  # why it was ended here
        self.channel, theirs = socket.socketpair()
        module = "pelton.runtimes.engine_process.child"
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module; the model's name was checked
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), order.model],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                # Ctrl-C in a terminal is for the server. Not a session of its own: Linux would schedule that as a group
                # that ignores the niceness of its members.
                process_group=0,
            )
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()
        self._log = LogPipe(LOG, order.model, self._process.stdout)
        self._handle = process_file(self.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, seconds: float) -> Facts:
        """Until the weights are loaded. Raises what building raised, ModelFailed where the process ended or is too slow."""
        model = self._order.model
        deadline = time.monotonic() + seconds
        frames = wire.Frames()
        with contextlib.suppress(OSError):  # it died already: the loop below finds out how
            self.channel.sendall(wire.encode(wire.Start(self._order)))
        while (left := deadline - time.monotonic()) > 0:
            if self.channel.fileno() in self._look(left, channel=True):
                try:
                    data = self.channel.recv(wire.READ_SIZE)
                    messages = [wire.read_report(frame) for frame in frames.take(data)]
                except wire.Broken as error:
                    raise ModelFailed(f"model {model!r}: {error}") from None
                except OSError:
                    data, messages = b"", []
                if not data:
                    self._look(END_SECONDS, channel=False)
                    raise Died(f"model {model!r} could not be loaded")
                for message in messages:
                    if isinstance(message, wire.Ready):
                        return message.facts
                    raise rebuilt(message)
            if self._gone():
                raise Died(f"model {model!r} could not be loaded")
        raise ModelFailed(f"model {model!r}: loading took longer than {seconds:g} s (option start_seconds)")

    def watch(self, seconds: float, stalled: Callable[[], bool]) -> None:
        """Until the process ended. Asks every `seconds` whether it is `stalled`, and then ends it."""
        ask = time.monotonic() + seconds
        while not self._gone():
            self._look(seconds, channel=False)
            if time.monotonic() >= ask:
                ask = time.monotonic() + seconds
                if stalled():
                    limit = self._order.options.stall_seconds
                    self._sentence = f"it gave no sign of life for {limit:g} s and was killed (option stall_seconds)"
                    LOG.error("[%s] process %d gives no sign of life: it is ended", self._order.model, self.pid)
                    self.kill()

    def bury(self) -> None:
        """Ends what is left of it, reads the last of what it printed and sets `reason`."""
        with self._reaping:
            if self._process.returncode is None:  # still a zombie: its group cannot belong to anybody else
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            code = self._process.wait()
        if self._handle >= 0:
            os.close(self._handle)
        self._log.rest()
        lines = [line for line in self._log.last if line.strip()][-LINES_SHOWN:]
        self.reason = f"its engine's process ended: {self._sentence or fate(code)}" + (
            "".join(f"; {line}" for line in lines)
        )
        self.exited.set()

    def kill(self) -> None:
        """Signals the whole group, unless it was reaped already."""
        with self._reaping:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)

    def ask(self) -> None:
        """Ends it after the step that runs. From any thread."""
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_WR)

    def _look(self, seconds: float, channel: bool) -> list[int]:
        """Waits for the log, the end and (if so) the channel; reads the log. What else is ready."""
        poll = select.poll()
        for fd in (self._log.fd, self._handle, self.channel.fileno() if channel else -1):
            if fd >= 0 and not (fd == self._log.fd and self._log.ended):
                poll.register(fd, select.POLLIN)
        if self._handle < 0:
            seconds = min(seconds, TICK)
        ready = [fd for fd, _ in poll.poll(max(0.0, seconds) * 1000 + 1)]
        if self._log.fd in ready:
            self._log.read()
        return ready

    def _gone(self) -> bool:
        if self._handle >= 0:
            return bool(select.select([self._handle], [], [], 0)[0])
        with self._reaping:  # without the file it is reaped here, and its group is signalled no more
            return self._process.poll() is not None


def rebuilt(message: wire.FromEngine) -> PeltonError:
    """The error that building raised, as its own class."""
    if not isinstance(message, wire.Failed):
        return ModelFailed("an engine's process reports before it is ready")
    if message.kind == ExtraMissing.__name__:
        missing = ExtraMissing("", message.extra)
        missing.args = (message.message,)
        return missing
    kind = getattr(errors, message.kind, ModelFailed)
    return kind(message.message) if issubclass(kind, PeltonError) else ModelFailed(message.message)
