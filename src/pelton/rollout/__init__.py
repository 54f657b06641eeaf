"""Whether a candidate may take over: evidence that adds up, statistics that may be looked at at any time, and the verdict.

Everything here is pure: counts and times go in, a decision comes out. `compare` needs numpy and is imported by itself.
"""

from pelton.rollout.policy import Decision, decide
from pelton.rollout.state import OPEN, Arm, Limits, Pairs, Rollout, Segment, Status, Stretch, Worst

__all__ = [
    "OPEN",
    "Arm",
    "Decision",
    "Limits",
    "Pairs",
    "Rollout",
    "Segment",
    "Status",
    "Stretch",
    "Worst",
    "decide",
]
