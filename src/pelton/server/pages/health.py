"""Alive and ready, in a form that satisfies the clients of Triton and of KServe, and the probes of Kubernetes."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pelton.engine import Served
from pelton.errors import NotReady, Refused
from pelton.server.fleet import UNLOADED
from pelton.server.pages.answers import answer, failure, not_ready
from pelton.server.pages.metadata import NAME
from pelton.server.site import Site

STOPPING = "the server is stopping"


async def waiting(site: Site) -> str:
    """Why this server should not get calls, or nothing. Asks the other workers."""
    return STOPPING if site.stopping else _first(await site.states())


def _waiting_here(site: Site) -> str:
    """The same of this process alone, at once."""
    return STOPPING if site.stopping else _first(site.engine.directory.states())


def _first(states: Mapping[str, str]) -> str:
    for name, state in states.items():
        if state != UNLOADED:
            return f"{name!r} cannot answer: {state}"
    return ""


class Health:
    """The routes about readiness."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def live(self, request: Request) -> Response:
        """200 as long as the process answers at all: no sibling is asked, for one that hangs must not cost this one its
        life. `ready` is that of this process."""
        return answer({"live": True, "ready": not _waiting_here(self._site), "name": NAME})

    async def ready(self, request: Request) -> Response:
        """503 while the server stops, and while a model loads or has failed."""
        reason = await waiting(self._site)
        if not reason:
            return answer({"live": True, "ready": True, "name": NAME})
        return failure(not_ready(reason), live=True, ready=False, name=NAME)

    async def model_ready(self, request: Request) -> Response:
        """200, 503 with the reason, or 404. Also turns 503 when the server stops: some probes look only here."""
        name = request.path_params["model"]
        try:
            ready = find(self._site, request).name
            if self._site.stopping:
                raise not_ready(STOPPING)
        except Refused as error:
            return failure(error, name=name, ready=False)
        return answer({"name": ready, "ready": True})


def find(site: Site, request: Request) -> Served:
    """The version that a path names. Raises NotFound, or NotReady with why."""
    name, version = request.path_params["model"], request.path_params.get("version", "")
    if ":" in name + version:  # "m:predict" is an action, not a model
        raise HTTPException(405, headers={"Allow": "POST"})
    state = site.engine.directory.states().get(name)
    if state is not None:
        raise NotReady(f"model {name!r} cannot answer: {state}", retry_after=1.0)
    return site.engine.directory.find(name, version)
