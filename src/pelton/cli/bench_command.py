"""`pelton bench`: what rate a served model holds within its latency target."""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
from pathlib import Path
from typing import Any

from pelton.bench import Plan, Target, render_html, render_table, run_bench
from pelton.cli.http_client import Client
from pelton.errors import InvalidInput
from pelton.types import ModelRef

VARIED = 64  # different bodies made of one example, so that no cache is measured


def run(arguments: argparse.Namespace) -> int:
    client = Client(arguments.url)
    if client.secure:
        raise InvalidInput(f"{client.url}: bench speaks plain HTTP only: ask the server where it listens without TLS")
    ref = ModelRef.parse(arguments.model)
    path = Path(arguments.report or f"bench-{ref.name}.html")
    _check_place(path)
    told = _target_of(client.get(f"/v2/models/{ref.name}" + (f"/versions/{ref.version}" if ref.version else "")))
    target = Target(
        host=client.host,
        port=client.port,
        path=f"/predict/{ref.name}" + (f"/{ref.version}" if ref.version else ""),
        bodies=tuple(_bodies(arguments.body, client, ref.name)),
        p99_ms=told if arguments.p99_ms is None else arguments.p99_ms,
        name=arguments.model,
    )
    callers = _callers(arguments.callers)
    command = "pelton bench " + " ".join(shlex.quote(word) for word in sys.argv[2:])
    plan = Plan(callers=callers, command=command)
    if arguments.quick:
        plan = Plan(
            callers=callers, command=command, step_seconds=1, confirm_seconds=2, fractions=(0.5,), resolution=0.1
        )
    report = run_bench(target, plan, lambda line: print(line, file=sys.stderr, flush=True))
    print(render_table(report))
    try:
        path.write_text(render_html(report), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"--report: cannot write {path}: {error.strerror}") from None
    print(f"report: {path}")
    return 0 if report.held else 1


def _target_of(metadata: Any) -> float:
    """The model's own target in milliseconds."""
    try:
        return float(metadata["properties"]["target_ms"])
    except (KeyError, TypeError, ValueError):
        raise InvalidInput("the server tells no target of this model: is it a server of Pelton?") from None


def _check_place(path: Path) -> None:
    """Before a minute of load: whether the report can be written."""
    if path.is_dir() or not path.parent.is_dir():
        raise InvalidInput(f"--report: {path} is no place for a file")


def _callers(text: str) -> tuple[int, ...]:
    try:
        callers = tuple(int(part) for part in text.split(","))
    except ValueError:
        callers = ()
    if not callers or min(callers) < 1:
        raise InvalidInput(f"--callers takes numbers with commas, such as 1,8,32, not {text!r}")
    return callers


def _bodies(path: str | None, client: Client, name: str) -> list[bytes]:
    """What is sent in turn: the lines of a file, or variations of the example that the server gives for the model."""
    if path is not None:
        try:
            return [line for line in Path(path).read_bytes().splitlines() if line.strip()]
        except OSError as error:
            raise InvalidInput(f"cannot read {path}: {error.strerror}") from None
    row = client.get(f"/models/{name}/example")
    return [json.dumps(_varied(row, random.Random(i))).encode() for i in range(VARIED)]  # noqa: S311 - not a secret


def _varied(value: Any, random_: random.Random) -> Any:
    """The same structure with other decimals: floats move by up to 10 %, everything else stays."""
    if isinstance(value, dict):
        return {name: _varied(part, random_) for name, part in value.items()}
    if isinstance(value, list):
        return [_varied(part, random_) for part in value]
    if isinstance(value, float):
        return round(value * random_.uniform(0.9, 1.1), 6)
    return value
