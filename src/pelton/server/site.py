"""Everything beside inference: health, metadata, statistics, repository, metrics, OpenAPI. Made when first asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pelton.engine import Engine
from pelton.errors import Conflict, NotReady
from pelton.server.fleet import Fleet
from pelton.server.wire.asgi import App, Message
from pelton.server.wire.limits import Limits
from pelton.settings import Settings

if TYPE_CHECKING:
    from pelton.control import Control
    from pelton.records.snapshot import Snapshot
    from pelton.server.control.converger import Converger


class Siblings(Protocol):
    """The other workers of this server, where there are some."""

    async def snapshots(self) -> dict[int, Snapshot | None]:
        """How each of the others stands; None: it does not answer. Takes a bounded time."""

    async def change(self, action: str, name: str) -> None:
        """Has a model loaded or unloaded in all workers, this one included. Raises what made it fail."""


class Site:
    """What the pages may look at. `stopping`: SIGTERM came, so readiness is 503."""

    def __init__(self, engine: Engine, fleet: Fleet, settings: Settings, limits: Limits) -> None:
        self.engine = engine
        self.fleet = fleet
        self.settings = settings
        self.limits = limits
        self.stopping = False
        self.siblings: Siblings | None = None
        self.worker = 0  # its number among the workers
        self.converger: Converger | None = None  # where the store is followed
        self._control: Control | None = None

    @property
    def control(self) -> Control:
        """All that a person may order. Made when first asked, which may take a moment: call it in a thread."""
        if self._control is None:
            from pelton.control import Control

            registry = self.fleet.registry
            self._control = Control(registry.store, registry)
        return self._control

    def own(self) -> Snapshot:
        """How this process stands."""
        from pelton.server import snapshots

        return snapshots.take(self)

    async def processes(self) -> list[Snapshot]:
        """How all processes of this server stand; one that does not answer is left out."""
        others = await self.siblings.snapshots() if self.siblings is not None else {}
        return [self.own(), *(one for one in others.values() if one is not None)]

    async def states(self) -> dict[str, str]:
        """Names that cannot answer, and why: models, and workers that do not answer."""
        states = self.engine.directory.states()
        if self.siblings is not None:
            for number, snapshot in (await self.siblings.snapshots()).items():
                found = snapshot.states if snapshot is not None else {f"worker {number}": "it is starting"}
                states = {**found, **states}
        return states

    async def load(self, name: str) -> None:
        """Loads the newest version of a model beside what serves, then switches; of a deployed model, the version that
        is deployed. Raises what made it fail."""
        if self.converger is not None and self.converger.follows(name):
            await self._load_deployed(self.converger, name)
        elif self.siblings is not None:
            await self.siblings.change("load", name)
        else:
            await self.fleet.load(name)

    async def unload(self, name: str) -> None:
        """Takes a model out. What was accepted is answered first. Raises NotFound, and Conflict for a deployed model:
        every process that follows the store would go on with it."""
        if self.converger is not None and self.converger.follows(name):
            if self.converger.desired[name].version:
                raise Conflict(f"{name!r} is deployed; take it out with: pelton undeploy {name}")
            return
        if self.siblings is not None:
            await self.siblings.change("unload", name)
        else:
            await self.fleet.unload(name)

    async def _load_deployed(self, converger: Converger, name: str) -> None:
        if converger.holds(name):
            await converger.load(name)
            return
        wanted = converger.desired[name].version
        lanes = {(lane.model, lane.version) for process in await self.processes() for lane in process.lanes}
        if (name, wanted) not in lanes:
            raise NotReady(f"{name}:{wanted[:12]} is deployed and does not serve yet; see pelton status {name}")


def lazy_app(site: Site) -> App:
    """The ASGI application; its framework is imported at the first request, which keeps start and memory small."""
    made: list[App] = []

    async def app(scope: Message, receive: object, send: object) -> None:
        if not made:
            from pelton.server.pages.application import make_app

            made.append(make_app(site))
        await made[0](scope, receive, send)  # type: ignore[arg-type]  # passed through as they came

    return app
