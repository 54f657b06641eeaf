"""`pelton add`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pelton import importers
from pelton.cli.models import open_registry


def run(arguments: argparse.Namespace) -> int:
    registry = open_registry(arguments.home)
    options = importers.Options(
        name=arguments.name or "",
        p99_ms=arguments.p99_ms,
        objective=arguments.objective,
        max_rows=arguments.max_rows,
        trust=arguments.trust,
        example=Path(arguments.example) if arguments.example else None,
    )
    package = importers.add(arguments.source, registry, options)
    print(f"{package.name}:{package.version[:12]}")
    for spec in package.manifest.signature.inputs:
        print(f"  input   {spec.name}: {spec.datatype}{list(spec.shape)}")
    for spec in package.manifest.signature.outputs:
        print(f"  output  {spec.name}: {spec.datatype}{list(spec.shape)}")
    print(f"serve it: pelton serve {package.name}")
    return 0
