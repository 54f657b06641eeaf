"""The models of one process: loads and checks them beside what serves, switches, and gives the old ones back."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from pelton import packages, replicas
from pelton.engine import Engine, Served
from pelton.errors import NotFound, PackageInvalid, PeltonError
from pelton.packages import Package
from pelton.registry import Registry
from pelton.replicas import Replica
from pelton.replicas.language import LanguageReplica
from pelton.replicas.room import check_room
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.language import RUNTIME as LANGUAGE_RUNTIME
from pelton.scheduling import LatencyModel
from pelton.settings import Settings
from pelton.types import ModelRef

log = logging.getLogger(__name__)

LOADING: Final = "it is loading"
M_ARENA_MAX: Final = -8  # of malloc.h
UNLOADED: Final = "it was unloaded"  # on purpose: no reason not to be ready


class Fleet:
    """What this process serves. One model is loaded at a time per thread; calls go on meanwhile."""

    def __init__(self, engine: Engine, registry: Registry, settings: Settings) -> None:
        share_arena()  # before there are threads
        self.registry = registry
        self._engine = engine
        self._settings = settings
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="pelton-load")
        self._loop = asyncio.get_running_loop()
        self._leaving: dict[asyncio.Task[None], Served] = {}  # what is drained and given back
        self._verified: dict[str, object] = {}  # version -> marks of its files when they were read and compared
        self._verifying = threading.Lock()

    def ready(self) -> bool:
        """Whether every model that should serve does."""
        return all(state == UNLOADED for state in self._engine.directory.states().values())

    async def start(self, packages: Sequence[Package]) -> None:
        """Loads all; one that fails does not keep the others from serving. Language models come last: what is quick to
        load answers at once."""
        for package in packages:
            self._engine.directory.announce(package.name, LOADING)
        slow = [package for package in packages if package.manifest.runtime == LANGUAGE_RUNTIME]
        await asyncio.gather(*(self._try(package) for package in packages if package not in slow))
        await asyncio.gather(*(self._try(package) for package in slow))

    async def load(self, text: str) -> Served:
        """Loads `name` (its newest version) or `name:version` beside what serves, then switches. Raises what made it fail."""
        ref = ModelRef.parse(text)
        package = await self._loop.run_in_executor(self._pool, self.registry.resolve, ref)
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

    # ---- one version at a time, as the converger orders it

    async def stage(self, name: str, version: str) -> Served:
        """Loads a version beside what serves: it answers only callers that name it. Raises what made it fail.

        The store is not asked: the files alone say what the version is."""
        package = await self._loop.run_in_executor(self._pool, stored, self.registry, name, version)
        return await self._staged(package, "is loaded beside")

    def switch(self, served: Served) -> None:
        """From now on `served` answers for its name."""
        self._put(served)
        log.info("model %s:%s serves now", served.name, served.short_version)

    def withdraw(self, name: str) -> None:
        """No version answers callers of `name` any more; those in memory stay there."""
        old = self._engine.directory.current().get(name)
        if old is not None:
            old.split = old.mirror = None
        self._engine.directory.withdraw(name, UNLOADED)
        log.info("model %s is not served any more", name)

    def release(self, served: Served) -> None:
        """Takes a version out: what it has accepted is answered, then its memory is given back."""
        self._engine.directory.forget(served)
        self._release_later(served)

    def releasing(self) -> bool:
        """Whether a version is still being drained or given back."""
        return bool(self._leaving)

    # ---- loading

    def _put(self, served: Served) -> None:
        old = self._engine.directory.current().get(served.name)
        if old is not None and old is not served:
            old.split = old.mirror = None
        self._engine.directory.put(served)

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
        """Loads and switches; versions before are released."""
        served = await self._staged(package, "serves")
        self._put(served)
        for previous in self._engine.directory.versions(package.name):
            if previous is not served:
                self.release(previous)
        return served

    async def _staged(self, package: Package, word: str) -> Served:
        begin = time.perf_counter()
        directory, name = self._engine.directory, package.name
        replica, verifying = await self._loop.run_in_executor(self._pool, self._read, package, self._beside(name))
        if isinstance(replica, LanguageReplica):
            served = await self._language(replica)
            same = [one for one in directory.versions(name) if one.version == package.version]
            self._engine.admit(served, current=False)
        else:
            latency = await self._loop.run_in_executor(self._pool, _checked, replica)
            same = [one for one in directory.versions(name) if one.version == package.version]
            served = self._engine.serve(replica, latency, current=False)
        for before in same:  # another copy of this version
            if before is directory.current().get(name):
                self._put(served)
            self.release(before)
        log.info(
            "model %s:%s %s: loaded in %.2f s (%.3f s to compare its files), %s",
            name, package.version[:12], word, time.perf_counter() - begin, verifying, _figures(served),
        )  # fmt: skip
        return served

    def _beside(self, name: str) -> list[LanguageReplica]:
        """The versions of a language model that are in memory, the one that serves first."""
        directory = self._engine.directory
        leaving = [served for served in self._leaving.values() if served.name == name]
        found = [*filter(None, [directory.current().get(name)]), *directory.versions(name), *leaving]
        return [served.replica for served in found if isinstance(served.replica, LanguageReplica)]

    def _read(self, package: Package, beside: Sequence[LanguageReplica]) -> tuple[Replica, float]:
        """In a thread: a replica, and the seconds that comparing its files took."""
        check_room(package, beside)
        begin = time.perf_counter()
        self._verify(package)
        verifying = time.perf_counter() - begin
        cache = str(self._settings.cache_path)
        options = RuntimeOptions(self._settings.threads, self._settings.trusts(package.name), cache)
        return replicas.load(package, options, self._engine.clock), verifying

    async def _language(self, replica: LanguageReplica) -> Served:
        """A language model that has made its first tokens, and its golden answers, through its own lane."""
        served = self._engine.prepare_language(replica)
        try:
            await self._loop.run_in_executor(self._pool, _probed, replica)
        except BaseException:
            await self._loop.run_in_executor(self._pool, replica.close)
            raise
        return served

    def _verify(self, package: Package) -> None:
        """Compares every file with what the version says, again where one was touched. Raises ArtifactCorrupt."""
        version = package.version
        marks = _marks(package.folder)
        with self._verifying:
            if self._verified.get(version) == marks:
                return
        self.registry.verify(version)
        with self._verifying:
            self._verified[version] = marks

    # ---- giving back

    def _release_later(self, served: Served) -> None:
        task = self._loop.create_task(self._release(served))
        self._leaving[task] = served
        task.add_done_callback(self._leaving.pop)

    async def _release(self, served: Served) -> None:
        served.let_go()
        await served.scheduler.drained()
        await self._loop.run_in_executor(self._pool, _closed, served.replica)
        log.info("model %s:%s was released", served.name, served.short_version)

    async def close(self) -> None:
        """Gives everything back."""
        served = self._engine.directory.everything()
        await asyncio.gather(*(self._loop.run_in_executor(self._pool, one.replica.close) for one in served))
        self._pool.shutdown(wait=False)


def stored(registry: Registry, name: str, version: str) -> Package:
    """The package of a full version, from its files alone: the store may be away. Raises PackageInvalid."""
    try:
        package = packages.load(registry.artifacts.folder(version), version)
    except NotFound:
        raise PackageInvalid(f"the files of {name}:{version[:12]} are not in this home; add the package") from None
    if package.name != name:
        raise PackageInvalid(f"the files of {name}:{version[:12]} are those of {package.name!r}")
    return package


def _marks(folder: Path) -> object:
    """What changes when a file is changed, as far as the file system tells."""
    stats = [(path, path.stat()) for path in sorted(folder.rglob("*"))]
    return [(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats]


def _checked(replica: Replica) -> LatencyModel:
    """In a thread: the measured curve of a replica that has reproduced its golden answers."""
    try:
        replica.check_golden()
        example = replica.package.manifest.example
        if example is not None:  # libraries set themselves up at their first picture or text
            replica.ask({name: [value] for name, value in example.items()})
        return replica.profile()
    except BaseException:
        replica.close()
        raise


def _probed(replica: LanguageReplica) -> None:
    """In a thread."""
    replica.probe()
    replica.check_golden()


def _figures(served: Served) -> str:
    """What was measured of a version, for the log."""
    facts = served.engine_facts
    if facts is None:
        unit = "token" if served.replica.ragged is not None else "row"
        return (
            f"one {unit} takes {served.scheduler.batcher.latency.predict(1) * 1e3:.2f} ms, target "
            f"{served.target * 1e3:.0f} ms, batches up to {served.scheduler.batcher.cap} {unit}s"
        )
    return f"engine {facts.engine}: {facts.streams} streams, {facts.context} tokens of context. {facts.why}"


def _closed(replica: Replica) -> None:
    """In a thread: gives a model's memory back to the system, not only to this process's allocators."""
    replica.close()
    gc.collect()
    if _trim is not None:
        _trim(0)


def _libc(name: str) -> Callable[..., int] | None:
    """A function of glibc's allocator; None: this is another C library."""
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        return None
    return found


def share_arena() -> None:
    """All threads allocate from one place. Each with its own, as glibc has it, keeps what a model leaves behind: of other
    arenas than the main one nothing can be given back to the system."""
    mallopt = _libc("mallopt")
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


_trim: Final = _libc("malloc_trim")
