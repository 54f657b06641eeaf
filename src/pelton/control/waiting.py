"""Waiting until the processes do what was ordered. Works on `status` answers, so it is the same near and far."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from pelton.control.views import ModelState, Status

POLL_SECONDS = 0.02
STALE_SECONDS = 2.0  # a report may still tell of an earlier attempt for so long
SILENT_SECONDS = 1.0  # a process that has just started reports when it sees the change


class Waited(msgspec.Struct, frozen=True):
    """How it ended: "converged", "failed" (`problems` say why), "timeout", or "nobody": no live process follows it."""

    outcome: str
    seconds: float
    processes: int
    problems: list[str]


def wait(
    look: Callable[[], Status],
    revision: int,
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Waited:
    """Until every live process that follows the model has reached `revision` or a later one, or one says that it cannot.

    `look` gives the status of that one model."""
    begin = clock()
    before: list[str] | None = None
    while True:
        status = look()
        seconds = clock() - begin
        following = [process for model in status.models for process in model.processes if not process.model.pinned]
        if not status.processes and seconds >= min(SILENT_SECONDS, timeout):
            return Waited("nobody", seconds, 0, [])
        if following and all(process.model.converged >= revision for process in following):
            return Waited("converged", seconds, len(following), [])
        problems = [problem for model in status.models for problem in _problems(model, revision)]
        before = problems if before is None else before
        if set(problems) - set(before) or (problems and seconds >= STALE_SECONDS):
            return Waited("failed", seconds, len(following), problems)
        if seconds >= timeout:
            return Waited("timeout" if following else "nobody", seconds, len(following), [])
        sleep(POLL_SECONDS)


def _problems(model: ModelState, revision: int) -> list[str]:
    """What keeps processes from this revision; not what they told before they knew of it."""
    if model.deployment is None or model.deployment.revision < revision:
        return []
    return model.problems
