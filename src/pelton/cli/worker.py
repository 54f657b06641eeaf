"""`python -P -m pelton.cli.worker CHANNEL`: a worker process of `pelton serve --workers N`. Started by the supervisor."""

from __future__ import annotations

import sys

from pelton.cli.logs import configure
from pelton.errors import PeltonError
from pelton.server.workers.worker import run, take_over


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    try:
        handover, channel = take_over(int(arguments[0]))
        configure(handover.settings)
        return run(handover, channel)
    except PeltonError as error:
        print(f"pelton: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
