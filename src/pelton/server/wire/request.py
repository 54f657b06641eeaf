"""A request as it was parsed."""

from __future__ import annotations

from typing import Final

import msgspec

# Headers that change how an inference is answered; without one of them the hot path looks at no header at all.
SPECIAL: Final = frozenset(
    (
        b"content-encoding",
        b"accept-encoding",
        b"inference-header-content-length",
        b"x-request-id",
        b"traceparent",
        b"tracestate",
        b"pelton-key",
        b"pelton-timeout-ms",
        b"pelton-priority",
        b"authorization",
        b"x-api-key",
    )
)


class Request(msgspec.Struct, gc=False):
    """One parsed request. Header names are lower case. `received` is when its last byte was read."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    special: bool
    body: bytes
    received: float
    keep_alive: bool
    version: str

    def header(self, name: bytes) -> bytes | None:
        """The value of a header that may stand once."""
        for key, value in self.headers:
            if key == name:
                return value
        return None
