"""The report as plain text, for a terminal of 110 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pelton.bench.results import Report, Step

COLUMNS = (
    "load",
    "answered/s",
    "in target/s",
    "p50 ms",
    "p99 ms",
    "max ms",
    "batch",
    "queue ms",
    "run ms",
    "over",
    "requests",
)


def render_table(report: Report) -> str:
    """Head, one line per step (closed loop, then open loop by rate, then overload), and the claim."""
    lines = [
        f"{report.name}   target: p99 ≤ {report.p99_ms:g} ms   {report.url}",
        f"{report.bodies:,} different bodies of {_bytes(report.body_bytes)}, {report.seconds:.0f} s in all",
        "",
        *_aligned([COLUMNS, *rows(report)]),
        "",
        report.claim,
    ]
    if report.overload is not None:
        lines.append(overload_sentence(report, report.overload))
    return "\n".join([*lines, *(f"Note: {note}" for note in report.notes)]) + "\n"


def rows(report: Report) -> list[tuple[str, ...]]:
    """The cells of every step, as text."""
    steps = [*report.closed, *report.curve]
    return [_row(step, report) for step in (*steps, *([report.overload] if report.overload else []))]


def overload_sentence(report: Report, step: Step) -> str:
    """Goodput and time to refusal when more comes than can be answered."""
    times = step.offered / report.capacity if report.capacity else math.inf
    share = 100 * step.good / report.capacity if report.capacity else 0.0
    text = (
        f"Overload, {number(step.offered)} requests/s offered ({times:.1f} times the capacity) "
        f"on up to {step.connections:,} connections: "
        f"{number(step.good)}/s answered inside the target, {share:.0f} % of the capacity"
    )
    if step.refused:
        share = 100 * step.refused / step.requests
        text += (
            f"; {share:.0f} % refused, after {number(step.refusal.p50)} ms at the median "
            f"and {number(step.refusal.p99)} ms at p99"
        )
    else:
        text += "; nothing was refused"
    lost = step.failed + step.timed_out + step.unsent
    return text + (f"; {lost:,} failed or timed out." if lost else ".")


def number(value: float | None, unknown: str = "–") -> str:
    """Three significant digits, thousands separated; what is not known is a dash."""
    if value is None:
        return unknown
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def load_label(step: Step) -> str:
    if step.kind == "closed":
        return f"{step.callers} caller{'s' if step.callers != 1 else ''}"
    return f"{number(step.offered)}/s" + (" (overload)" if step.kind == "overload" else "")


def _row(step: Step, report: Report) -> tuple[str, ...]:
    mark = " *" if step is report.confirmed else ""
    return (
        load_label(step) + mark,
        number(step.answered),
        number(step.good),
        number(step.latency.p50),
        number(step.latency.p99),
        number(step.latency.max),
        number(step.rows_mean),
        number(step.stages.queue if step.stages else None),
        number(step.stages.run if step.stages else None),
        f"{step.over:,}",
        f"{step.requests:,}",
    )


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    ]


def _bytes(count: float) -> str:
    return f"{count / 1000:.1f} kB" if count >= 1000 else f"{count:.0f} bytes"
