"""What to load and how long."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from pelton.errors import InvalidInput

MAX_BODIES: Final = 100_000
_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_OWN_HEADERS: Final = frozenset({"host", "content-length", "transfer-encoding", "connection"})


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The server, what is sent to it, and the latency that 99 % of the answers must hold, in milliseconds.

    `bodies` are sent in turn; give many different ones, or a response cache is what gets measured.
    """

    host: str
    port: int
    path: str
    bodies: tuple[bytes, ...]
    p99_ms: float
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    method: str = "POST"
    name: str = ""

    def __post_init__(self) -> None:
        if not self.bodies or len(self.bodies) > MAX_BODIES:
            raise InvalidInput(
                f"bodies: {len(self.bodies)} given; a measurement needs 1 to {MAX_BODIES:,} request bodies"
            )
        if not (math.isfinite(self.p99_ms) and self.p99_ms > 0):
            raise InvalidInput(f"p99_ms: {self.p99_ms} is not a latency; give milliseconds above 0")
        if not 0 < self.port < 65536:
            raise InvalidInput(f"port: {self.port} is not a port; give 1 to 65535")
        if not self.path.startswith("/") or not _printable(self.path):
            raise InvalidInput(
                f"path: {self.path!r} must start with '/' and be plain ASCII without spaces (percent-encode them)"
            )
        if not self.host or not _printable(self.host) or not self.method.isascii() or not self.method.isalpha():
            raise InvalidInput(f"host {self.host!r} or method {self.method!r} is not usable in a request")
        for name, value in self.headers:
            _check_header(name, value)

    @property
    def url(self) -> str:
        return f"http://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How a bench goes. Times are seconds.

    `callers`: the closed loops, each a number of callers that send their next request when answered.
    `rates`: measure these open-loop rates instead of searching one. `overload`: factor over capacity of the last step,
    0 for none. `max_connections` are enough for most; an open loop opens up to `most_connections` where the rate and the
    target need them, so that what is not answered does not keep back what comes. `fractions`: points of the curve, as shares of the rate found. `resolution`: how near the highest rate
    that holds and the lowest that does not must come, as a share.
    """

    callers: tuple[int, ...] = (1, 8, 32, 128)
    rates: tuple[float, ...] = ()
    warmup_seconds: float = 1.0
    step_seconds: float = 2.0
    confirm_seconds: float = 5.0
    longest_step_seconds: float = 60.0
    settle_seconds: float = 0.25
    resolution: float = 0.05
    fractions: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)
    overload: float = 2.0
    confidence: float = 0.99
    max_connections: int = 512
    most_connections: int = 8192
    timeout_seconds: float = 10.0
    seed: int = 1
    command: str = ""

    def __post_init__(self) -> None:
        if not self.callers or min(self.callers) < 1 or max(self.callers) > self.max_connections:
            raise InvalidInput(
                f"callers: {self.callers} must be at least one number between 1 and {self.max_connections}"
            )
        for name in ("step_seconds", "confirm_seconds", "longest_step_seconds", "timeout_seconds", "resolution"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InvalidInput(f"{name}: {getattr(self, name)} must be above 0")
        if self.most_connections < self.max_connections:
            raise InvalidInput(f"most_connections: {self.most_connections} is below max_connections")
        if self.settle_seconds < 0 or self.warmup_seconds < 0:
            raise InvalidInput("settle_seconds and warmup_seconds must be 0 or more")
        if not 0.5 <= self.confidence < 1:
            raise InvalidInput(f"confidence: {self.confidence} must be between 0.5 and 1, for example 0.99")
        if any(not (math.isfinite(rate) and rate > 0) for rate in (*self.rates, *self.fractions)):
            raise InvalidInput("rates and fractions must be above 0")
        if self.overload and self.overload < 1:
            raise InvalidInput(f"overload: {self.overload} is a factor over the capacity: 1 or more, or 0 for none")


def encode_requests(target: Target) -> list[bytes]:
    """The bytes of every request, one for each body, ready to be written."""
    lines = [f"{target.method} {target.path} HTTP/1.1", f"host: {target.authority}"]
    lines += [f"{name}: {value}" for name, value in target.headers]
    start = "\r\n".join(lines).encode("latin-1")
    return [start + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body for body in target.bodies]


def _printable(text: str) -> bool:
    return all("!" <= char <= "~" for char in text)


def _check_header(name: str, value: str) -> None:
    if not name or not _TOKEN.issuperset(name) or any(char in value for char in "\r\n\0"):
        raise InvalidInput(f"header {name!r}: not a valid header name or value")
    if not all(ord(char) < 256 for char in value):
        raise InvalidInput(f"header {name!r}: its value has characters outside Latin-1; encode them")
    if name.lower() in _OWN_HEADERS:
        raise InvalidInput(f"header {name!r} is set by the generator itself; leave it out")
