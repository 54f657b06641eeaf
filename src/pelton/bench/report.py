"""The report as one HTML file: no scripts, nothing loaded from elsewhere, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from pelton.bench.chart import BOTTOM, HEIGHT, Axis, bar, dot, frame, level, line, upright, x_axis, y_axis
from pelton.bench.results import BINS_PER_DECADE, Report, Stages, Step
from pelton.bench.table import COLUMNS, load_label, number, overload_sentence, rows

STAGES: Final = (
    ("run", "run", "c1"),
    ("queue", "queue", "c2"),
    ("prepare", "prepare", "c4"),
    ("wire", "wire and decoding", "c3"),
    ("generator", "waiting in the generator", "c5"),
)

STYLE: Final = """
:root{color-scheme:light dark;--page:#f6f5f1;--card:#fff;--ink:#1c1d20;--soft:#5d6068;--rule:#e2e0d9;--c1:#2f6f8f;
--c2:#d98a1f;--c3:#9aa3ad;--c4:#5f9e6e;--c5:#b8629b;--bad:#c0392b;--good:#2e7d4f}
@media(prefers-color-scheme:dark){:root{--page:#141518;--card:#1d1f23;--ink:#eceae4;--soft:#a2a6ae;--rule:#34373d;
--c1:#6db3d3;--c2:#f0b14e;--c3:#7b848f;--c4:#84c493;--c5:#d790bf;--bad:#ff7a6b;--good:#7fd09d}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:40px 20px 64px}
h1{font-size:1.75rem;line-height:1.2;margin:0;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:1.05rem;margin:0 0 2px;letter-spacing:-.005em}
.sub{color:var(--soft);margin:6px 0 0;overflow-wrap:anywhere}
.claim{font-size:1.2rem;line-height:1.45;margin:26px 0;padding:16px 20px;background:var(--card);border-left:4px solid var(--good);
border-radius:4px}
.claim.none{border-color:var(--bad)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:14px;margin:0 0 22px}
.card,figure{background:var(--card);border:1px solid var(--rule);border-radius:8px}
.card{padding:14px 16px}
.card b{display:block;font-size:1.55rem;font-weight:600;letter-spacing:-.02em;line-height:1.25;font-variant-numeric:tabular-nums}
.card b small{font-size:.9rem;font-weight:400;color:var(--soft);letter-spacing:0}
.card span{display:block;color:var(--soft);font-size:.86rem;line-height:1.35;margin-top:2px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:18px}
figure{margin:0;padding:16px 16px 10px;display:flex;flex-direction:column;justify-content:space-between}
figure svg{display:block;width:100%;height:auto;margin-top:8px}
figcaption p{margin:0;color:var(--soft);font-size:.88rem;line-height:1.4}
.key{display:flex;flex-wrap:wrap;gap:2px 14px;margin-top:6px;font-size:.86rem;color:var(--soft)}
.key i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px}
svg text{font:13px system-ui,-apple-system,"Segoe UI",sans-serif;fill:var(--soft);font-variant-numeric:tabular-nums}
svg .label{font-size:13px}
svg .name{fill:var(--ink)}
.grid{stroke:var(--rule);stroke-width:1}.mark,.base{stroke:var(--soft);stroke-width:1}
.line{fill:none;stroke-width:2.2;stroke-linejoin:round}
.target{stroke:var(--bad);stroke-width:1.4;stroke-dasharray:5 4}svg .targettext{fill:var(--bad)}
.held{stroke:var(--good);stroke-width:1.4;stroke-dasharray:2 3}svg .heldtext{fill:var(--good)}
section{margin-top:34px}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:8px;margin-top:10px}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
th{color:var(--soft);font-weight:500;border-bottom:1px solid var(--rule)}
tr.sep td{border-top:1px solid var(--rule)}tr.held td{font-weight:600}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;margin:10px 0 0;font-size:.92rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
code{font:.88rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
ul{margin:10px 0 0;padding-left:20px}
@media print{body{background:#fff}.card,figure,.scroll{break-inside:avoid}}
"""


def render_html(report: Report) -> str:
    """The whole document; write it with encoding="utf-8"."""
    charts = [
        _latency_chart(report),
        _histogram(report),
        _batch_chart(report),
        *_stage_charts(report),
        _goodput_chart(report),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(report.name)} · pelton bench</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(report.name)}</h1>"
        f'<p class="sub">Target: p99 ≤ {report.p99_ms:g} ms · {escape(report.url)} · {escape(report.started[:16].replace("T", " "))} UTC</p></header>'
        f'<p class="claim{"" if report.held else " none"}">{escape(report.claim)}</p>'
        + _cards(report)
        + f'<div class="charts">{"".join(chart for chart in charts if chart)}</div>'
        + _table(report)
        + _notes(report)
        + _environment(report)
        + "</main></body></html>\n"
    )


def _cards(report: Report) -> str:
    step = report.confirmed
    cards = []
    if report.held is not None and step is not None:
        cards.append((number(report.held), "/s", "highest rate that holds the target"))
        cards.append((number(step.latency.p50), " ms", "median latency there"))
        cards.append((number(step.latency.p99), " ms", "p99 there"))
        if step.bound_ms is not None:
            cards.append(
                (number(step.bound_ms), " ms", f"p99 is at most this, {report.plan.confidence * 100:g} % confidence")
            )
    cards.append((number(report.capacity), "/s", "capacity: the most answers, at any latency"))
    inner = "".join(
        f'<div class="card"><b>{a}<small>{b}</small></b><span>{escape(c)}</span></div>' for a, b, c in cards
    )
    return f'<div class="cards">{inner}</div>'


def _figure(title: str, text: str, drawing: str, key: Sequence[tuple[str, str]] = ()) -> str:
    marks = "".join(f'<span><i style="background:var(--{colour})"></i>{escape(name)}</span>' for name, colour in key)
    keys = f'<div class="key">{marks}</div>' if marks else ""
    return f"<figure><figcaption><h2>{escape(title)}</h2><p>{escape(text)}</p>{keys}</figcaption>{drawing}</figure>"


def _latency_chart(report: Report) -> str:
    steps = [step for step in report.curve if step.latency.p99 is not None]
    if not steps:
        return ""
    series = [
        ("p50", "c1", [s.latency.p50 or 0.0 for s in steps]),
        ("p99", "c2", [s.latency.p99 or 0.0 for s in steps]),
    ]
    values = [value for _, _, column in series for value in column]
    x = x_axis(0, max(s.offered for s in steps) * 1.06)
    y = y_axis(min(*values, report.p99_ms) / 1.5, min(max(*values, report.p99_ms) * 1.5, report.p99_ms * 100), log=True)
    parts = [level(y, report.p99_ms, f"target {report.p99_ms:g} ms")]
    if report.held is not None:
        parts.append(upright(x, report.held, f"{number(report.held)}/s", colour="held"))
    for name, colour, column in series:
        points = [(step.offered, value) for step, value in zip(steps, column, strict=True)]
        parts.append(line(x, y, points, colour))
        for step, point in zip(steps, points, strict=True):
            tip = f"{number(step.offered)}/s offered: {name} {number(point[1])} ms, {step.over:,} of {step.requests:,} over"
            parts.append(dot(x, y, point, colour, tip, hollow=step.over > 0.01 * step.requests))
    return _figure(
        "Latency against load",
        "Open loop, Poisson arrivals, latency from the intended send time. Hollow: more than 1 % over the target.",
        frame(x, y, "requests/s offered", "latency, ms (log)", parts, title="Latency against load"),
        (("p50", "c1"), ("p99", "c2")),
    )


def _histogram(report: Report) -> str:
    step = report.confirmed or max(report.curve, key=lambda s: s.requests, default=None)
    if step is None or not step.bins:
        return ""
    ratio = 10 ** (1 / BINS_PER_DECADE)
    total = sum(count for _, count in step.bins)
    x = x_axis(
        min(step.bins[0][0], report.p99_ms) / ratio, max(step.bins[-1][0] * ratio, report.p99_ms) * ratio, log=True
    )
    y = y_axis(0, max(count for _, count in step.bins) * 100 / total * 1.15)
    parts = []
    for low, count in step.bins:
        tip = f"{number(low)} to {number(low * ratio)} ms: {count:,}"
        parts.append(bar(x(low) + 0.4, x(low * ratio) - 0.4, HEIGHT - BOTTOM, y(count * 100 / total), "c1", tip))
    parts.append(upright(x, report.p99_ms, f"target {report.p99_ms:g} ms"))
    return _figure(
        "All latencies at one rate",
        f"{total:,} answers at {load_label(step)}; the slowest took {number(step.latency.max)} ms.",
        frame(x, y, "latency, ms (log)", "answers, %", parts, title="Histogram of latencies"),
    )


def _batch_chart(report: Report) -> str:
    steps = [step for step in report.curve if step.rows_mean is not None]
    if not steps:
        return ""
    x = x_axis(0, max(s.offered for s in steps) * 1.06)
    y = y_axis(0, max(1.0, *(s.rows_p99 or 0.0 for s in steps)) * 1.12)
    parts = []
    for colour, points in (
        ("c1", [(s.offered, s.rows_mean or 0.0) for s in steps]),
        ("c2", [(s.offered, s.rows_p99 or 0.0) for s in steps]),
    ):
        parts.append(line(x, y, points, colour))
        parts += [dot(x, y, p, colour, f"{number(p[0])}/s: {number(p[1])} rows") for p in points]
    return _figure(
        "Batch sizes against load",
        "Rows of the batch that a request ran in, as the server says.",
        frame(x, y, "requests/s offered", "rows", parts, title="Batch sizes against load"),
        (("mean", "c1"), ("p99", "c2")),
    )


def _stage_charts(report: Report) -> list[str]:
    steps = [step for step in report.curve if step.stages is not None and step.over <= 0.05 * step.requests]
    steps = _spread(steps, 7, report.confirmed)
    if not steps:
        return []
    used = [s for s in STAGES if any(_share(step, s[0]) >= 0.005 for step in steps)]
    key = [(label, colour) for _, label, colour in used]
    average = _stack(steps, [step.stages or Stages() for step in steps], used)
    tail = _stack(steps, [step.stages_tail or Stages() for step in steps], used)
    return [
        _figure("Where the time went", "Mean of all answers, by stage.", average, key),
        _figure("Where the slowest 1 % spent theirs", "Mean of the answers at or above p99, by stage.", tail, key),
    ]


def _share(step: Step, stage: str) -> float:
    """The larger share of a stage in the mean and in the tail."""
    found = [s for s in (step.stages, step.stages_tail) if s is not None and s.total]
    return max((getattr(s, stage) / s.total for s in found), default=0.0)


def _stack(steps: Sequence[Step], stages: Sequence[Stages], used: Sequence[tuple[str, str, str]]) -> str:
    """Columns, one for each rate."""
    y = y_axis(0, max(stage.total for stage in stages) * 1.12)
    x = x_axis(0, len(steps))
    x.ticks = []
    parts = []
    width = x(1) - x(0)
    for place, (step, stage) in enumerate(zip(steps, stages, strict=True)):
        base = 0.0
        for name, label, colour in used:
            value = getattr(stage, name)
            tip = f"{load_label(step)}: {label} {number(value)} ms of {number(stage.total)} ms"
            left = x(place) + width * 0.2
            parts.append(bar(left, left + width * 0.6, y(base), y(base + value), colour, tip))
            base += value
        middle = x(place) + width / 2
        parts.append(
            f'<text class="name" x="{middle:.1f}" y="{y(base) - 5:.1f}" text-anchor="middle">{number(base)}</text>'
        )
        parts.append(_column_name(middle, step))
    return frame(x, y, "requests/s offered", "milliseconds", parts, title="Time by stage and load")


def _column_name(at: float, step: Step) -> str:
    text = f"{step.offered / 1000:.3g}k" if step.offered >= 10_000 else number(step.offered)
    return f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{text}</text>'


def _spread(steps: Sequence[Step], most: int, wanted: Step | None) -> list[Step]:
    """At most `most` steps, evenly spread over the rates, with the wanted one among them."""
    if not steps:
        return []
    axis = Axis(0, steps[-1].offered, (0, most))
    chosen: dict[int, Step] = {}
    for step in steps:
        place = min(most - 1, int(axis(step.offered)))
        if chosen.get(place) is not wanted or wanted is None:
            chosen[place] = step
    return [chosen[place] for place in sorted(chosen)]


def _goodput_chart(report: Report) -> str:
    steps = [*report.curve, *([report.overload] if report.overload else [])]
    if not steps:
        return ""
    most = max(step.offered for step in steps)
    x = x_axis(0, most * 1.06)
    y = y_axis(0, max(report.capacity, *(step.good for step in steps)) * 1.12)
    parts = [line(x, y, [(0.0, 0.0), (min(most, y.high), min(most, y.high))], "c3")]
    points = [(step.offered, step.good) for step in steps]
    parts.append(line(x, y, points, "c1"))
    for step, point in zip(steps, points, strict=True):
        tip = f"{number(point[0])}/s offered: {number(point[1])}/s inside the target, {step.refused:,} of {step.requests:,} refused"
        parts.append(dot(x, y, point, "c1", tip))
    text = overload_sentence(report, report.overload) if report.overload else "Open loop, without an overload step."
    return _figure(
        "When more comes than it can do",
        text,
        frame(x, y, "requests/s offered", "answers/s inside the target", parts, title="Goodput against load"),
        (("inside the target", "c1"), ("offered", "c3")),
    )


def _table(report: Report) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    body, first_open = [], len(report.closed)
    for place, row in enumerate(rows(report)):
        held = row[0].endswith(" *")
        kind = " ".join([*(["sep"] if place == first_open and place else []), *(["held"] if held else [])])
        cells = "".join(f"<td>{escape(cell.removesuffix(' *'))}</td>" for cell in row)
        body.append(f'<tr class="{kind}">{cells}</tr>' if kind else f"<tr>{cells}</tr>")
    return (
        "<section><h2>Every step</h2><p class='sub'>Callers: closed loop, the next request follows the answer. Rates: open loop. "
        "Over: slower than the target, refused or failed. Batch, queue and run are means that the server reports.</p>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div></section>'
    )


def _notes(report: Report) -> str:
    fixed = (
        "Confidence is from the exact binomial bound (MLPerf's early stopping rule), which takes requests as independent. "
        "The rate was found with some requests and confirmed with others."
    )
    return f"<section><h2>Notes</h2><ul>{''.join(f'<li>{escape(note)}</li>' for note in [*report.notes, fixed])}</ul></section>"


def _environment(report: Report) -> str:
    facts = {
        **report.environment,
        "Server": report.server or "not named",
        "Requests": f"{report.bodies:,} different bodies of {report.body_bytes:,.0f} bytes on average, sent in turn",
        "Took": f"{report.seconds:.0f} s, seed {report.plan.seed}",
    }
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return (
        "<section><h2>Measured on</h2><p class='sub'>The machine of the generator.</p>"
        f"<dl>{pairs}<dt>Command</dt><dd><code>{escape(report.command)}</code></dd></dl></section>"
    )
