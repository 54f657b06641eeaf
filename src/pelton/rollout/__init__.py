"""Whether a candidate may take over: evidence that adds up, statistics that may be looked at at any time, and the verdict.

Everything here is pure: counts and times go in, a decision comes out.
"""

from pelton.rollout.state import Arm, Limits, Pairs, Rollout, Segment, Stretch, Worst

__all__ = ["Arm", "Limits", "Pairs", "Rollout", "Segment", "Stretch", "Worst"]
