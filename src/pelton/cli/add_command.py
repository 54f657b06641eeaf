"""`pelton add`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pelton import importers
from pelton.cli.control import actor
from pelton.cli.logs import tell_progress
from pelton.cli.models import open_registry
from pelton.errors import InvalidInput
from pelton.types import ModelRef


def run(arguments: argparse.Namespace) -> int:
    tell_progress()
    registry = open_registry(arguments.home)
    options = importers.Options(
        name=arguments.name or "",
        p99_ms=arguments.p99_ms,
        ttft_ms=arguments.ttft_ms,
        tpot_ms=arguments.tpot_ms,
        objective=arguments.objective,
        max_rows=arguments.max_rows,
        trust=arguments.trust,
        example=Path(arguments.example) if arguments.example else None,
        by=actor(),
        parent=registry.find(ModelRef.parse(arguments.parent)).version if arguments.parent else "",
        derivation=arguments.derivation,
        accepted_on=arguments.accepted_on,
        metrics=metrics_of(arguments.metrics),
        settings=settings_of(arguments.option),
    )
    package = importers.add(arguments.source, registry, options)
    print(f"{package.name}:{package.version[:12]}")
    for spec in package.manifest.signature.inputs:
        print(f"  input   {spec.name}: {spec.datatype}{list(spec.shape)}")
    for spec in package.manifest.signature.outputs:
        print(f"  output  {spec.name}: {spec.datatype}{list(spec.shape)}")
    print(f"serve it: pelton serve {package.name}")
    return 0


def settings_of(given: Sequence[str]) -> dict[str, Any]:
    """Options of a runtime out of `NAME=VALUE`: numbers, true and false, else text. Raises InvalidInput."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidInput(f"--option takes NAME=VALUE, such as engine=openvino, not {text!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def metrics_of(text: str) -> dict[str, float]:
    """Names and numbers out of `accuracy=0.93,auc=0.97`. Raises InvalidInput."""
    found = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            name = ""
        if not name.strip():
            raise InvalidInput(f"--metrics takes NAME=NUMBER with commas, such as accuracy=0.93, not {part!r}")
    return found
