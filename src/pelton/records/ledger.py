"""Where records go: appended on the hot path, folded into windows in lots."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from pelton.records.record import Record
from pelton.records.window import Window, WindowKey

log = logging.getLogger(__name__)

FOLD_AT: Final = 1024
MINUTES_KEPT: Final = 60
MOST_TENANTS: Final = 1000  # in the totals; all further ones are one, "other": anybody can invent keys
MOST_TENANTS_A_MINUTE: Final = 100
OTHER: Final = "other"

Sink = Callable[[Sequence[Record]], None]


class Ledger:
    """The windows of one process: totals since it started, and the last sixty minutes one by one.

    `sinks` receive every lot of records after it was folded (traces, logs, a store).
    """

    def __init__(self, clock: Callable[[], float], sinks: Sequence[Sink] = ()) -> None:
        self._clock = clock
        self._pending: list[Record] = []
        self._sinks = list(sinks)
        self.totals: dict[WindowKey, Window] = {}
        self.minutes: deque[tuple[int, dict[WindowKey, Window]]] = deque(maxlen=MINUTES_KEPT)
        self._tenants: set[str] = set()  # in the totals
        self._tenants_now: set[str] = set()  # in the current minute
        self.append = self._pending.append  # the hot path: one C call
        self.extend = self._pending.extend

    def full(self) -> bool:
        """Whether the lot should be folded now."""
        return len(self._pending) >= FOLD_AT

    def fold(self) -> None:
        """Moves what was appended into the windows."""
        if not self._pending:
            return
        records = self._pending.copy()
        self._pending.clear()
        groups: dict[tuple[str, str, str, str], list[Record]] = {}
        for record in records:
            key = (record.model, record.version, record.protocol, record.tenant)
            group = groups.get(key)
            if group is None:
                groups[key] = [record]
            else:
                group.append(record)
        minute = self._minute()
        for key, group in groups.items():
            delta = Window()
            delta.add(group)
            name = WindowKey(*key)
            total = _bounded(name, self._tenants, MOST_TENANTS)
            self.totals.setdefault(total, Window()).merge(delta)
            minute.setdefault(_bounded(name, self._tenants_now, MOST_TENANTS_A_MINUTE), Window()).merge(delta)
        for sink in self._sinks:
            try:
                sink(records)
            except Exception:  # a sink is somebody's exporter: when it fails, the others and the windows go on
                log.exception("a sink of records failed; %d records are missing there", len(records))

    def _minute(self) -> dict[WindowKey, Window]:
        now = int(self._clock() // 60)
        if not self.minutes or self.minutes[-1][0] != now:
            self.minutes.append((now, {}))
            self._tenants_now.clear()
        return self.minutes[-1][1]


def _bounded(key: WindowKey, known: set[str], most: int) -> WindowKey:
    """The window that a tenant's calls go to; `known` are those that have their own."""
    tenant = key.tenant
    if not tenant or tenant in known:
        return key
    if len(known) < most:
        known.add(tenant)
        return key
    return key._replace(tenant=OTHER)
