"""What operations answer: plain data, the same in Python, over HTTP and in `--json`."""

from __future__ import annotations

import msgspec

from pelton.deployments import Deployment
from pelton.rollout.state import Rollout


class Changed(msgspec.Struct, frozen=True):
    """A deployment after an order. `changed`: False where it was so already. `message` is for people."""

    deployment: Deployment
    changed: bool
    message: str

    @property
    def revision(self) -> int:
        return self.deployment.revision


class Moved(msgspec.Struct, frozen=True):
    """A rollout after an order, and its deployment where that moved, too. `message` is for people."""

    rollout: Rollout
    deployment: Deployment | None
    changed: bool
    message: str

    @property
    def revision(self) -> int:
        return self.rollout.revision
