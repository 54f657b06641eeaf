"""The snapshot of this process: its ledger's totals, its lanes, and what the operating system says of it."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path

from pelton import __version__
from pelton.engine import Served
from pelton.records import Window, WindowKey
from pelton.records.snapshot import Lane, Padding, Snapshot, Streams, Usage, sums_of
from pelton.scheduling import LengthBatcher
from pelton.server.pages.cards import card_of
from pelton.server.site import Site

RECENT_MINUTES = 2  # the current one and the one before: figures cover 60 to 120 s

_imported = time.time()


def take(site: Site) -> Snapshot:
    """Folds what is pending first, so every call that was answered is in it."""
    engine = site.engine
    engine.ledger.fold()
    epoch = time.time() - engine.clock()
    recent, seconds = _recent(site)
    current = engine.directory.current()
    return Snapshot(
        software=__version__,
        python=platform.python_version(),
        in_flight=engine.in_flight,
        usage=usage(),
        sums=sums_of(engine.ledger.totals, epoch),
        recent=sums_of(recent, epoch),
        recent_seconds=seconds,
        lanes=[_lane(served, served is current.get(served.name)) for served in engine.directory.everything()],
        states=engine.directory.states(),
        worker=site.worker,
    )


def _lane(served: Served, current: bool) -> Lane:
    name, version, target, card = served.name, served.version, served.target, card_of(served)
    lane = served.lane
    if lane is None:
        batcher = served.scheduler.batcher
        if isinstance(batcher, LengthBatcher):
            padding = Padding(batcher.real_tokens, batcher.padded_tokens, batcher.rows, batcher.cap)
            rows = batcher.most_rows, batcher.queued_rows
            return Lane(name, version, target, *rows, served.scheduler.running, card, current, padding=padding)
        return Lane(name, version, target, batcher.cap, batcher.rows, served.scheduler.running, card, current)
    facts = lane.facts
    streams = Streams(
        engine=facts.engine,
        why=facts.why,
        places=facts.streams,
        context=facts.context,
        running=lane.running,
        waiting=lane.waiting,
        waiting_tokens=lane.waiting_tokens,
        kv_used=lane.kv_used,
        busy_seconds=lane.busy_seconds,
        restarts=lane.restarts,
        away=lane.away,
    )
    return Lane(name, version, target, facts.streams, lane.waiting, lane.running, card, current, streams)


def _recent(site: Site) -> tuple[dict[WindowKey, Window], float]:
    """The windows of the last minutes, and the seconds that they cover."""
    now = site.engine.clock()
    first = int(now // 60) - RECENT_MINUTES + 1
    recent: dict[WindowKey, Window] = {}
    for minute, windows in site.engine.ledger.minutes:
        if minute >= first:
            for key, window in windows.items():
                recent.setdefault(key, Window()).merge(window)
    return recent, min(now - first * 60, time.time() - started())


def usage() -> Usage:
    """Memory and files are told where there is /proc."""
    return Usage(time.process_time(), started(), _resident(), _open_files(), _most_files(), _children_resident())


def started() -> float:
    """When the process started, seconds since 1970; without /proc, when this module was imported."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (OSError, StopIteration, IndexError, ValueError):
        return _imported
    return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


def _resident(process: str = "self") -> int | None:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None


def _children_resident() -> int | None:
    """Memory of all processes below this one; one that ends meanwhile counts as nothing."""
    try:
        below = _below("self", 3)
    except OSError:  # a system that does not tell
        return None
    return sum([_resident(process) or 0 for process in below])


def _below(process: str, depth: int) -> list[str]:
    """The processes that `process` has started, and theirs. Raises OSError where the system does not tell."""
    found: list[str] = []
    for task in os.listdir(f"/proc/{process}/task"):
        found += Path(f"/proc/{process}/task/{task}/children").read_text().split()
    for child in list(found):
        with contextlib.suppress(OSError):
            found += _below(child, depth - 1) if depth > 1 else []
    return found


def _open_files() -> int | None:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return None


def _most_files() -> int | None:
    try:
        import resource
    except ImportError:  # not on every system
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
