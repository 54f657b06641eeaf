"""Which request targets are inferences, of which protocol, model and version."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from pelton.engine import Served
from pelton.server.protocols.codec import Codec
from pelton.server.protocols.kserve import KserveCodec
from pelton.server.protocols.native import NativeCodec
from pelton.server.protocols.oip import OipCodec
from pelton.server.protocols.quick import Quick
from pelton.server.wire.limits import Limits

CACHED: Final = 4096  # routes kept; a flood of invented names cannot grow it further

NAME = r"([A-Za-z0-9_.\-]{1,100})"
PATTERNS: Final[tuple[tuple[re.Pattern[str], type[OipCodec | KserveCodec | NativeCodec]], ...]] = (
    (re.compile(rf"/v2/models/{NAME}(?:/versions/{NAME})?/infer"), OipCodec),
    (re.compile(rf"/v1/models/{NAME}(?:/versions/{NAME})?:predict"), KserveCodec),
    (re.compile(rf"/predict/{NAME}(?:/{NAME})?"), NativeCodec),
)


class Route:
    """One target. A codec is compiled for every version that answers, and kept with it.

    `quick` is the shortest way through the protocol for `served`, the version that answered last, and `compiled` the
    whole of it. `quick` is None where there is none, or the target names a version."""

    __slots__ = ("_limits", "compiled", "make", "name", "protocol", "quick", "served", "version")

    def __init__(
        self, name: str, version: str, make: type[OipCodec | KserveCodec | NativeCodec], limits: Limits
    ) -> None:
        self.name = name
        self.version = version
        self.protocol = make.protocol
        self.make = make
        self.served: Served | None = None
        self.compiled: Codec | None = None
        self.quick: Quick | None = None
        self._limits = limits

    def codec(self, served: Served) -> Codec:
        """The protocol, compiled for `served`."""
        codec: Codec | None = served.codecs.get(self.make)
        if codec is None:
            codec = served.codecs[self.make] = self.make(served, self._limits)
        if not self.version:
            self.served, self.compiled, self.quick = served, codec, codec.quick
        return codec


class Routes:
    """Targets as bytes -> routes, remembered."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._cache: dict[bytes, Route] = {}
        self.known = self._cache.get  # the hot path: a route that was found before

    def find(self, target: bytes) -> Route | None:
        """The inference route of a request target, or None: another kind of request."""
        if (route := self._cache.get(target)) is not None:
            return route
        path = target.partition(b"?")[0]
        if b"%" in path:
            slashes = path.count(b"/")
            path = unquote_to_bytes(path)
            if path.count(b"/") != slashes:  # an escaped slash is part of a name (RFC 3986, 2.2), and no name has one
                return None
        try:
            text = path.decode("ascii")
        except UnicodeDecodeError:
            return None
        for pattern, codec in PATTERNS:
            match = pattern.fullmatch(text)
            if match is not None:
                route = Route(match[1], match[2] or "", codec, self._limits)
                if len(self._cache) >= CACHED:
                    self._cache.clear()
                self._cache[target] = route
                return route
        return None
