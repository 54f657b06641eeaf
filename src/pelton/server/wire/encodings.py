"""Which encoding an answer may have: what the header `Accept-Encoding` says, by RFC 9110, section 12.5.3."""

from __future__ import annotations

import re
from typing import Final

OFFERED: Final = (b"gzip", b"deflate")  # the first of those that the client likes most
ALIASES: Final = {b"x-gzip": b"gzip"}
_WEIGHT: Final = re.compile(rb"[ \t]*[qQ][ \t]*=[ \t]*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)[ \t]*")
MOST: Final = 32  # parts that are read; nobody has so many encodings


def negotiate(header: bytes) -> bytes | None:
    """b"gzip", b"deflate", or None for an answer as it is.

    Weights decide; the server's own order decides between equals, and compressed goes before plain. A part that is
    malformed is left out. A client that forbids plain answers (`identity;q=0`) but names nothing that is offered gets a
    plain one all the same: the protocol allows it, and the alternative would be an error.
    """
    weights: dict[bytes, float] = {}
    for part in header.split(b",")[:MOST]:
        name, *parameters = part.split(b";")
        weight = _weight(parameters)
        name = name.strip(b" \t").lower()
        if name and weight is not None:
            weights.setdefault(ALIASES.get(name, name), weight)
    others = weights.get(b"*", 0.0)
    best = max(OFFERED, key=lambda name: weights.get(name, others))
    weight = weights.get(best, others)
    # plain answers that are not mentioned are acceptable, but wished for by nobody
    return best if weight > 0.0 and weight >= weights.get(b"identity", 0.0) else None


def _weight(parameters: list[bytes]) -> float | None:
    """The q of a part, 1 where it has none, None where it is malformed."""
    if not parameters:
        return 1.0
    match = _WEIGHT.fullmatch(parameters[0]) if len(parameters) == 1 else None
    return float(match[1]) if match else None
