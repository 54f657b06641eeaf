"""THE path: every inference goes through `Engine.submit`."""

from pelton.engine.engine import Engine
from pelton.engine.served import Served

__all__ = ["Engine", "Served"]
