"""`pelton remove`."""

from __future__ import annotations

import argparse

from pelton.cli.models import open_registry
from pelton.types import ModelRef


def run(arguments: argparse.Namespace) -> int:
    registry = open_registry(arguments.home)
    ref = ModelRef.parse(arguments.model)
    for version in registry.remove(ref):
        print(f"removed {ref.name}:{version[:12]}")
    return 0
