"""Load against a running server: how many calls a second it answers while its p99 stays inside the target.

Talks plain HTTP/1.1 to any server. `run_bench(target, plan)` measures closed and open loop, searches the highest
rate that holds, confirms it with fresh requests, and answers a `Report`; `render_table` and `render_html` show one.
Nothing is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pelton.bench.plan import Plan, Target
    from pelton.bench.report import render_html
    from pelton.bench.results import Report, Step
    from pelton.bench.search import run_bench
    from pelton.bench.table import render_table

__all__ = ["Plan", "Report", "Step", "Target", "render_html", "render_table", "run_bench"]

_HOME = {
    "Plan": "plan",
    "Target": "plan",
    "Report": "results",
    "Step": "results",
    "render_html": "report",
    "render_table": "table",
    "run_bench": "search",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pelton.bench' has no attribute {name!r}")
    return getattr(import_module(f"pelton.bench.{_HOME[name]}"), name)
