"""The heads of answers: status line, date, length."""

from __future__ import annotations

from time import gmtime, time
from typing import Final

from pelton.server.protocols.status import PHRASES

_date: tuple[int, bytes] = (0, b"")
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def date() -> bytes:
    """The Date header's value (RFC 9110), made once a second."""
    global _date  # noqa: PLW0603 - a cache of one value
    now = int(time())
    if _date[0] != now:
        t = gmtime(now)
        text = f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year} "
        text += f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT"
        _date = (now, text.encode())
    return _date[1]


def head(status: int, content_type: bytes, length: int, extra: bytes = b"") -> bytes:
    """The head of an answer; `extra` are whole header lines."""
    return b"HTTP/1.1 %d %b\r\ndate: %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n" % (
        status,
        PHRASES.get(status, "Status").encode(),
        date(),
        content_type,
        length,
        extra,
    )
