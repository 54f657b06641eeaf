"""What headers say about a call: its id, deadline, priority and trace."""

from __future__ import annotations

import itertools
import os
from typing import Final, Protocol

from pelton.errors import InvalidInput
from pelton.records.trace_context import valid_traceparent

KEY: Final = b"pelton-key"  # calls with the same key go to the same version while a canary runs
MAX_ID: Final = 128
ID_PREFIX: Final = f"{os.getpid():x}{int.from_bytes(os.urandom(4)):08x}-"
ID_NUMBER: Final = itertools.count()


class Headers(Protocol):
    """Where they are read from: a request. `special`: whether any of them may be there at all."""

    special: bool

    def header(self, name: bytes) -> bytes | None:
        """The value of a header; names are lower case."""


def new_id() -> str:
    """A request id, unique in the fleet."""
    return f"{ID_PREFIX}{next(ID_NUMBER):x}"


def request_id(request: Headers) -> str:
    """The client's own id where it sent a usable one, else a new one."""
    if request.special:
        given = request.header(b"x-request-id")
        if given and len(given) <= MAX_ID and given.isascii() and given.decode().isprintable():
            return given.decode()
    return new_id()


def timeout_of(request: Headers) -> float:
    """The caller's own deadline in seconds, 0 for none."""
    given = request.header(b"pelton-timeout-ms")
    if given is None:
        return 0.0
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 < value <= 86_400_000:
        raise InvalidInput("the header pelton-timeout-ms must be a number of milliseconds above 0")
    return value / 1e3


def priority_of(request: Headers) -> int:
    """The caller's urgency: larger goes first, 0 is the default."""
    given = request.header(b"pelton-priority")
    if given is None:
        return 0
    try:
        value = int(given)
    except ValueError:
        value = 99
    if not -8 <= value <= 8:
        raise InvalidInput("the header pelton-priority must be a whole number from -8 to 8; larger is more urgent")
    return value


def trace_of(request: Headers) -> str:
    """The W3C trace context's `traceparent`, or nothing where it is absent or malformed."""
    given = request.header(b"traceparent")
    return given.decode("ascii") if given is not None and valid_traceparent(given) else ""
