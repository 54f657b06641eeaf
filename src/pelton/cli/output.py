"""How commands show answers: JSON, or aligned text."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec


def print_json(answer: Any) -> None:
    """One JSON value on a line."""
    print(msgspec.json.encode(answer).decode(), flush=True)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as their longest cell; nothing where there are no rows."""
    rows = [list(heads), *(list(row) for row in rows)]
    if len(rows) == 1:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def when(seconds: float) -> str:
    """Seconds since 1970 as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def short(version: str) -> str:
    """The first digits of a version."""
    return version[:12] or "-"


def percent(share: float) -> str:
    """0.0123 -> "1.23 %"."""
    return f"{share * 100:.3g} %"


def size(count: float) -> str:
    """Bytes for people."""
    if count < 0:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
