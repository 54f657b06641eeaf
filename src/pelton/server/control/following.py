"""All that lets one serving process follow the store: its parts, and the thread that polls, judges and reports."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from pelton.deployments import Deployment, Deployments, ProcessStatus
from pelton.engine import Engine
from pelton.server.control.chores import Chore, Chores
from pelton.server.control.converger import Converger, Places
from pelton.server.control.evidence import Evidence
from pelton.server.control.plan import Scope
from pelton.server.control.reports import Reporter
from pelton.server.fleet import LOADING, Fleet
from pelton.settings import Settings

if TYPE_CHECKING:
    from pelton.server.control.steward import Steward
    from pelton.server.webhooks import Deliverer

log = logging.getLogger(__name__)

POLL: Final = 0.25  # seconds between two looks at the revisions
FLUSH: Final = 1.0  # evidence, verdicts, webhooks
REPORT: Final = 5.0
FIRST_REPORT: Final = 3.0  # after the start: what takes a moment to import must not be in its way
CLOSING: Final = 2.0  # for a last word to the store


class Following:
    """The store is that of the fleet's registry. It is opened in the thread: it may be away when the process starts."""

    def __init__(
        self,
        engine: Engine,
        fleet: Fleet,
        settings: Settings,
        scope: Scope,
        evidence: Evidence,
        port: int,
        places: Places | None = None,
    ) -> None:
        self.evidence = evidence
        self.converger = Converger(engine, fleet, scope, evidence, settings.keep_warm, places)
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._registry = fleet.registry
        self._opened: Deployments | None = None
        self.reporter = Reporter(engine, self.converger, port)
        self._known: dict[str, int] | None = None  # revisions, as polled last
        self._desired: Mapping[str, Deployment] = {}
        self._unfit: Mapping[tuple[str, str], str] = {}
        self._steward: Steward | None = None
        self._deliverer: Deliverer | None = None
        self._reported = False
        self._frozen = False
        self.told: Callable[[Mapping[str, Deployment]], None] = lambda desired: None
        self._report = Chore("reporting to the store", REPORT, self._send_report, FIRST_REPORT)
        self._chores = Chores(
            "pelton-follow",
            [
                Chore("looking at the deployments in the store", POLL, self._poll),
                Chore("writing evidence to the store", FLUSH, self._flush, FLUSH),
                Chore("judging rollouts", FLUSH, self._judge, FLUSH),
                Chore("telling webhooks", FLUSH, self._deliver, FLUSH),
                self._report,
            ],
        )
        self.converger.changed = self._changed

    def begin(self, desired: Mapping[str, Deployment]) -> None:
        """Starts to follow, with what is known. Models that the store decides on are announced at once."""
        self._known = {name: deployment.revision for name, deployment in desired.items()}
        self._desired = desired
        for name, deployment in desired.items():
            if deployment.version and self.converger.scope.follows(name) and self.converger.holds(name):
                self._engine.directory.announce(name, LOADING)
        self.converger.take(desired)
        self._chores.start()

    async def settled(self) -> None:
        """Returns when what was to be loaded at first was tried."""
        await self.converger.settled()

    async def close(self) -> None:
        """The last evidence is written, and the report taken away: as far as the store answers in a moment."""
        await self._loop.run_in_executor(None, self._close)

    # ---- on the loop

    def _take(self, desired: Mapping[str, Deployment]) -> None:
        self.converger.take(desired)
        self.told(desired)

    def _changed(self) -> None:
        self._unfit = self.converger.unfit()
        if self._desired or self._reported:
            self._chores.hurry(self._report)

    # ---- in the thread

    @property
    def _deployments(self) -> Deployments:
        if self._opened is None:
            self._opened = Deployments(self._registry.store)
        return self._opened

    def _poll(self) -> None:
        revisions = self._deployments.revisions()
        if revisions != self._known:
            self._desired = desired = self._deployments.all()
            self._known = {name: deployment.revision for name, deployment in desired.items()}
            self._loop.call_soon_threadsafe(self._take, desired)
        elif revisions:
            self._loop.call_soon_threadsafe(self.converger.tick)

    def _flush(self) -> None:
        for name, stretch in self.evidence.changed():
            size = self.evidence.size(name, stretch)
            self._deployments.put_evidence(name, self.reporter.process, stretch)
            self.evidence.written(name, stretch, size)

    def _judge(self) -> None:
        if any(deployment.rollout for deployment in self._desired.values()):
            if self._steward is None:
                from pelton.server.control.steward import Steward

                self._steward = Steward(self._deployments)
            self._steward.tick(self._desired, self._unfit)
            self._keep_imports()

    def _deliver(self) -> None:
        if self._deliverer is None:
            if not self._registry.store.rows("webhooks"):
                return
            from pelton.events import Events
            from pelton.server.webhooks import Deliverer

            self._deliverer = Deliverer(Events(self._registry.store), self.reporter.process)
        self._deliverer.tick(time.time())

    def _send_report(self) -> None:
        made = asyncio.run_coroutine_threadsafe(self._made(), self._loop)
        self._deployments.report(self.reporter.process, made.result(REPORT))
        self._reported = True
        self._keep_imports()

    async def _made(self) -> ProcessStatus:
        return self.reporter.report()

    def _keep_imports(self) -> None:
        """SQLAlchemy, once it is here, stays: if the garbage collector looked through it again and again, each time would
        hold up calls for 20 ms."""
        if not self._frozen and "sqlalchemy" in sys.modules:
            self._frozen = True
            gc.freeze()

    def _close(self) -> None:
        end = time.monotonic() + CLOSING
        if not self._chores.close(CLOSING):
            return
        try:
            self._flush()
            if self._reported and time.monotonic() < end:
                self._deployments.forget(self.reporter.process)
        except Exception as error:  # noqa: BLE001 - it is ending; others see that the report is old
            log.warning("the store could not be told of the end: %s", error)
