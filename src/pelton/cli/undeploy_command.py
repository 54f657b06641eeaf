"""`pelton undeploy`."""

from __future__ import annotations

import argparse

from pelton.cli.control import open_control
from pelton.cli.output import print_json
from pelton.cli.waited import wait_for
from pelton.control.answers import Changed
from pelton.control.orders import Undeploy


def run(arguments: argparse.Namespace) -> int:
    ask = open_control(arguments)
    done: Changed = ask(Undeploy(arguments.name, arguments.why, arguments.expect))
    if arguments.json:
        print_json(done)
    else:
        print(done.message)
    return wait_for(ask, arguments.name, done.revision, arguments)
