"""Request heads seen before. Most clients send the same bytes as head of every call, so it is parsed once.

A head enters only after llhttp has accepted it, complete, as the head of a message whose body has a Content-Length.
The same bytes at the start of another message then mean the same; nothing is ever compared after normalization.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pelton.server.wire.doors import OWN_TERMS

KEPT: Final = 1024
LONGEST: Final = 1024  # bytes of a head that is worth keeping
# They change what follows, or from call to call, or are nobody's business.
NEVER: Final = frozenset(
    (
        b"transfer-encoding", b"expect", b"upgrade", b"cookie", b"x-request-id", b"traceparent", b"tracestate",
        b"pelton-key", b"authorization", b"x-api-key",
    )
)  # fmt: skip


class Head(msgspec.Struct, frozen=True, gc=False):
    """What llhttp made of a head. `length` is its Content-Length, `special` as in a request. `usual`: it may be
    turned away at a door (see `doors`)."""

    target: bytes
    headers: list[tuple[bytes, bytes]]
    length: int
    special: bool
    usual: bool


class Heads:
    """Bytes of a POST's head, up to and with the empty line -> what they mean. Shared by all connections."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self.get = self._known.get

    def learn(self, raw: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: int, special: bool) -> None:
        """Remembers a head that was parsed as a whole message's; `body` is the length of the body that followed."""
        if len(raw) > LONGEST or not raw.startswith(b"POST ") or raw.count(b"\r\n\r\n") != 1:
            return
        names = dict(headers)
        if names.keys() & NEVER or names.get(b"content-length") != b"%d" % body:
            return
        if names.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return
        if len(self._known) >= KEPT:
            self._known.clear()
        self._known[raw] = Head(target, headers, body, special, OWN_TERMS.isdisjoint(names))
