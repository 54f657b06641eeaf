"""Triton's statistics extension: `GET /v2/models[/{model}[/versions/{version}]]/stats`.

Every leaf is {count, ns}. The time of an answered call is cut so that the parts add up: queue and compute_infer as
measured, compute_input all that came before the queue (decoding, preprocessing). compute_output takes no time here:
answers are encoded after the record is made. Failed and refused calls are in `fail` alone, with their whole time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pelton.records import Window
from pelton.records.snapshot import Snapshot, by_version, merged


def statistics(processes: Sequence[Snapshot], wanted: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The statistics of (model, version) in `wanted`, over all processes."""
    windows = by_version(merged(one for process in processes for one in process.sums))
    return {"model_stats": [_one(name, version, windows.get((name, version), Window())) for name, version in wanted]}


def _one(name: str, version: str, window: Window) -> dict[str, Any]:
    answered, stages = window.answered, window.stages
    queue, run = stages["queue"].sum, stages["run"].sum
    return {
        "name": name,
        "version": version[:12],
        "last_inference": int(window.last_answer * 1e3),
        "inference_count": window.rows,
        "execution_count": sum(round(batch.count) for batch in window.batches.values()) or window.rows,
        "inference_stats": {
            "success": _leaf(answered, stages["total"].sum),
            "fail": _leaf(sum(window.errors.values()), window.failed_seconds),
            "queue": _leaf(answered, queue),
            "compute_input": _leaf(answered, stages["total"].sum - queue - run),
            "compute_infer": _leaf(answered, run),
            "compute_output": _leaf(answered, 0.0),
            "cache_hit": _leaf(0, 0.0),
            "cache_miss": _leaf(0, 0.0),
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _leaf(round(batch.count), 0.0),
                "compute_infer": _leaf(round(batch.count), batch.seconds),
                "compute_output": _leaf(round(batch.count), 0.0),
            }
            for size, batch in sorted(window.batches.items())
        ],
        "memory_usage": [],
    }


def _leaf(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": max(0, round(seconds * 1e9))}
