"""What this process tells the others of itself: which versions it has of each model, and how its calls go."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Final

from pelton.deployments import ModelStatus, ProcessStatus
from pelton.engine import Engine
from pelton.records import Window, WindowKey
from pelton.records.histogram import BUCKETS, upper_edge
from pelton.server.control.converger import Converger
from pelton.server.control.evidence import ERRORS, PROTOCOL

MINUTE: Final = 60.0


class Reporter:
    """Makes the report. Belongs to the event loop."""

    def __init__(self, engine: Engine, converger: Converger, port: int) -> None:
        self.process = name_of_process()
        self.worker = 0
        self._engine = engine
        self._converger = converger
        self._port = port
        self._started = time.time()
        self._began = engine.clock()

    def report(self) -> ProcessStatus:
        """How this process stands."""
        self._engine.ledger.fold()
        windows, seconds = self._recent()
        converger, directory = self._converger, self._engine.directory
        names = {*directory.current(), *directory.states(), *filter(converger.follows, converger.desired)}
        models = {name: self._model(name, windows, seconds) for name in sorted(names) if converger.holds(name)}
        return ProcessStatus(socket.gethostname(), os.getpid(), self._port, self.worker, self._started, models)

    def _model(self, name: str, windows: dict[WindowKey, Window], seconds: float) -> ModelStatus:
        mine = [window for key, window in windows.items() if key.model == name and key.protocol != PROTOCOL]
        calls = sum(window.answered + sum(window.errors.values()) for window in mine)
        versions = self._converger.states(name)
        for served in self._engine.directory.versions(name):
            if served.lane is not None and served.lane.away:
                versions[served.version] = f"{versions.get(served.version, '')} ({served.lane.away})".strip()
        return ModelStatus(
            versions=versions,
            converged=self._converger.present(name).converged,
            calls_per_second=calls / seconds if seconds else 0.0,
            errors_share=sum(window.errors.get(kind, 0) for window in mine for kind in ERRORS) / max(calls, 1),
            slow_share=self._slow(name, mine) / max(calls, 1),
            pinned=name in self._converger.scope.pins,
        )

    def _slow(self, name: str, windows: Sequence[Window]) -> int:
        """Calls that took longer than the limit, or were not taken in time."""
        served = self._engine.directory.current().get(name)
        wanted = self._converger.desired.get(name)
        limit = wanted.slow_ms / 1e3 if wanted is not None and wanted.slow_ms else served.target if served else 0.0
        late = sum(window.errors.get(kind, 0) for window in windows for kind in ("refused", "deadline"))
        return late + sum(_above(window, limit) for window in windows) if limit else late

    def _recent(self) -> tuple[dict[WindowKey, Window], float]:
        """The last full minute; before there is one, what there is."""
        now = self._engine.clock()
        full = int(now // MINUTE) - 1
        found = dict(self._engine.ledger.minutes)
        if self._began <= full * MINUTE:
            return found.get(full, {}), MINUTE
        recent: dict[WindowKey, Window] = {}
        for windows in found.values():
            for key, window in windows.items():
                recent.setdefault(key, Window()).merge(window)
        return recent, now - self._began


def name_of_process() -> str:
    """Names this process, and no other one ever, among all that write to the store."""
    return f"{socket.gethostname()[:60]}-{os.getpid()}-{os.urandom(4).hex()}"


def _above(window: Window, seconds: float) -> int:
    """Answered calls that took longer; of the bucket that the limit cuts, none."""
    first = next((i for i in range(BUCKETS) if upper_edge(i) >= seconds), BUCKETS)
    times = window.stages["total"] if window.tokens is None else window.tokens.histograms["first"]
    return int(times.counts[first + 1 :].sum())
