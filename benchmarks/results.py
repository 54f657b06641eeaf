"""What every benchmark does with its figures: a Markdown table on the screen, a JSON line in the file of results."""

import argparse
import json
import os
import platform
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_OUT = ROOT / ".pelton" / "benchmarks" / "results.jsonl"  # git ignores it


def arguments(description):
    """A parser with `--out`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="JSON lines are appended there (%(default)s)")
    return parser


def report(out, claim, title, rows, **more):
    """Prints `rows` (dictionaries with the same keys) as a table and appends them. `more` is only written."""
    print(f"\n### {title}\n\n{table(rows)}\n", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    line = {"claim": claim, "title": title, "rows": rows, **more, **circumstances()}
    with out.open("a") as file:
        file.write(json.dumps(line) + "\n")


def table(rows):
    """Markdown. Keys are the head; None is shown as -."""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell(row[key]) for key in head) + " |" for row in rows]
    return "\n".join(lines)


def cell(value):
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def circumstances():
    """When, on what, which commit, and how busy the machine was: a figure without them cannot be compared."""
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit.stdout.strip(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": [round(x, 2) for x in os.getloadavg()],
    }


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def quantile(values, share):
    """The value below which `share` of the values lie; None without values."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else None
