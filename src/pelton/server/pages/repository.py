"""Triton's repository extension: what could be served, load, unload. Models come from the registry, never in a request."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pelton.errors import InvalidInput, NotFound, PeltonError, Unsupported
from pelton.server.fleet import LOADING
from pelton.server.pages.answers import answer, parameters
from pelton.server.site import Site
from pelton.types import check_name

log = logging.getLogger(__name__)


class Repository:
    """The routes about loading."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def index(self, request: Request) -> Response:
        """Every model of the registry and of this process. With {"ready": true} only those that answer."""
        ready = (await parameters(request)).get("ready") or False
        if not isinstance(ready, bool):
            raise InvalidInput('"ready" must be true or false')
        processes = await self._site.processes()
        stored = {} if ready else await asyncio.to_thread(self._newest)
        lanes = {(lane.model, lane.version) for process in processes for lane in process.lanes}
        states = {name: state for name, state in (await self._site.states()).items() if " " not in name}  # no workers
        rows = [_row(name, version[:12], "READY", "") for name, version in lanes if name not in states]
        if ready:
            states = {}
        rows += [_row(name, stored.get(name, ""), _word(state), state) for name, state in states.items()]
        known = {row["name"] for row in rows}
        rows += [
            _row(name, version, "UNAVAILABLE", "not loaded") for name, version in stored.items() if name not in known
        ]
        return answer(sorted(rows, key=lambda row: (row["name"], row["version"])))

    async def load(self, request: Request) -> Response:
        """Loads the newest version beside what serves, and switches. Answers when it serves."""
        body = await parameters(request)
        for name in _parameters(body):
            if name == "config" or name.startswith("file:"):
                raise Unsupported(
                    f"parameter {name[:60]!r}: models are not taken from requests; add the model to the registry with "
                    "`pelton add`, then load it by name"
                )
            raise InvalidInput(f"unknown parameter {name[:60]!r}: load takes none")
        name = self._name(request)
        await self._site.load(name)
        return answer({"name": name, "state": "READY"})

    async def unload(self, request: Request) -> Response:
        """Takes a model out; what it has accepted is answered first."""
        given = _parameters(await parameters(request))
        for name, value in given.items():
            if name != "unload_dependents":
                raise InvalidInput(f"unknown parameter {name[:60]!r}: unload takes unload_dependents only")
            if not isinstance(value, bool):
                raise InvalidInput("parameter 'unload_dependents' must be true or false")
        name = self._name(request)
        await self._site.unload(name)
        return answer({"name": name, "state": "UNAVAILABLE"})

    def _name(self, request: Request) -> str:
        try:
            return check_name(request.path_params["model"])
        except InvalidInput as error:
            raise NotFound(str(error)) from None

    def _newest(self) -> dict[str, str]:
        """In a thread: the newest version of every model of the registry."""
        registry = self._site.fleet.registry
        try:
            return {name: registry.versions(name)[0].version[:12] for name in registry.models()}
        except PeltonError as error:  # what serves is told all the same
            log.warning("the registry cannot be listed: %s", error)
            return {}


def _parameters(body: dict[str, Any]) -> dict[str, Any]:
    given = body.get("parameters") or {}
    if not isinstance(given, dict):
        raise InvalidInput('"parameters" must be an object')
    return given


def _word(state: str) -> str:
    return "LOADING" if state == LOADING else "UNAVAILABLE"


def _row(name: str, version: str, state: str, reason: str) -> dict[str, str]:
    return {"name": name, "version": version, "state": state, "reason": reason.removeprefix("it was ")}
