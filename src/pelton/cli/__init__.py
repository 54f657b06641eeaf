"""The command line: parse, build, call one function, print. Commands are imported when they are called."""

from __future__ import annotations

import importlib
import sys

from pelton.cli.parser import make_parser
from pelton.errors import PeltonError


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 failed, 2 called wrongly, 130 interrupted."""
    arguments = make_parser().parse_args(argv)
    command = importlib.import_module(f"pelton.cli.{arguments.command}_command")
    try:
        code: int = command.run(arguments)
    except PeltonError as error:
        print(f"pelton: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `pelton list | head`
        sys.stderr.close()
        return 0
    return code
