"""THE path: every inference goes through `Engine.submit`, and every generation of a language model through
`Engine.generate`."""

from pelton.engine.engine import Engine
from pelton.engine.generation import Generation, Receipt
from pelton.engine.served import Mirror, Pick, Served, Split

__all__ = ["Engine", "Generation", "Mirror", "Pick", "Receipt", "Served", "Split"]
