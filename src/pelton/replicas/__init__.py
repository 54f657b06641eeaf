"""A replica: a loaded package, the runtime's model in memory, and what asks it. `replica` for tensors, `language` for
language models."""

from __future__ import annotations

from collections.abc import Callable

from pelton.packages import Package
from pelton.replicas.replica import Replica, bucket, join_padded, target_seconds
from pelton.replicas.replica import load as load_tensors
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.language import RUNTIME as LANGUAGE

__all__ = ["Replica", "bucket", "join_padded", "load", "target_seconds"]


def load(package: Package, options: RuntimeOptions, clock: Callable[[], float]) -> Replica:
    """Loads a package into memory; slow, meant for a thread. Raises PackageInvalid, Untrusted, ExtraMissing."""
    if package.manifest.runtime == LANGUAGE:
        from pelton.replicas import language

        return language.load(package, options, clock)
    return load_tensors(package, options, clock)
