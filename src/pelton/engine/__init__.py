"""THE path: every inference goes through `Engine.submit`."""

from pelton.engine.engine import Engine
from pelton.engine.served import Mirror, Pick, Served, Split

__all__ = ["Engine", "Mirror", "Pick", "Served", "Split"]
