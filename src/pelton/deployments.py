"""Desired state: which version of each model should answer, with which candidate, weight and shadow; and who runs what.

Changes are compare-and-swap on a revision, kept in an append-only history with who and why. Server processes watch the
revisions and converge (`pelton.server.control`); they report here what they run.
"""

from __future__ import annotations

import msgspec


class Shadow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Copies of live calls go to `version`, and the answers are compared pairwise."""

    version: str
    share: float = 0.1  # of the calls that the deployed version answers, above 0 and at most 1
    tolerance: float = 0.01  # numbers that differ by less, relative to the larger, agree
    segment: str = ""  # an input field; disagreements are also counted by its value


class Deployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What should answer for one model. Versions are full digests; "" is none.

    `revision` also names the stretch of calls that were routed in this way: records carry it as `route`.
    """

    name: str
    revision: int = 0
    version: str = ""  # "": the model is not served
    previous: str = ""  # served before; kept warm, so that `rollback` is one write
    candidate: str = ""
    weight: float = 0.0  # share of calls that go to the candidate, 0 to 1
    shadow: Shadow | None = None
    rollout: str = ""  # id of the rollout that moves the weight
    slow_ms: float = 0.0  # a call that takes longer counts as slow; 0: the model's own target


class ModelStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one process does for one model. `versions`: full digest -> "serves", "candidate", "shadow", "warm",
    "loading", or why it cannot be served. `converged`: the revision that it has reached, 0 for none."""

    versions: dict[str, str] = {}
    converged: int = 0
    calls_per_second: float = 0.0  # over the last full minute
    errors_share: float = 0.0
    slow_share: float = 0.0


class ProcessStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """The report of a process that serves."""

    host: str
    pid: int
    port: int
    worker: int
    started_at: float
    models: dict[str, ModelStatus] = {}
