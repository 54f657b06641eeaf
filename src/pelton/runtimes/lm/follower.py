"""The other processes of a tensor-parallel engine: they run the plans of rank 0 until dismissed.

Every rank holds a part of each layer and gathers the same logits, so each draws the same tokens by itself; only
plans travel, over the host's own channel. A plan carries its sequences, whose tokens a follower must know as well.
"""

from __future__ import annotations

from pelton.runtimes.lm.engine import LmEngine


def follow(engine: LmEngine) -> None:
    """Run rank 0's plans; returns when it calls `dismiss`. For every rank but 0."""
    if engine.ranks.rank == 0:
        raise ValueError("rank 0 leads: call step on it")
    while (plan := engine.ranks.share(None)) is not None:
        engine.runner.launch(plan)


def dismiss(engine: LmEngine) -> None:
    """End the followers. For rank 0, when nothing is left to run."""
    if engine.ranks.rank != 0:
        raise ValueError("only rank 0 can dismiss the others")
    engine.ranks.share(None)
