"""One Markdown page of a file of results. usage: summary.py results.jsonl [--to summary.md] [--failed "accept.py" ...]"""

import argparse
import json
from pathlib import Path

import results


def page(lines, failed):
    if not lines:
        return "# Benchmarks\n\nNothing was measured.\n"
    first, last = lines[0], lines[-1]
    parts = [
        "# Benchmarks",
        f"{first['when']} to {last['when']}, commit {first['commit']}, {first['cpu']}, {first['cores']} cores, "
        f"Python {first['python']}. Load of the machine: {', '.join(str(line['load'][0]) for line in lines)}.",
    ]
    if failed:
        parts.append("Did not hold, or failed: " + ", ".join(f"`{name}`" for name in failed) + ".")
    for line in lines:
        parts += [f"## {line['title']}", results.table(line["rows"])]
        parts += [f"- failure: {text}" for text in line.get("failures", [])]
    return "\n\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--to", type=Path)
    parser.add_argument("--failed", nargs="*", default=[])
    args = parser.parse_args()
    text = args.file.read_text() if args.file.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    written = page([line for line in lines if "rows" in line and "title" in line], args.failed)
    if args.to:
        args.to.write_text(written)
    else:
        print(written)


if __name__ == "__main__":
    main()
