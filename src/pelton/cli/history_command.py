"""`pelton history`: of a deployment, or of an alias."""

from __future__ import annotations

import argparse

from pelton.cli.control import open_control
from pelton.cli.output import percent, print_json, short, table, when
from pelton.control.orders import GetAliasHistory, History
from pelton.deployments import Change


def run(arguments: argparse.Namespace) -> int:
    ask = open_control(arguments)
    name, at, alias = arguments.model.partition("@")
    if at:
        moves = ask(GetAliasHistory(name, alias))
        rows: list[tuple[str, ...]] = [
            (str(one.revision), when(one.at), short(one.from_version), short(one.to_version), one.by, one.why)
            for one in moves.moves
        ]
        heads: tuple[str, ...] = ("REVISION", "WHEN", "FROM", "TO", "WHO", "WHY")
        answer = moves
    else:
        page = ask(History(name, arguments.limit, arguments.before))
        rows = [_row(change) for change in page.changes]
        heads = ("REVISION", "WHEN", "WHAT", "VERSION", "CANDIDATE", "WHO", "WHY")
        answer = page
    if arguments.json:
        print_json(answer)
        return 0
    print("\n".join(table(heads, rows)))
    if not at and answer.next is not None:
        print(f"older ones: pelton history {name} --before {answer.next}")
    return 0


def _row(change: Change) -> tuple[str, ...]:
    deployment = change.deployment
    candidate = f"{short(deployment.candidate)} at {percent(deployment.weight)}" if deployment.candidate else "-"
    return (
        str(change.revision), when(change.at), change.action, short(deployment.version), candidate, change.actor,
        change.why,
    )  # fmt: skip
