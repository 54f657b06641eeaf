"""The model package: a folder with `pelton.toml` and the files it names."""

from pelton.packages.manifest import MANIFEST_NAME, Batching, Golden, Manifest, Package, Slo, load, save

__all__ = ["MANIFEST_NAME", "Batching", "Golden", "Manifest", "Package", "Slo", "load", "save"]
