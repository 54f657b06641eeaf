"""What is deployed, what each process does about it, and how the open rollouts stand. Reads only."""

from __future__ import annotations

import msgspec

from pelton.control.desk import Desk
from pelton.deployments import Change, Deployment, ModelStatus, ProcessStatus
from pelton.errors import InvalidInput, NotFound
from pelton.rollout.state import Rollout, Stretch

WORDS = frozenset({"serves", "candidate", "shadow", "warm", "loading"})  # any other state says why it does not serve
MOST = 1000  # entries of a page


class ProcessState(msgspec.Struct, frozen=True, omit_defaults=True):
    """One process and one model. `problem`: why it cannot do what the deployment asks for; "": it can, or is at it."""

    id: str
    host: str
    pid: int
    port: int
    worker: int
    model: ModelStatus
    converged: bool = False
    problem: str = ""


class RolloutState(msgspec.Struct, frozen=True):
    """An open rollout and what its evidence says now: the verdict ("hold", "advance", "promote", "roll_back",
    "give_up"), its reason, and the figures that it rests on."""

    rollout: Rollout
    verdict: str
    reason: str
    figures: dict[str, object]
    evidence: list[Stretch]


class ModelState(msgspec.Struct, frozen=True):
    """One model: desired state, processes, rates over all processes. `converged`: every live process that follows the
    deployment has reached its revision, and there is one."""

    name: str
    deployment: Deployment | None
    processes: list[ProcessState]
    rollout: RolloutState | None
    calls_per_second: float
    errors_share: float
    slow_share: float
    converged: bool
    problems: list[str]


class Status(msgspec.Struct, frozen=True):
    """Everything. `at`: seconds since 1970; `processes`: how many gave a sign of life in the last seconds."""

    at: float
    processes: int
    models: list[ModelState]


class HistoryPage(msgspec.Struct, frozen=True):
    """Changes of a deployment, the newest first. `next`: what to give as `before` for the page after; None: the end."""

    changes: list[Change]
    next: int | None


class RolloutList(msgspec.Struct, frozen=True):
    """Rollouts of a model, the newest first."""

    rollouts: list[Rollout]


class Views(Desk):
    """The operations that only look."""

    def status(self, name: str = "") -> Status:
        """Every model that is deployed or served, or one of them. Raises NotFound."""
        processes = self.deployments.processes()
        deployments = self.deployments.all()
        served = {model for process in processes.values() for model in process.models}
        if name and name not in deployments and name not in served:
            raise NotFound(
                f"{name!r} is not deployed and no live process serves it; see `pelton models`, or deploy it: pelton deploy {name}"
            )
        names = [name] if name else sorted({*deployments, *served})
        return Status(
            self.clock(), len(processes), [self._model(one, deployments.get(one), processes) for one in names]
        )

    def deployment(self, name: str) -> Deployment:
        """The desired state of one model. Raises NotFound."""
        deployment = self.deployments.get(name)
        if deployment is None:
            raise NotFound(f"{name!r} was never deployed: pelton deploy {name}")
        return deployment

    def history(self, name: str, limit: int = 50, before: int | None = None) -> HistoryPage:
        """Changes of a model's deployment. Raises NotFound where there are none at all, InvalidInput."""
        check_limit(limit)
        changes = self.deployments.history(name, limit + 1, before)
        if not changes and before is None:
            raise NotFound(f"{name!r} was never deployed, so its deployment has no history")
        more = len(changes) > limit
        return HistoryPage(changes[:limit], changes[limit - 1].revision if more else None)

    def rollouts(self, name: str, limit: int = 50) -> RolloutList:
        """Rollouts of a model, the newest first."""
        check_limit(limit)
        return RolloutList(self.deployments.rollouts(name, limit))

    def _model(self, name: str, deployment: Deployment | None, processes: dict[str, ProcessStatus]) -> ModelState:
        states = [
            _process(key, process, process.models[name], deployment)
            for key, process in processes.items()
            if name in process.models
        ]
        rate, errors, slow = rates([state.model for state in states])
        following = [state for state in states if not state.model.pinned]
        rollout = self._rollout_of(deployment) if deployment is not None else None
        return ModelState(
            name, deployment, states, self._rollout_state(rollout) if rollout is not None else None, rate, errors, slow,
            converged=bool(following) and all(state.converged for state in following),
            problems=sorted({state.problem for state in states if state.problem}),
        )  # fmt: skip

    def _rollout_state(self, rollout: Rollout) -> RolloutState:
        from pelton.rollout import policy

        evidence = self.deployments.evidence(rollout.name, rollout.routes)
        decision = policy.decide(rollout, evidence, self.clock())
        return RolloutState(rollout, decision.kind, decision.reason, dict(decision.figures), evidence)


def rates(models: list[ModelStatus]) -> tuple[float, float, float]:
    """Calls a second, share of errors, share of slow calls, over several processes."""
    rate = sum(model.calls_per_second for model in models)
    if rate <= 0:
        return 0.0, 0.0, 0.0
    errors = sum(model.calls_per_second * model.errors_share for model in models) / rate
    slow = sum(model.calls_per_second * model.slow_share for model in models) / rate
    return rate, errors, slow


def check_limit(limit: int) -> None:
    """Pages are bounded. Raises InvalidInput."""
    if not 1 <= limit <= MOST:
        raise InvalidInput(f"limit is from 1 to {MOST}, not {limit}")


def _process(key: str, process: ProcessStatus, model: ModelStatus, deployment: Deployment | None) -> ProcessState:
    revision = deployment.revision if deployment is not None else 0
    problem = ""
    if deployment is not None and not model.pinned and model.converged != revision:
        problem = _problem(process, model, deployment)
    return ProcessState(
        key, process.host, process.pid, process.port, process.worker, model,
        converged=deployment is None or (not model.pinned and model.converged == revision), problem=problem,
    )  # fmt: skip


def _problem(process: ProcessStatus, model: ModelStatus, deployment: Deployment) -> str:
    shadow = deployment.shadow.version if deployment.shadow is not None else ""
    for version in (deployment.version, deployment.candidate, shadow):
        state = model.versions.get(version, "")
        if state and state not in WORDS:
            return f"{deployment.name}:{version[:12]} on {process.host} (process {process.pid}): {state}"
    return ""
