"""The command line: parse, build, call one function, print. Commands are imported when they are called."""

from __future__ import annotations

import importlib
import os
import sys

from pelton.cli.parser import make_parser
from pelton.errors import PeltonError


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 failed, 2 called wrongly, 130 interrupted."""
    arguments = make_parser().parse_args(argv)
    command = importlib.import_module(f"pelton.cli.{arguments.command}_command")
    try:
        code: int = command.run(arguments)
        sys.stdout.flush()
    except PeltonError as error:
        print(f"pelton: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `pelton list | head`
        # what is left in the buffer would be written, and fail, once more when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code
