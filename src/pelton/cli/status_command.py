"""`pelton status`: what should run, what runs, and how the rollouts stand."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from pelton.cli.control import open_control
from pelton.cli.output import percent, print_json, short, when
from pelton.control.orders import Status as GetStatus
from pelton.control.views import ModelState, ProcessState, RolloutState, Status
from pelton.deployments import Deployment

WATCH_SECONDS = 1.0
CLEAR = "\033[H\033[2J"


def run(arguments: argparse.Namespace) -> int:
    ask = open_control(arguments)
    order = GetStatus(arguments.name or "")
    while True:
        status: Status = ask(order)
        if arguments.json:
            print_json(status)
        else:
            begin = CLEAR if arguments.watch and sys.stdout.isatty() else ""
            print(begin + "\n".join(lines_of(status)), flush=True)
        if not arguments.watch:
            return 0
        time.sleep(WATCH_SECONDS)


def lines_of(status: Status) -> Iterator[str]:
    """The status as text."""
    if not status.models:
        yield "nothing is deployed and nothing serves; deploy a model: pelton deploy NAME"
    for model in status.models:
        yield from _model(model)
    if status.models and not status.processes:
        yield "no server is running: start one with `pelton serve`"


def _model(model: ModelState) -> Iterator[str]:
    rate = f"{model.calls_per_second:.1f} calls/s"
    shares = f"errors {percent(model.errors_share)}, slow {percent(model.slow_share)}"
    yield f"{model.name}: {_desired(model.deployment)}, {rate}, {shares}"
    if model.deployment is not None and model.deployment.shadow is not None:
        shadow = model.deployment.shadow
        yield f"  shadow {short(shadow.version)} answers copies of {percent(shadow.share)} of the calls"
    if model.rollout is not None:
        yield from rollout_lines(model.rollout)
    for process in model.processes:
        yield f"  {_process(process, model.deployment)}"


def rollout_lines(state: RolloutState) -> Iterator[str]:
    """A rollout that is open, as text."""
    rollout = state.rollout
    yield (
        f"  rollout {rollout.id} of {short(rollout.candidate)}: {rollout.status} at {percent(rollout.weight)} "
        f"(step {rollout.step + 1} of {len(rollout.steps)}), since {when(rollout.started_at)} by {rollout.actor}"
    )
    yield f"    {state.verdict}: {state.reason}"


def _desired(deployment: Deployment | None) -> str:
    if deployment is None:
        return "never deployed"
    if not deployment.version:
        return f"not deployed (revision {deployment.revision})"
    previous = f", before it {short(deployment.previous)}" if deployment.previous else ""
    return f"{short(deployment.version)} (revision {deployment.revision}{previous})"


def _process(process: ProcessState, deployment: Deployment | None) -> str:
    where = f"{process.host}:{process.port} process {process.pid}"
    runs = ", ".join(f"{short(version)} {state}" for version, state in process.model.versions.items()) or "nothing"
    if process.model.pinned:
        return f"{where}: {runs}; pinned, it does not follow the deployment"
    if deployment is None or process.converged:
        return f"{where}: {runs}"
    if process.problem:
        return f"{where}: {runs}; it stays at revision {process.model.converged}"
    return f"{where}: {runs}; it is on its way to revision {deployment.revision}"
