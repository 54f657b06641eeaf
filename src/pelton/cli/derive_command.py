"""`pelton derive`."""

from __future__ import annotations

import argparse

from pelton.cli.control import actor
from pelton.cli.logs import tell_progress
from pelton.cli.models import open_registry
from pelton.importers import Options
from pelton.importers.derive import Derived, derive
from pelton.types import ModelRef


def run(arguments: argparse.Namespace) -> int:
    tell_progress()
    registry = open_registry(arguments.home)
    parent = registry.resolve(ModelRef.parse(arguments.model))
    options = Options(name=arguments.name or "", by=actor(), accepted_on=arguments.accepted_on)
    derived = derive(parent, arguments.format, registry, options, measured=arguments.measure)
    print(f"{derived.package.name}:{derived.package.version[:12]}")
    print(f"  made of   {parent.name}:{parent.version[:12]} as {arguments.format}")
    print(f"  size      {derived.size / 1e6:.1f} MB instead of {derived.parent_size / 1e6:.1f} MB")
    for line in quality_lines(derived):
        print(f"  quality   {line}")
    print(f"serve it: pelton serve {derived.package.name}")
    return 0


def quality_lines(derived: Derived) -> list[str]:
    """What was lost, for people."""
    found = derived.quality
    if found is None:
        return [f"not measured: {derived.why}"]
    return [
        f"the same most likely token as its parent at {found.top1_agreement:.1%} of {found.tokens} tokens",
        f"KL divergence {found.kl:.4f} nats, perplexity {found.perplexity:.2f} instead of {found.parent_perplexity:.2f}",
        f"measured through {found.engine}, on texts that come with Pelton"
        + (f", against the parent's weights as {found.reference}" if found.reference else ""),
    ]
