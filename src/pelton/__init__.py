"""Pelton puts trained models into production."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "package"]

if TYPE_CHECKING:
    from pelton.api import package


def __getattr__(name: str) -> Any:
    if name == "package":  # imported when asked for: `import pelton` stays light
        from pelton.api import package

        return package
    raise AttributeError(f"module 'pelton' has no attribute {name!r}")
