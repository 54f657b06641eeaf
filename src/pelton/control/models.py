"""Models, versions and aliases: what there is, what differs, where aliases point, and what may be forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pelton.control.desk import UNKNOWN, Desk, version_ref
from pelton.deployments import Deployment
from pelton.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from pelton.control.model_views import AliasHistory, AliasList, Collection, ModelList, ModelView
    from pelton.packages.comparison import Diff
    from pelton.registry import Alias
    from pelton.types import ModelRef


class Models(Desk):
    """The operations on the registry."""

    def models(self, name: str = "") -> ModelList:
        """All models, or one of them. Raises NotFound."""
        from pelton.control.model_views import ModelList

        deployments = self.deployments.all()
        names = [name] if name else self.registry.models()
        return ModelList([self._view(one, deployments.get(one)) for one in names])

    def diff(self, a: str, b: str) -> Diff:
        """What differs between two versions: files, signature, manifest, metrics. Raises NotFound."""
        return self.registry.diff(_parsed(a), _parsed(b))

    def aliases(self, name: str) -> AliasList:
        """Where the aliases of a model point. Raises NotFound."""
        from pelton.control.model_views import AliasList

        self.registry.versions(name)
        return AliasList(self.registry.aliases(name))

    def set_alias(
        self,
        name: str,
        alias: str,
        version: str,
        why: str = "",
        expect: int | None = None,
        evidence: dict[str, Any] | None = None,
        actor: str = "",
    ) -> Alias:
        """Points an alias at a version (its first digits, or another `@ALIAS`), by compare-and-swap.

        `expect`: the alias's revision that the caller saw, 0 for an alias that never was; None: as it is found now.
        Raises NotFound, InvalidInput, Conflict."""
        if not version.strip("@"):
            raise InvalidInput(
                f"name the version that {name}@{alias} is to point at: its first digits, or another @ALIAS"
            )
        full = self.registry.find(_parsed(version_ref(name, version))).version
        seen = self._revision(name, alias) if expect is None else expect
        return self.registry.set_alias(
            name, alias, full, expect=seen, by=actor or UNKNOWN, why=why, evidence=evidence or {}
        )

    def remove_alias(
        self, name: str, alias: str, why: str = "", expect: int | None = None, actor: str = ""
    ) -> AliasList:
        """Takes an alias away and returns those that stay. Raises NotFound, Conflict."""
        from pelton.control.model_views import AliasList

        now = self.registry.alias(name, alias)
        seen = now.revision if expect is None else expect
        self.registry.remove_alias(name, alias, expect=seen, by=actor or UNKNOWN, why=why)
        return AliasList(self.registry.aliases(name))

    def alias_history(self, name: str, alias: str) -> AliasHistory:
        """How an alias has moved. Raises NotFound where it never was."""
        from pelton.control.model_views import AliasHistory

        moves = self.registry.alias_history(name, alias)
        if not moves:
            self.registry.versions(name)
            raise NotFound(f"the model {name!r} never had an alias {alias!r}")
        return AliasHistory(moves)

    def gc(self, older_than: float = 30 * 86400.0, dry_run: bool = False, actor: str = "") -> Collection:
        """Removes versions that nothing needs and that are older than so many seconds. `dry_run`: only tells."""
        from pelton.control.model_views import Collection

        if not 0 <= older_than < float("inf"):
            raise InvalidInput(f"the age is a number of seconds, 0 or more, not {older_than:g}")
        collected = self.registry.gc(older_than, dry_run=dry_run, by=actor or UNKNOWN)
        return Collection(list(collected), sum(max(one.size, 0) for one in collected), not dry_run)

    def _revision(self, name: str, alias: str) -> int | str:
        """What the compare-and-swap of an alias goes out from: its revision; "" where it points nowhere."""
        for one in self.registry.aliases(name):
            if one.alias == alias:
                return one.revision
        return ""

    def _view(self, name: str, deployment: Deployment | None) -> ModelView:
        from pelton.control.model_views import ModelView, VersionView

        aliases = self.registry.aliases(name)
        versions = [
            VersionView(
                entry, [one.alias for one in aliases if one.version == entry.version], _role(entry.version, deployment)
            )
            for entry in self.registry.versions(name)
        ]
        return ModelView(name, versions, aliases, deployment)


def _role(version: str, deployment: Deployment | None) -> str:
    if deployment is None:
        return ""
    shadow = deployment.shadow.version if deployment.shadow is not None else ""
    roles = (
        ("deployed", deployment.version),
        ("candidate", deployment.candidate),
        ("shadow", shadow),
        ("previous", deployment.previous),
    )
    return next((role for role, holder in roles if holder == version), "")


def _parsed(ref: str) -> ModelRef:
    from pelton.types import ModelRef

    return ModelRef.parse(ref)
