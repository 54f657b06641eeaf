"""W3C trace context: what the header `traceparent` says. https://www.w3.org/TR/trace-context/"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

# Version 00 ends after its flags. Later versions may go on after a hyphen; what version 00 knows of them is read.
_FORM: Final = re.compile(
    rb"(?:(00)|(?!00|ff)[0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?(1)|(?:-.*)?)"
)
LONGEST: Final = 512  # of a version that is not known yet


class Parent(NamedTuple):
    """The caller's span: 32 and 16 hexadecimal digits, and whether the caller keeps this trace."""

    trace_id: str
    span_id: str
    sampled: bool


def valid_traceparent(header: bytes) -> bool:
    """Whether `traceparent` is well-formed. What is not must be ignored, says the W3C."""
    return len(header) <= LONGEST and _FORM.fullmatch(header) is not None


def parse(traceparent: str) -> Parent | None:
    """The caller's span, or None where the header is absent or malformed (it must then be ignored, says the W3C)."""
    if len(traceparent) > LONGEST or not traceparent.isascii():
        return None
    match = _FORM.fullmatch(traceparent.encode())
    if match is None:
        return None
    return Parent(match[2].decode(), match[3].decode(), bool(int(match[4], 16) & 1))
