"""What is known of a rollout: its plan, how far it is, and the counts that it is judged by."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["running", "paused", "held", "promoted", "rolled_back", "aborted"]
OPEN: frozenset[Status] = frozenset({"running", "paused", "held"})


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the candidate must show. Shares are of calls: 0.01 is one call in a hundred.

    `error_increase`, `slow_increase`: how much larger the candidate's share of errors, and of calls slower than
    `latency_ms`, may be than the deployed version's. `disagreement`: share of copied calls whose answers may differ;
    None: not looked at. `alpha`: the chance, over the whole life of the rollout, that a candidate is rolled back that is
    as good as the deployed version.
    """

    error_increase: float = 0.01
    slow_increase: float = 0.02
    latency_ms: float = 0.0  # 0: the model's target
    disagreement: float | None = None
    alpha: float = 0.05
    min_calls: int = 100  # of the candidate, at each step, before the next one
    min_seconds: float = 0.0  # at each step
    max_hours: float = 24.0  # then it is held, and a person decides


class Rollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A candidate on its way. `steps` are shares of calls, rising; the last one is 1.0 and means: promote.

    `step` counts from 0; `routes` are the deployment revisions during which its calls were routed, one per stretch of
    equal weight: evidence is found by them.
    """

    id: str
    name: str
    stable: str
    candidate: str
    steps: tuple[float, ...]
    limits: Limits
    step: int = 0
    status: Status = "running"
    reason: str = ""
    routes: tuple[int, ...] = ()
    started_at: float = 0.0
    step_at: float = 0.0
    ended_at: float = 0.0
    actor: str = ""
    revision: int = 0

    @property
    def weight(self) -> float:
        """The candidate's share of calls now."""
        return self.steps[self.step]


class Arm(msgspec.Struct):
    """Calls of one version in one stretch, warm-up calls left out.

    `errors`: the version's fault (it failed, or answered what its signature forbids), each caller's key counted once.
    `slow`: over the limit, refused for being late, or over the deadline; each key once, too.
    `repeats`: calls of a key that had called before in this stretch. The rest are the calls that were split by chance:
    shares are of them, else twenty busy callers would count as twenty thousand.
    """

    calls: int = 0
    errors: int = 0
    slow: int = 0
    seconds: float = 0.0  # sum of total times
    device: float = 0.0  # sum of device seconds
    repeats: int = 0

    @property
    def callers(self) -> int:
        """Calls, those of one key counted as one."""
        return self.calls - self.repeats

    def add(self, other: Arm) -> None:
        """Adds another process's counts."""
        self.calls += other.calls
        self.errors += other.errors
        self.slow += other.slow
        self.repeats += other.repeats
        self.seconds += other.seconds
        self.device += other.device


class Segment(msgspec.Struct):
    """Pairs of one value of the segment field."""

    pairs: int = 0
    disagreements: int = 0


class Worst(msgspec.Struct):
    """A call whose two answers differ much. `inputs` and answers are short JSON-able summaries."""

    shift: float
    inputs: dict[str, object]
    deployed: dict[str, object]
    shadow: dict[str, object]


class Pairs(msgspec.Struct):
    """Copied calls, and how the two answers compare. `shift` is the shadow's score minus the deployed version's."""

    copied: int = 0
    skipped: int = 0  # not copied, because live traffic needed the device
    failed: int = 0  # the shadow gave no answer
    pairs: int = 0  # both answered
    disagreements: int = 0
    shift_sum: float = 0.0
    shift_squares: float = 0.0
    shift_largest: float = 0.0  # of the amount
    deployed_seconds: float = 0.0  # run seconds, as device share
    shadow_seconds: float = 0.0
    segments: dict[str, Segment] = {}
    worst: list[Worst] = []  # the largest shifts first, a bounded number


class Stretch(msgspec.Struct):
    """All evidence of the calls that were routed by one revision of a deployment, in one process or in all."""

    route: int
    weight: float = 0.0
    stable: Arm = msgspec.field(default_factory=Arm)
    candidate: Arm = msgspec.field(default_factory=Arm)
    pairs: Pairs = msgspec.field(default_factory=Pairs)
