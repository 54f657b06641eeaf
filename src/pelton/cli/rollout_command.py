"""`pelton rollout`: start one, look at it, move it by hand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from pelton.cli.control import Ask, open_control
from pelton.cli.output import percent, print_json, short, when
from pelton.cli.status_command import rollout_lines
from pelton.cli.waited import wait_for
from pelton.control.answers import Moved
from pelton.control.orders import Abort, ListRollouts, Pause, Promote, Resume, StartRollout, Status
from pelton.control.rollouts import Started, parse_steps
from pelton.control.views import RolloutList, RolloutState
from pelton.errors import InvalidInput
from pelton.rollout.state import Limits

MOVES = {"pause": Pause, "resume": Resume, "abort": Abort, "promote": Promote}
ACTIONS = ("status", *MOVES)


def run(arguments: argparse.Namespace) -> int:
    words = arguments.what
    if len(words) == 1:
        return _start(open_control(arguments), words[0], arguments)
    action, name = words[0], words[1]
    if len(words) > 2 or action not in ACTIONS:
        raise InvalidInput(
            f"write `pelton rollout NAME:VERSION`, or one of {', '.join(ACTIONS)} and the NAME, not {' '.join(words)!r}"
        )
    ask = open_control(arguments)
    if action == "status":
        return _status(ask, name, arguments)
    moved: Moved = ask(MOVES[action](name, arguments.why, arguments.expect))
    if arguments.json:
        print_json(moved)
    else:
        print(moved.message)
    return wait_for(ask, name, moved.deployment.revision, arguments) if moved.deployment is not None else 0


def _start(ask: Ask, ref: str, arguments: argparse.Namespace) -> int:
    limits = Limits(
        error_increase=arguments.max_error_increase,
        slow_increase=arguments.max_slow_increase,
        latency_ms=arguments.max_latency,
        disagreement=arguments.max_disagreement,
        alpha=arguments.alpha,
        min_calls=arguments.min_calls,
        min_seconds=arguments.min_seconds,
        max_hours=arguments.max_hours,
    )
    steps = parse_steps(arguments.steps)

    def order(dry_run: bool) -> StartRollout:
        return StartRollout(ref, steps, limits, arguments.why, dry_run, arguments.force, arguments.shadow_share)

    if arguments.dry_run or not arguments.yes:
        planned: Started = ask(order(dry_run=True))
        if not arguments.json or not arguments.dry_run:
            print("\n".join(_plan(planned)), file=sys.stderr if arguments.json else sys.stdout, flush=True)
        if arguments.dry_run:
            if arguments.json:
                print_json(planned)
            return 0
        if not _confirmed():
            print("nothing was started", file=sys.stderr)
            return 1
    started: Started = ask(order(dry_run=False))
    if arguments.json:
        print_json(started)
    else:
        if arguments.yes:
            print("\n".join(_plan(started)))
        print(f"rollout {started.rollout.id} has started; look at it: pelton rollout status {started.rollout.name}")
    return wait_for(ask, started.rollout.name, started.deployment.revision, arguments)


def _plan(started: Started) -> Iterator[str]:
    rollout = started.rollout
    yield f"{rollout.name}: {short(rollout.stable)} -> {short(rollout.candidate)}"
    yield started.plan.text()
    yield from (f"warning: {warning}" for warning in started.warnings)


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise InvalidInput("nobody is there to confirm the plan: add --yes, or --dry-run to see the plan only")
    print("start? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _status(ask: Ask, name: str, arguments: argparse.Namespace) -> int:
    status = ask(Status(name))
    state: RolloutState | None = status.models[0].rollout
    if arguments.json:
        print_json(state)
        return 0
    if state is not None:
        print("\n".join(rollout_lines(state)))
        print("\n".join(_figures(state)))
        return 0
    print(f"no rollout of {name} is open")
    past: RolloutList = ask(ListRollouts(name, 5))
    for rollout in past.rollouts:
        print(f"  {when(rollout.ended_at)}  {short(rollout.candidate)} {rollout.status}: {rollout.reason}")
    return 0


def _figures(state: RolloutState) -> Iterator[str]:
    """Counts of both versions, and what was compared."""
    for part in state.evidence:
        for arm, what in ((part.candidate, "candidate"), (part.stable, "deployed")):
            mean = arm.seconds / arm.calls * 1e3 if arm.calls else 0.0
            yield (
                f"    at {percent(part.weight):>6}  {what:9}  {arm.calls:,} calls, {arm.errors:,} errors, {arm.slow:,} slow, "
                f"{mean:.1f} ms each"
            )
        pairs = part.pairs
        if pairs.pairs:
            yield f"    at {percent(part.weight):>6}  compared   {pairs.pairs:,} pairs, {pairs.disagreements:,} differ"
