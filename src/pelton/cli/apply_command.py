"""`pelton apply`: the desired state of a file."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

from pelton.cli.control import open_control
from pelton.cli.output import print_json
from pelton.cli.waited import wait_for
from pelton.control import desired
from pelton.control.applying import Applied
from pelton.control.orders import Apply
from pelton.errors import InvalidInput


def run(arguments: argparse.Namespace) -> int:
    path = Path(arguments.file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    desired.parse(text, str(path))  # an error names the file, also where a server would find it
    ask = open_control(arguments)
    applied: Applied = ask(Apply(tomllib.loads(text), arguments.why, arguments.diff))
    if arguments.json:
        print_json(applied)
    else:
        for line in _lines(applied):
            print(line)
    if arguments.diff:
        return 0
    changed = [step for step in applied.steps if step.action != "nothing"]
    return max([wait_for(ask, step.name, step.revision, arguments) for step in changed], default=0)


def _lines(applied: Applied) -> list[str]:
    lines = []
    for step in applied.steps:
        if step.action != "nothing":
            lines.append(f"{step.name}: {step.action}")
            lines += [f"    {line}" for line in step.lines]
    if not lines:
        return ["nothing to change"]
    return lines
