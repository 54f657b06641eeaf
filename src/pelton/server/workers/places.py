"""Where models live among the workers, as one worker knows it (`server.control.converger.Places`)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from pelton.errors import PeltonError
from pelton.registry import Registry
from pelton.server.fleet import stored
from pelton.server.workers.channel import Handover, Homeless
from pelton.server.workers.placement import EVERYWHERE, weigh

log = logging.getLogger(__name__)

ASK_AGAIN: Final = 5.0  # seconds, where the files of a model are not there yet


class WorkerPlaces:
    """`elsewhere`: model -> the sibling that holds it. The supervisor decides; `tell` asks it."""

    def __init__(self, handover: Handover, registry: Registry, tell: Callable[[Homeless], None]) -> None:
        me = handover.index
        self.elsewhere = {n: p.where for n, p in handover.models.items() if p.where not in (EVERYWHERE, me)}
        self._here = {name for name in handover.models if name not in self.elsewhere}
        self._me = me
        self._registry = registry
        self._tell = tell
        self._asked: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def mine(self, name: str) -> bool:
        """Whether this worker holds the model."""
        return name in self._here

    def find(self, name: str, version: str) -> bool:
        """Asks for a place, where the model has none; its files say how heavy it is."""
        if not version or name in self.elsewhere:
            return False
        now = time.monotonic()
        if now < self._asked.get(name, float("-inf")) + ASK_AGAIN:
            return True
        self._asked[name] = now
        task = asyncio.get_running_loop().create_task(self._ask(name, version))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def put(self, name: str, where: int) -> bool:
        """The supervisor has decided; True: for another worker."""
        if where in (EVERYWHERE, self._me):
            self._here.add(name)
            return False
        self.elsewhere[name] = where
        return True

    async def _ask(self, name: str, version: str) -> None:
        try:
            weight = await asyncio.to_thread(lambda: weigh(stored(self._registry, name, version)))
        except (PeltonError, OSError) as error:
            log.error("model %s is deployed and has no place yet: %s", name, error)
            return
        self._tell(Homeless(name, weight.size, weight.alone))
