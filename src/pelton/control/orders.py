"""Every operation as data: what it is given, how it is called over HTTP, and what it answers. One table.

The command line makes an order and has it carried out here or by a server; the admin API turns a request into the same
order; the documentation and the OpenAPI document are made of this table, too. The fields of an order are the parameters
of the method of `Control` with that name (a test compares them).
"""

from __future__ import annotations

import importlib
from typing import Any, Literal, NamedTuple

import msgspec

from pelton.rollout.state import Limits


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an operation is given."""


class Status(Order, frozen=True):
    """Desired state, processes, rates and rollouts of all models, or of one."""

    name: str = ""


class GetDeployment(Order, frozen=True):
    """The desired state of a model; its revision is the ETag."""

    name: str


class History(Order, frozen=True):
    """Changes of a model's deployment, the newest first."""

    name: str
    limit: int = 50
    before: int | None = None


class ListModels(Order, frozen=True):
    """Models with their versions, aliases and roles, or one of them."""

    name: str = ""


class GetDiff(Order, frozen=True):
    """What differs between two versions: files, signature, manifest, metrics."""

    a: str
    b: str


class ListAliases(Order, frozen=True):
    """Where the aliases of a model point."""

    name: str


class GetAliasHistory(Order, frozen=True):
    """How an alias has moved, the newest move first."""

    name: str
    alias: str


class SetAlias(Order, frozen=True):
    """Points an alias at a version, by compare-and-swap on the alias's revision."""

    name: str
    alias: str
    version: str
    why: str = ""
    expect: int | None = None
    evidence: dict[str, Any] | None = None


class RemoveAlias(Order, frozen=True):
    """Takes an alias away; its history stays."""

    name: str
    alias: str
    why: str = ""
    expect: int | None = None


class Deploy(Order, frozen=True):
    """Makes a version the one that answers: `NAME:VERSION`, `NAME@ALIAS`, or `NAME` for the newest."""

    ref: str
    why: str = ""
    expect: int | None = None
    slow_ms: float | None = None


class Undeploy(Order, frozen=True):
    """Takes a model out of service."""

    name: str
    why: str = ""
    expect: int | None = None


class Rollback(Order, frozen=True):
    """Aborts the open rollout, or else brings back the version that served before, or the one named by `to`."""

    name: str
    why: str = ""
    to: str = ""
    expect: int | None = None


class SetShadow(Order, frozen=True):
    """Copies a share of the calls to a version (or `@ALIAS`) whose answers are compared; an empty version ends it."""

    name: str
    version: str = ""
    share: float = 0.1
    tolerance: float = 0.01
    segment: str = ""
    why: str = ""
    expect: int | None = None


class StartRollout(Order, frozen=True):
    """Gives a version rising shares of the calls, until its evidence promotes it or rolls it back."""

    ref: str
    steps: tuple[float, ...] = (0.01, 0.05, 0.25, 0.5, 1.0)
    limits: Limits = Limits()
    why: str = ""
    dry_run: bool = False
    force: bool = False
    shadow_share: float = 0.1


class ListRollouts(Order, frozen=True):
    """Rollouts of a model, the newest first."""

    name: str
    limit: int = 50


class Pause(Order, frozen=True):
    """Leaves the candidate its share; no verdict moves it until it is resumed."""

    name: str
    why: str = ""
    expect: int | None = None


class Resume(Order, frozen=True):
    """Lets verdicts move a paused or held rollout again."""

    name: str
    why: str = ""
    expect: int | None = None


class Abort(Order, frozen=True):
    """Ends a rollout without its candidate."""

    name: str
    why: str = ""
    expect: int | None = None


class Promote(Order, frozen=True):
    """Ends a rollout with its candidate deployed, whatever the evidence says."""

    name: str
    why: str = ""
    expect: int | None = None


class Apply(Order, frozen=True):
    """Brings models to the state that a deploy.toml declares, given as JSON; `dry_run` tells what would change."""

    desired: dict[str, Any]
    why: str = ""
    dry_run: bool = False


class Gc(Order, frozen=True):
    """Removes versions that nothing needs and that were added more than `older_than` seconds ago."""

    older_than: float = 30 * 86400.0
    dry_run: bool = False


class ReadAudit(Order, frozen=True):
    """Events after an id, or the last ones."""

    name: str = ""
    action: str = ""
    after: int | None = None
    limit: int = 100


class ListWebhooks(Order, frozen=True):
    """Who is told of events, and how far."""


class AddWebhook(Order, frozen=True):
    """Has a URL told of events, or of those with one of `actions`; the answer alone shows the secret."""

    url: str
    actions: tuple[str, ...] = ()
    secret: str | None = None


class RemoveWebhook(Order, frozen=True):
    """Takes a webhook away."""

    webhook: str


class Operation(NamedTuple):
    """How an order is carried out: by which method of `Control`, at which path below the prefix, with what answer.

    `answer` is `module:class` in `pelton`; it is imported only by who decodes one, for the sake of short commands."""

    order: type[Order]
    method: str
    verb: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    answer: str

    @property
    def writes(self) -> bool:
        """Whether it changes something, so that it has an actor."""
        return self.verb != "GET"

    @property
    def in_path(self) -> tuple[str, ...]:
        """Fields that stand in the path."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))

    def answer_type(self) -> Any:
        """The class of the answer."""
        module, _, name = self.answer.partition(":")
        return getattr(importlib.import_module(f"pelton.{module}"), name)


OPERATIONS: tuple[Operation, ...] = (
    Operation(Status, "status", "GET", "/status", "control.views:Status"),
    Operation(ListModels, "models", "GET", "/models", "control.model_views:ModelList"),
    Operation(GetDiff, "diff", "GET", "/diff", "packages.comparison:Diff"),
    Operation(GetDeployment, "deployment", "GET", "/models/{name}/deployment", "deployments:Deployment"),
    Operation(History, "history", "GET", "/models/{name}/history", "control.views:HistoryPage"),
    Operation(Deploy, "deploy", "POST", "/models/{ref}/deploy", "control.answers:Changed"),
    Operation(Undeploy, "undeploy", "POST", "/models/{name}/undeploy", "control.answers:Changed"),
    Operation(Rollback, "rollback", "POST", "/models/{name}/rollback", "control.answers:Changed"),
    Operation(SetShadow, "shadow", "PUT", "/models/{name}/shadow", "control.answers:Changed"),
    Operation(StartRollout, "start_rollout", "POST", "/models/{ref}/rollout", "control.rollouts:Started"),
    Operation(ListRollouts, "rollouts", "GET", "/models/{name}/rollouts", "control.views:RolloutList"),
    Operation(Pause, "pause", "POST", "/models/{name}/rollout/pause", "control.answers:Moved"),
    Operation(Resume, "resume", "POST", "/models/{name}/rollout/resume", "control.answers:Moved"),
    Operation(Abort, "abort", "POST", "/models/{name}/rollout/abort", "control.answers:Moved"),
    Operation(Promote, "promote", "POST", "/models/{name}/rollout/promote", "control.answers:Moved"),
    Operation(ListAliases, "aliases", "GET", "/models/{name}/aliases", "control.model_views:AliasList"),
    Operation(SetAlias, "set_alias", "PUT", "/models/{name}/aliases/{alias}", "registry:Alias"),
    Operation(RemoveAlias, "remove_alias", "DELETE", "/models/{name}/aliases/{alias}", "control.model_views:AliasList"),
    Operation(
        GetAliasHistory,
        "alias_history",
        "GET",
        "/models/{name}/aliases/{alias}/history",
        "control.model_views:AliasHistory",
    ),
    Operation(Apply, "apply", "POST", "/apply", "control.applying:Applied"),
    Operation(Gc, "gc", "POST", "/gc", "control.model_views:Collection"),
    Operation(ReadAudit, "audit", "GET", "/events", "control.audit:EventPage"),
    Operation(ListWebhooks, "webhooks", "GET", "/webhooks", "control.audit:WebhookList"),
    Operation(AddWebhook, "add_webhook", "POST", "/webhooks", "events:Webhook"),
    Operation(RemoveWebhook, "remove_webhook", "DELETE", "/webhooks/{webhook}", "control.audit:WebhookList"),
)
OPERATION_OF: dict[type[Order], Operation] = {operation.order: operation for operation in OPERATIONS}


def perform(control: Any, order: Order, actor: str) -> Any:
    """Carries an order out on a `Control`. Raises PeltonErrors."""
    operation = OPERATION_OF[type(order)]
    given = msgspec.structs.asdict(order)
    if operation.writes:
        given["actor"] = actor
    return getattr(control, operation.method)(**given)
