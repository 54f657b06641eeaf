"""Finding the model that a command line names."""

from __future__ import annotations

from pathlib import Path

from pelton.packages import Package
from pelton.registry import Registry
from pelton.types import ModelRef


def package_of(text: str, registry: Registry, trust: bool = False) -> Package:
    """A stored model by reference, or a source that is added first."""
    looks_like_source = "/" in text or text.startswith(("pypi:", "npm:", "hf:")) or text.endswith((".onnx", ".py"))
    if looks_like_source or (Path(text).exists() and text not in registry.models()):
        from pelton import importers

        return importers.add(text, registry, importers.Options(trust=trust))
    return registry.resolve(ModelRef.parse(text))


def open_registry(home: str | None) -> Registry:
    """The registry in `home`, or in the default one."""
    from pelton import settings

    found = settings.load({"home": home})
    return Registry(found.home_path, found.store_url)
