"""`pelton serve`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from pelton import settings as settings_module
from pelton.cli.logs import configure
from pelton.cli.models import package_of
from pelton.errors import NotFound
from pelton.packages import Package
from pelton.registry import Registry
from pelton.server.control.plan import Scope
from pelton.server.control.start import packages_of, read_desired
from pelton.server.lifecycle import serve


def run(arguments: argparse.Namespace) -> int:
    flags = {name: getattr(arguments, name) for name in settings_module.names()}
    settings = settings_module.load(flags)
    configure(settings)
    registry = Registry(settings.home_path, settings.store_url)
    if not arguments.models:
        names = registry.models()
        if not names:
            raise NotFound("there is no model to serve: add one first, for example `pelton add model.onnx`")
        return serve(settings, registry, packages_of(registry, names, read_desired(registry)), scope=Scope())
    packages = {text: package_of(text, registry, trust=settings.trusts(text)) for text in arguments.models}
    return serve(settings, registry, list(packages.values()), scope=scope_of(packages))


def scope_of(packages: Mapping[str, Package]) -> Scope:
    """Which models follow their deployments, of those that the command line names: all but those with a version."""
    pins = {
        package.name: package.version
        for text, package in packages.items()
        if text.startswith((f"{package.name}:", f"{package.name}@"))
    }
    names = {package.name for package in packages.values()}
    return Scope(everything=False, names=frozenset(names - pins.keys()), pins=pins)
