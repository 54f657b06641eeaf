"""The models of one process: loads and checks them beside what serves, switches, and gives the old ones back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pelton import replicas
from pelton.engine import Engine, Served
from pelton.errors import PeltonError
from pelton.packages import Package
from pelton.registry import Registry
from pelton.replicas import Replica
from pelton.runtimes.contract import RuntimeOptions
from pelton.scheduling import LatencyModel
from pelton.settings import Settings
from pelton.types import ModelRef

log = logging.getLogger(__name__)

LOADING = "it is loading"
UNLOADED = "it was unloaded"  # on purpose: no reason not to be ready


class Fleet:
    """What this process serves. One model is loaded at a time per thread; calls go on meanwhile."""

    def __init__(self, engine: Engine, registry: Registry, settings: Settings) -> None:
        self.registry = registry
        self._engine = engine
        self._settings = settings
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="pelton-load")
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def ready(self) -> bool:
        """Whether every model that should serve does."""
        return all(state == UNLOADED for state in self._engine.directory.states().values())

    async def start(self, packages: Sequence[Package]) -> None:
        """Loads all; one that fails does not keep the others from serving."""
        for package in packages:
            self._engine.directory.announce(package.name, LOADING)
        await asyncio.gather(*(self._try(package) for package in packages))

    async def load(self, text: str) -> Served:
        """Loads `name` (its newest version) or `name:version` beside what serves, then switches. Raises what made it fail."""
        ref = ModelRef.parse(text)
        package = self.registry.resolve(ref)
        name = ref.name
        if name not in self._engine.directory.current():
            self._engine.directory.announce(name, LOADING)
        try:
            return await self._load(package)
        except PeltonError as error:
            if name not in self._engine.directory.current():
                self._engine.directory.announce(name, f"it failed to load: {error}")
            raise

    async def unload(self, name: str) -> None:
        """Takes a model out. What it has accepted is answered first. Raises NotFound."""
        self._engine.directory.find(name, "")
        for served in self._engine.directory.remove(name, UNLOADED):
            self._release_later(served)

    async def _try(self, package: Package) -> None:
        try:
            await self._load(package)
        except PeltonError as error:
            log.error("model %s cannot be served: %s", package.name, error)
            self._engine.directory.announce(package.name, f"it failed to load: {error}")
        except Exception as error:
            log.exception("model %s cannot be served", package.name)
            self._engine.directory.announce(package.name, f"it failed to load: {type(error).__name__}")

    async def _load(self, package: Package) -> Served:
        begin = time.perf_counter()
        replica, latency = await self._loop.run_in_executor(self._pool, self._checked, package)
        old = self._engine.directory.versions(package.name)
        served = self._engine.serve(replica, latency)
        for previous in old:
            if previous is not served:
                self._engine.directory.forget(previous)
                self._release_later(previous)
        log.info(
            "model %s:%s serves: loaded in %.2f s, one row takes %.2f ms, target %.0f ms, batches up to %d rows",
            package.name, package.version[:12], time.perf_counter() - begin, latency.predict(1) * 1e3,
            served.target * 1e3, served.scheduler.batcher.cap,
        )  # fmt: skip
        return served

    def _checked(self, package: Package) -> tuple[Replica, LatencyModel]:
        """In a thread: a replica that has reproduced its golden answers, and its measured curve."""
        options = RuntimeOptions(self._settings.threads, self._settings.trusts(package.name))
        replica = replicas.load(package, options, self._engine.clock)
        try:
            replica.check_golden()
            if package.manifest.example is not None:  # libraries set themselves up at their first picture or text
                replica.ask({name: [value] for name, value in package.manifest.example.items()})
            latency = replica.profile()
        except BaseException:
            replica.close()
            raise
        return replica, latency

    def _release_later(self, served: Served) -> None:
        task = self._loop.create_task(self._release(served))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _release(self, served: Served) -> None:
        await served.scheduler.drained()
        await self._loop.run_in_executor(self._pool, served.replica.close)
        log.info("model %s:%s was released", served.name, served.version[:12])

    async def close(self) -> None:
        """Gives everything back."""
        served = [one for name in self._engine.directory.current() for one in self._engine.directory.versions(name)]
        await asyncio.gather(*(self._loop.run_in_executor(self._pool, one.replica.close) for one in served))
        self._pool.shutdown(wait=False)
