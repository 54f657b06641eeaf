"""What makes a request one request to everybody who reads it, beyond what llhttp checks. Pure."""

from __future__ import annotations

from typing import Final

from pelton.server.protocols.status import HttpError
from pelton.server.wire.limits import Limits

METHODS: Final = frozenset((b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"))
SLASH: Final = 0x2F
# Headers that would make two readers of one request disagree if they stood twice; llhttp sees to the lengths.
SINGLE: Final = (b"host", b"inference-header-content-length", b"content-encoding", b"expect")

Fields = list[tuple[bytes, bytes]]


def check_fields(names: dict[bytes, bytes], fields: Fields, version: str) -> None:
    """Headers that most requests do not have, or have once. Raises HttpError where they leave the meaning open."""
    if b"host" not in names and version == "1.1":
        raise HttpError(400, "HTTP/1.1 needs a Host header")
    if len(names) != len(fields):
        for single in SINGLE:
            if sum(name == single for name, _ in fields) > 1:
                raise HttpError(400, f"the header {single.decode()} may stand once only")
    encoding = names.get(b"transfer-encoding")
    if encoding is not None:
        if version != "1.1":  # where the body ends would be a matter of opinion
            raise HttpError(400, "transfer-encoding needs HTTP/1.1")
        if encoding.strip().lower() != b"chunked":
            raise HttpError(501, "the only transfer-encoding that is read here is chunked")
    expect = names.get(b"expect")
    if expect is not None and version == "1.1" and expect.strip().lower() != b"100-continue":
        raise HttpError(417, "the only expectation that is met here is 100-continue")


def checked_target(method: bytes, target: bytes, version: str) -> bytes:
    """The path of an unusual request. Raises HttpError for versions, methods and targets that have no answer here."""
    if version not in ("1.1", "1.0"):
        raise HttpError(505, f"HTTP/{version} is not spoken here: send HTTP/1.1")
    if method not in METHODS:
        raise HttpError(501, f"the method {method.decode('latin-1')} is not served here")
    if target[0] == SLASH or (target == b"*" and method == b"OPTIONS"):
        return target
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        raise HttpError(400, "the request target must be a path or an http URL")
    authority = min((i for i in map(rest.find, (b"/", b"?")) if i >= 0), default=len(rest))
    path = rest[authority:]
    return path if path.startswith(b"/") else b"/" + path


def head_too_large(limits: Limits) -> HttpError:
    return HttpError(431, f"more than {limits.headers} header fields or {limits.head} bytes of them")


def without_upgrade(method: bytes, target: bytes, version: str, fields: Fields) -> bytes:
    """A head that asks for what it asked before, but not for another protocol."""
    lines = [b"%b: %b\r\n" % field for field in fields if field[0] != b"upgrade"]
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, target, version.encode(), b"".join(lines))
