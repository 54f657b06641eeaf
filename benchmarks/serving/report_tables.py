"""Markdown tables from the samples. usage: report_tables.py [results.jsonl ...]     default: results/main.jsonl

A cell is the median over all samples of a row; samples during which others used 0.3 cores or more are left out if
cleaner ones exist. "/ raw" columns compare with results/raw.json (raw.py) of the same machine.
"""

import collections
import json
import statistics
import sys
from pathlib import Path

from rows import NAMES

from bench import HOME, WRK_ERRORS

DISTURBED = 0.30
SHOWN_PROTOTYPES = (
    "p_fast_inline",
    "p_bare_inline",
    "p_bare_thread",
    "p_rsgi_inline",
    "p_bare_rawbin",
)  # beside the peers


def prototype(row):
    return row.startswith("p_")


def floor(row):
    return row.startswith("e_")


def peer(row):
    return (not prototype(row) and not floor(row)) or row in SHOWN_PROTOTYPES


TABLES = [
    ("1a. Model T, one core", 1, "T", peer),
    ("1b. Model V, one core", 1, "V", peer),
    ("2a. Model T, two cores shared with wrk", 2, "T", lambda row: True),
    ("2b. Model V, two cores shared with wrk", 2, "V", lambda row: True),
    ("3. HTTP floor (no model), one core", 1, "T", floor),
    ("4a. Prototypes, model T, one core", 1, "T", prototype),
    ("4b. Prototypes, model V, one core", 1, "V", prototype),
]


def number(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}"


def read(paths):
    samples = collections.defaultdict(list)
    for path in paths:
        for line in Path(path).read_text().splitlines():
            one = json.loads(line)
            samples[one["cores"], one["model"], one["row"], one["c"]].append(one)
    return {key: [s for s in group if s["other"] < DISTURBED] or group for key, group in samples.items()}


def read_raw():
    """Rows/s by model and batch size of raw.py on this machine; nothing where it did not run."""
    path = HOME / "results" / "raw.json"
    return json.loads(path.read_text()) if path.exists() else {}


def median(samples, key):
    return statistics.median(s[key] for s in samples)


def table(samples, cores, model, wanted, raw):
    rows = {key[2] for key in samples if key[:2] == (cores, model) and wanted(key[2])}
    if not rows:
        return None
    concurrencies = sorted({key[3] for key in samples if key[:2] == (cores, model)})
    best = {
        row: max(
            median(samples[cores, model, row, c], "rps") for c in concurrencies if (cores, model, row, c) in samples
        )
        for row in rows
    }
    head = ["row"]
    for c in concurrencies:
        head += [f"c={c} req/s (min-max)", "p50 ms", "p99 ms"]
    head += ["best / raw b1", "best / raw best", "err", "srv CPU", "RSS MB", "procs", "cold s", "other CPU max"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in sorted(rows, key=best.get, reverse=True):
        cells, errors, other, last = [NAMES.get(row, row)], 0, 0, None
        for c in concurrencies:
            group = samples.get((cores, model, row, c))
            if not group:
                cells += ["-"] * 3
                continue
            rates, last = [s["rps"] for s in group], group
            cells += [
                f"{number(median(group, 'rps'))} ({number(min(rates))}-{number(max(rates))})",
                f"{median(group, 'p50') / 1e3:.2f}",
                f"{median(group, 'p99') / 1e3:.2f}",
            ]
            errors += sum(s[key] for s in group for key in WRK_ERRORS) + max(s["bad"] for s in group)
            other = max(other, max(s["other"] for s in group))
        if model in raw:
            cells += [f"{best[row] / raw[model]['1']:.2f}", f"{best[row] / max(raw[model].values()):.3f}"]
        else:
            cells += ["-", "-"]
        cells += [
            str(errors),
            f"{median(last, 'srv_cpu'):.2f}",
            f"{median(last, 'hwm'):.0f}",
            f"{median(last, 'nproc'):.0f}",
            f"{median(last, 'cold'):.1f}",
            f"{other:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    samples = read(sys.argv[1:] or [HOME / "results" / "main.jsonl"])
    raw = read_raw()
    for title, cores, model, wanted in TABLES:
        text = table(samples, cores, model, wanted, raw)
        if text:
            print(f"### {title}\n\n{text}\n")
