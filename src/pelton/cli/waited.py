"""After a change: waiting until the processes have made it, and saying how that ended."""

from __future__ import annotations

import argparse
import sys

from pelton.cli.control import Ask
from pelton.control.orders import Status
from pelton.control.waiting import wait
from pelton.errors import NotFound


def wait_for(ask: Ask, name: str, revision: int, arguments: argparse.Namespace) -> int:
    """The exit code: 0 where the processes do what was ordered, or there is nobody to do it."""
    if not arguments.wait:
        return 0
    try:
        waited = wait(lambda: ask(Status(name)), revision, arguments.wait)
    except NotFound:  # removed by somebody else meanwhile
        return 0
    if waited.outcome == "converged":
        print(f"{_count(waited.processes)} converged in {waited.seconds:.2f} s", file=sys.stderr)
        return 0
    if waited.outcome == "nobody":
        print("no running server follows this model; those that start later will", file=sys.stderr)
        return 0
    if waited.outcome == "failed":
        for problem in waited.problems:
            print(f"pelton: {problem}", file=sys.stderr)
        print("what served before goes on serving; see: pelton status", file=sys.stderr)
        return 1
    print(
        f"pelton: not every process has made the change within {waited.seconds:.0f} s; see: pelton status {name}",
        file=sys.stderr,
    )
    return 1


def _count(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"
