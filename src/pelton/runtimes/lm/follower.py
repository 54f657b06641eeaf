"""The other processes of a tensor-parallel engine: they run the steps of rank 0 until dismissed.

Every rank holds a part of each layer and gathers the same logits, so each draws the same tokens by itself; only
layouts travel (slots, positions, new prompt tokens), over the host's own channel.
"""

from __future__ import annotations

from pelton.runtimes.lm.engine import LmEngine


def follow(engine: LmEngine) -> None:
    """Run rank 0's steps; returns when it calls `dismiss`. For every rank but 0."""
    if engine.ranks.rank == 0:
        raise ValueError("rank 0 leads: call step on it")
    while (layout := engine.ranks.share(None)) is not None:
        engine.runner.run(layout)


def dismiss(engine: LmEngine) -> None:
    """End the followers. For rank 0, when nothing is left to run."""
    if engine.ranks.rank != 0:
        raise ValueError("only rank 0 can dismiss the others")
    engine.ranks.share(None)
