"""`pelton serve`."""

from __future__ import annotations

import argparse
import logging

from pelton import settings as settings_module
from pelton.cli.logs import configure
from pelton.cli.models import package_of
from pelton.errors import NotFound
from pelton.registry import Registry
from pelton.server.lifecycle import serve
from pelton.types import ModelRef

log = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> int:
    flags = {name: getattr(arguments, name) for name in settings_module.names()}
    settings = settings_module.load(flags)
    configure(settings)
    registry = Registry(settings.home_path)
    wanted = arguments.models or registry.models()
    if not wanted:
        raise NotFound("there is no model to serve: add one first, for example `pelton add model.onnx`")
    packages = [
        package_of(text, registry, trust=settings.trusts(text))
        if arguments.models
        else registry.resolve(ModelRef(text))
        for text in wanted
    ]
    return serve(settings, registry, packages)
