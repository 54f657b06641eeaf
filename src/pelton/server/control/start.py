"""What a server is started with: the models that were asked for, and what the store says of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from pelton.deployments import Deployment, Deployments
from pelton.errors import PeltonError
from pelton.packages import Package
from pelton.registry import Registry
from pelton.types import ModelRef

log = logging.getLogger(__name__)


def read_desired(registry: Registry) -> dict[str, Deployment]:
    """Every deployment of the store. Raises PeltonError."""
    return Deployments(registry.store).all()


def packages_of(registry: Registry, names: Iterable[str], desired: Mapping[str, Deployment]) -> list[Package]:
    """One package a model: its deployed version, else its newest. Raises what `Registry.resolve` raises for the newest;
    a deployed one that is damaged must not keep the others from serving, and is told of when it is loaded."""
    found = []
    for name in names:
        deployment = desired.get(name)
        version = deployment.version or deployment.previous if deployment is not None else ""
        try:
            found.append(registry.resolve(ModelRef(name, version)))
        except PeltonError as error:
            if deployment is None:
                raise
            log.error("model %s: %s", name, error)
    return found
