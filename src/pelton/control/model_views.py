"""What operations on the registry answer. Apart, because the registry brings numpy, which a rollback does not need."""

from __future__ import annotations

import msgspec

from pelton.deployments import Deployment
from pelton.registry import Alias, AliasMove, Collected, Entry


class VersionView(msgspec.Struct, frozen=True):
    """One version. `role` in the deployment: "deployed", "candidate", "shadow", "previous", or ""."""

    entry: Entry
    aliases: list[str]
    role: str


class ModelView(msgspec.Struct, frozen=True):
    """A model with its versions, the newest first."""

    name: str
    versions: list[VersionView]
    aliases: list[Alias]
    deployment: Deployment | None


class ModelList(msgspec.Struct, frozen=True):
    """Models by name."""

    models: list[ModelView]


class AliasList(msgspec.Struct, frozen=True):
    """Aliases of a model that point somewhere."""

    aliases: list[Alias]


class AliasHistory(msgspec.Struct, frozen=True):
    """Moves of aliases, the newest first."""

    moves: list[AliasMove]


class Collection(msgspec.Struct, frozen=True):
    """What garbage collection removed, or, `done` being False, would remove. `size` in bytes."""

    collected: list[Collected]
    size: int
    done: bool
