"""`GET /models`: what the page shows of every model. State, target, batches, figures of the last minutes, fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pelton.records import Window
from pelton.records.snapshot import Lane, Snapshot, Streams, by_version, merged
from pelton.records.tokens import TokenSums
from pelton.server.fleet import UNLOADED
from pelton.server.pages import cards

Key = tuple[str, str]


def catalog(processes: Sequence[Snapshot], states: Mapping[str, str], reason: str) -> dict[str, Any]:
    """Everything that the page shows; plain data. `reason`: why the server is not ready, or nothing."""
    totals = by_version(merged(one for process in processes for one in process.sums))
    recent = by_version(merged(one for process in processes for one in process.recent))
    seconds = max(process.recent_seconds for process in processes)
    lanes = current_lanes(processes)
    models = [
        _model(same, totals.get(key, Window()), recent.get(key, Window()), seconds) for key, same in lanes.items()
    ]
    shown = {model["name"] for model in models if model["state"] != "ready"}  # its engine is away
    models += [
        {"name": name, "state": "unloaded" if state == UNLOADED else "unavailable", "reason": state}
        for name, state in states.items()
        if name not in shown
    ]
    return {
        "server": {
            "version": processes[0].software,
            "ready": not reason,
            "reason": reason,
            "processes": len(processes),
            "started": min(process.usage.started for process in processes),
            "in_flight": sum(process.in_flight for process in processes),
            "rss_bytes": sum(process.usage.rss_bytes or 0 for process in processes),
        },
        "models": sorted(models, key=lambda model: str(model["name"])),
    }


def lanes_of(processes: Sequence[Snapshot]) -> dict[Key, list[Lane]]:
    """The lanes of every version, in all processes; sorted by name."""
    lanes: dict[Key, list[Lane]] = {}
    for process in processes:
        for lane in process.lanes:
            lanes.setdefault((lane.model, lane.version), []).append(lane)
    return dict(sorted(lanes.items()))


def current_lanes(processes: Sequence[Snapshot]) -> dict[Key, list[Lane]]:
    """Those of the versions that answer callers who name none."""
    kept = {key: [lane for lane in lanes if lane.current] for key, lanes in lanes_of(processes).items()}
    return {key: lanes for key, lanes in kept.items() if lanes}


def _model(lanes: Sequence[Lane], total: Window, recent: Window, seconds: float) -> dict[str, Any]:
    card: dict[str, Any] = msgspec.to_builtins(cards.read(lanes[0].card))
    for key in ("row", "answer", "example"):
        card.pop(key)
    streams = [lane.streams for lane in lanes if lane.streams is not None]
    away = next((one.away for one in streams if one.away), "")
    return {
        **card,
        "state": "unavailable" if away else "ready",
        "reason": away,
        "streams": engine_figures(streams) if streams else None,
        "target_ms": max(lane.target for lane in lanes) * 1e3,
        "batch_cap": min(lane.cap for lane in lanes),
        "queue_rows": sum(lane.queue_rows for lane in lanes),
        "recent": figures(recent, seconds),
        "total": {"answered": total.answered, "rows": total.rows, "errors": total.errors},
    }


def figures(window: Window, seconds: float) -> dict[str, Any]:
    """A window in numbers that people read; times are milliseconds, None where nothing was answered."""
    batches = sum(batch.count for batch in window.batches.values())
    latency = window.stages["total"]
    return {
        "seconds": round(seconds, 1),
        "per_second": window.answered / seconds if seconds else 0.0,
        "p50_ms": latency.quantile(0.5) * 1e3 if window.answered else None,
        "p99_ms": latency.quantile(0.99) * 1e3 if window.answered else None,
        "queue_p99_ms": window.stages["queue"].quantile(0.99) * 1e3 if window.answered else None,
        "batch_rows": window.rows / batches if batches else None,
        "answered": window.answered,
        "errors": window.errors,
        "tokens": token_figures(window.tokens, seconds) if window.tokens is not None else None,
    }


def token_figures(sums: TokenSums, seconds: float) -> dict[str, Any]:
    """The tokens of a window: times are milliseconds, from a call's first byte to its first token, and per token."""
    first, each = sums.histograms["first"], sums.histograms["each"]
    return {
        "input": sums.prompt,
        "cached": sums.cached,
        "output": sums.completion,
        "per_second": sums.completion / seconds if seconds else 0.0,
        "first_p50_ms": first.quantile(0.5) * 1e3 if first.count else None,
        "first_p99_ms": first.quantile(0.99) * 1e3 if first.count else None,
        "each_p50_ms": each.quantile(0.5) * 1e3 if each.count else None,
        "each_p99_ms": each.quantile(0.99) * 1e3 if each.count else None,
    }


def engine_figures(streams: Sequence[Streams]) -> dict[str, Any]:
    """What the engines of a language model have to do now."""
    return {
        "running": sum(one.running for one in streams),
        "places": sum(one.places for one in streams),
        "waiting": sum(one.waiting for one in streams),
        "waiting_tokens": sum(one.waiting_tokens for one in streams),
        "kv_used": max(one.kv_used for one in streams),
        "restarts": sum(one.restarts for one in streams),
    }
