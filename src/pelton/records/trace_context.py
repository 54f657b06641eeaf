"""W3C trace context, level 1: what the header `traceparent` says. https://www.w3.org/TR/trace-context/"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_FORM: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


class Parent(NamedTuple):
    """The caller's span: 32 and 16 hexadecimal digits, and whether the caller keeps this trace."""

    trace_id: str
    span_id: str
    sampled: bool


def parse(traceparent: str) -> Parent | None:
    """The caller's span, or None where the header is absent or malformed (it must then be ignored, says the W3C)."""
    match = _FORM.fullmatch(traceparent)
    return Parent(match[1], match[2], bool(int(match[3], 16) & 1)) if match else None
