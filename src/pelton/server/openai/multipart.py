"""Forms as browsers and clients send them (multipart/form-data, RFC 7578), read from a body that is all there."""

from __future__ import annotations

import re
from typing import Final

from pelton.errors import InvalidInput, TooLarge

MOST_PARTS: Final = 64
MOST_HEADERS: Final = 4096  # bytes of one part's
BOUNDARY: Final = re.compile(
    rb'^\s*multipart/form-data\s*;.*\bboundary=(?:"([^"]{1,200})"|([^\s;",]{1,200}))', re.I | re.S
)
NAME: Final = re.compile(rb'[;\s]name="((?:[^"\\]|\\.)*)"|[;\s]name=([^\s;"]+)', re.I)

Form = dict[str, list[bytes]]


def read(content_type: bytes, body: bytes) -> Form:
    """Field -> its values, in order. Raises InvalidInput."""
    found = BOUNDARY.match(content_type)
    if found is None:
        raise InvalidInput("the body must be a form: content-type multipart/form-data with a boundary")
    mark = b"--" + (found[1] or found[2])
    form: Form = {}
    at = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    if at == 1:
        raise InvalidInput("the form does not have the boundary that its content-type names")
    for _ in range(MOST_PARTS + 1):
        at += len(mark)
        if body.startswith(b"--", at):
            return form
        end = body.find(b"\r\n" + mark, at)
        if end < 0:
            raise InvalidInput("the form is cut: its last boundary is missing")
        name, value = _part(body, at, end)
        form.setdefault(name, []).append(value)
        at = end + 2
    raise TooLarge(f"the form has more than {MOST_PARTS} parts")


def _part(body: bytes, begin: int, end: int) -> tuple[str, bytes]:
    head_end = body.find(b"\r\n\r\n", begin, min(end, begin + MOST_HEADERS))
    if head_end < 0:
        raise InvalidInput("a part of the form has no end of its headers")
    for line in body[begin:head_end].split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            found = NAME.search(value)
            if found is not None:
                name = (found[1] if found[1] is not None else found[2]).decode("utf-8", "replace")
                return name, body[head_end + 4 : end]
    raise InvalidInput("a part of the form has no name")
