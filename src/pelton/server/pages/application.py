"""The ASGI application beside inference: every route in one table. Only files of this family import starlette."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pelton.engine import Served
from pelton.errors import NotFound, PeltonError, Unsupported
from pelton.server.openai import cors, strays
from pelton.server.openai.routes import routes as openai_routes
from pelton.server.pages import admin, examples
from pelton.server.pages.answers import JSON, answer, failure, plain_failure
from pelton.server.pages.cards import read
from pelton.server.pages.catalog import catalog, current_lanes, lanes_of
from pelton.server.pages.health import Health, find, waiting
from pelton.server.pages.metadata import model_config, model_metadata, server_metadata
from pelton.server.pages.metrics import in_parts
from pelton.server.pages.openapi import document
from pelton.server.pages.page import page
from pelton.server.pages.repository import Repository
from pelton.server.pages.statistics import statistics
from pelton.server.site import Site
from pelton.server.wire.asgi import App

Endpoint = Callable[[Request], Awaitable[Response]]

WHERE: Final = "see / in a browser, or /openapi.json, for what is served here"


def make_app(site: Site) -> App:
    """The application; `site` is what it looks at."""
    pages, health, repository = Pages(site), Health(site), Repository(site)
    version = "/v2/models/{model}/versions/{version}"
    get: list[tuple[str, Endpoint]] = [
        ("/", pages.root),
        ("/docs", pages.docs),
        ("/models", pages.models),
        ("/models/{model}/example", pages.example),
        ("/metrics", pages.metrics),
        ("/openapi.json", pages.openapi),
        ("/v2", pages.server),
        ("/v2/", pages.server),
        ("/v2/health/live", health.live),
        ("/v2/health/ready", health.ready),
        ("/v2/models/stats", pages.statistics),
    ]
    for base in ("/v2/models/{model}", version):
        get += [
            (base, pages.metadata),
            (base + "/ready", health.model_ready),
            (base + "/config", pages.config),
            (base + "/stats", pages.statistics),
        ]
    post: list[tuple[str, Endpoint]] = [
        ("/v2/repository/index", repository.index),
        ("/v2/repository/models/{model}/load", repository.load),
        ("/v2/repository/models/{model}/unload", repository.unload),
        # The hot layer answers these; what arrives here has a name or version that no model can have.
        ("/v2/models/{model}/infer", pages.unknown),
        (version + "/infer", pages.unknown),
        ("/predict/{model}", pages.unknown),
        ("/predict/{model}/{version}", pages.unknown),
        ("/v1/models/{model}:predict", pages.unknown),
        ("/v1/models/{model}/versions/{version}:predict", pages.unknown),
        ("/v1/models/{model}:explain", pages.explain),
    ]
    # Routes with a fixed ending first: "{model}" alone would take "m:predict" as a name.
    routes = [Route(path, endpoint, methods=["POST"]) for path, endpoint in post]
    routes += [Route(path, endpoint, methods=["GET"]) for path, endpoint in get]
    routes += admin.routes(site)
    routes += openai_routes(site)
    app = Starlette(
        routes=routes,
        exception_handlers={PeltonError: _own, HTTPException: _http, Exception: _fault},
    )
    app.router.redirect_slashes = False  # a client that asks for another path gets an error it can read
    origins = cors.origins_of(site.settings.cors_origins)
    return cors.Cors(app, origins) if origins else app


class Pages:
    """The routes that only read."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._examples: WeakKeyDictionary[Served, dict[str, Any]] = WeakKeyDictionary()

    async def root(self, request: Request) -> Response:
        """KServe's clients ask whether the server lives; people want to see something."""
        if "text/html" in request.headers.get("accept", ""):
            return page()
        return answer({"status": "alive"}, headers={"vary": "accept"})

    async def docs(self, request: Request) -> Response:
        return page()

    async def models(self, request: Request) -> Response:
        """What the page shows; also for other programs."""
        states = {name: state for name, state in (await self._site.states()).items() if " " not in name}
        return answer(catalog(await self._site.processes(), states, await waiting(self._site)))

    async def example(self, request: Request) -> Response:
        """One row that works as the body of `/predict/{model}`."""
        return answer(await self._example(find(self._site, request)))

    async def metrics(self, request: Request) -> Response:
        content_type, parts = in_parts(await self._site.processes(), request.headers.get("accept", ""))
        body = []
        for part in parts:
            body.append(part)
            await asyncio.sleep(0)  # calls go between the families
        return Response(b"".join(body), headers={"content-type": content_type, "cache-control": "no-store"})

    async def openapi(self, request: Request) -> Response:
        lanes = current_lanes(await self._site.processes())
        cards = {key[0]: (read(same[0].card), same[0].target) for key, same in lanes.items()}
        return Response(msgspec.json.encode(document(list(cards.values()))), media_type=JSON)

    async def server(self, request: Request) -> Response:
        return answer(server_metadata())

    async def metadata(self, request: Request) -> Response:
        served = find(self._site, request)
        return answer(model_metadata(served, self._site.engine.directory.versions(served.name)))

    async def config(self, request: Request) -> Response:
        return answer(model_config(find(self._site, request)))

    async def statistics(self, request: Request) -> Response:
        """Of one version, of all versions of a model, or of everything in memory."""
        processes = await self._site.processes()
        if "model" not in request.path_params:
            wanted = list(lanes_of(processes))
        elif "version" in request.path_params:
            served = find(self._site, request)
            wanted = [(served.name, served.version)]
        else:
            name = find(self._site, request).name
            wanted = [key for key in lanes_of(processes) if key[0] == name]
        return answer(statistics(processes, wanted))

    async def unknown(self, request: Request) -> Response:
        find(self._site, request)
        raise NotFound(f"{request.url.path[:200]!r} is not served; {WHERE}")

    async def explain(self, request: Request) -> Response:
        raise Unsupported("explanations are not served here; use :predict")

    async def _example(self, served: Served) -> dict[str, Any]:
        found = self._examples.get(served)
        if found is None:
            found = self._examples[served] = await asyncio.to_thread(examples.row_of, served)
        return found


async def _own(request: Request, error: Exception) -> Response:
    assert isinstance(error, PeltonError)
    return failure(error)


async def _http(request: Request, error: Exception) -> Response:
    """Starlette's own: no such route, or another method."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code in (404, 405):
        stray = strays.refusal(request, error.status_code, error.headers or {})
        if stray is not None:
            return stray
    if error.status_code == 404:
        return plain_failure(404, f"there is nothing at {path!r}; {WHERE}")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return plain_failure(
            405, f"{request.method[:20]} is not taken at {path!r}, but {allowed}", dict(error.headers or {})
        )
    return plain_failure(error.status_code, str(error.detail))


async def _fault(request: Request, error: Exception) -> Response:
    """Starlette raises the error again behind this answer, and the connection logs it."""
    return plain_failure(500, "internal error; the log of the server has the details")
