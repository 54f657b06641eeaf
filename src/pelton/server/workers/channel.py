"""What the supervisor and a worker tell each other: one JSON object a line, over a socket pair.

The end of the file means that the other side is dead, however it died: a worker whose supervisor is gone answers what
it has accepted and ends; the supervisor starts a worker that is gone again.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from pelton import errors
from pelton.deployments import Deployment
from pelton.server.control.plan import Scope
from pelton.settings import Settings

LINE_LIMIT: Final = 16 * 1024 * 1024  # the handover names every model
READ: Final = 65_536


class Placed(msgspec.Struct, frozen=True):
    """A model that should be served: its version, and its worker (`placement.EVERYWHERE`: all).

    The version is what it begins with where the store decides nothing; "": the store does."""

    version: str
    where: int


# ---- to a worker


class Handover(msgspec.Struct, frozen=True, tag=True):
    """The first message: who you are, what you serve, where your siblings listen. `listener` is an inherited file."""

    index: int
    workers: int
    folder: str
    listener: int
    settings: Settings
    models: dict[str, Placed]
    scope: Scope
    desired: dict[str, Deployment] = {}  # what the store was last known to say
    fresh: bool = False  # it was read a moment ago


class Change(msgspec.Struct, frozen=True, tag=True):
    """Load this version of a model, or (`placed` is None) unload it. Answered with Done."""

    id: int
    name: str
    placed: Placed | None


class Place(msgspec.Struct, frozen=True, tag=True):
    """A model that is new in the store lives in that worker, or in all (`placement.EVERYWHERE`)."""

    name: str
    where: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Take new calls for `grace` more seconds, answer all, and say Drained."""

    grace: float


class Finish(msgspec.Struct, frozen=True, tag=True):
    """No worker has a call left: end."""


# ---- from a worker


class Serving(msgspec.Struct, frozen=True, tag=True):
    """The worker is up: it listens, and has tried to load every model."""


class Asked(msgspec.Struct, frozen=True, tag=True):
    """Somebody asked this worker to load or unload a model. Answered with Done."""

    id: int
    action: Literal["load", "unload"]
    name: str


class Homeless(msgspec.Struct, frozen=True, tag=True):
    """A model is new in the store: where shall it live? Answered with Place, to all. `size`: bytes of its files."""

    name: str
    size: int
    alone: bool


class Known(msgspec.Struct, frozen=True, tag=True):
    """What the store says now: for a worker that is started while the store is away."""

    desired: dict[str, Deployment]


class Drained(msgspec.Struct, frozen=True, tag=True):
    """The worker's own clients are answered. Its siblings may still forward calls to it."""


# ---- both ways


class Done(msgspec.Struct, frozen=True, tag=True):
    """The Change or Asked of that number is finished. `kind` is the class of the error, empty when it went well."""

    id: int
    kind: str = ""
    message: str = ""

    def check(self) -> None:
        """Raises the error that came over the channel."""
        if self.kind:
            raise error_named(self.kind, self.message)


Message = Handover | Change | Place | Stop | Finish | Serving | Asked | Homeless | Known | Drained | Done

_encode: Final = msgspec.json.Encoder().encode
_decoder: Final = msgspec.json.Decoder(Message)


def done(number: int, error: errors.PeltonError | None = None) -> Done:
    """How something ended."""
    return Done(number, type(error).__name__, str(error)) if error else Done(number)


def error_named(kind: str, message: str) -> errors.PeltonError:
    """The error that was raised in another process."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, errors.PeltonError) and found is not errors.ExtraMissing:
        return found(message)
    return errors.PeltonError(message)  # ExtraMissing takes other arguments; its message says it all


class Closed(Exception):
    """The other side is gone."""


class Channel:
    """One end. `messages` reads what is there without waiting; `send` waits until the other side has room."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self.sock = sock
        self._buffer = bytearray()

    def send(self, message: Message) -> None:
        """Raises Closed."""
        try:
            self.sock.sendall(_encode(message) + b"\n")
        except OSError:
            raise Closed from None

    def receive(self) -> Message:
        """Waits for one message. Raises Closed."""
        while True:
            for message in self._whole(1):
                return message
            self._read(0)

    def messages(self) -> Iterator[Message]:
        """What has arrived. Raises Closed after the last one."""
        yield from self._whole(-1)
        try:
            while len(self._buffer) <= LINE_LIMIT:
                self._read(socket.MSG_DONTWAIT)
                yield from self._whole(-1)
        except (BlockingIOError, InterruptedError):
            return
        raise Closed  # a line without an end: nothing of ours writes that

    def close(self) -> None:
        self.sock.close()

    def _read(self, flags: int) -> None:
        try:
            data = self.sock.recv(READ, flags)
        except (BlockingIOError, InterruptedError):
            raise
        except OSError:
            raise Closed from None
        if not data:
            raise Closed
        self._buffer += data

    def _whole(self, most: int) -> Iterator[Message]:
        """The messages whose end has arrived, at most `most` (-1: all)."""
        while most and (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            most -= 1
            yield _decoder.decode(line)
