"""GET /v1/models: one answer for the clients of OpenAI and for those of KServe v1."""

from __future__ import annotations

import time
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from pelton.errors import NotFound, PeltonError
from pelton.server.openai.endpoint import find
from pelton.server.openai.errors import ApiError
from pelton.server.openai.errors import of as error_of
from pelton.server.openai.speech import sound_of
from pelton.server.openai.strays import from_openai
from pelton.server.pages.answers import answer
from pelton.server.pages.cards import Card, card_of, read
from pelton.server.pages.catalog import current_lanes
from pelton.server.pages.health import Health
from pelton.server.site import Site
from pelton.transforms import embedding

Json = dict[str, Any]

OWNER: Final = "pelton"
ACTIONS: Final = (":predict", ":explain")  # of KServe; no versions


class Models:
    """The two routes."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._health = Health(site)
        self._since: dict[str, int] = {}  # version -> when it was first seen here

    async def list(self, request: Request) -> Response:
        """`data` for OpenAI's clients, `models` (names) for KServe's. What cannot answer now stands in `models` only."""
        processes = await self._site.processes()
        names = {lane.model for process in processes for lane in process.lanes}
        names.update(name for name in await self._site.states() if " " not in name)  # "worker 1" is no model
        cards = {key[0]: read(same[0].card) for key, same in sorted(current_lanes(processes).items())}
        data = [self._model(card) for card in cards.values()]
        return answer({"object": "list", "data": data, "models": sorted(names)})

    async def one(self, request: Request) -> Response:
        """Readiness, as KServe asks for it, and the model, as OpenAI does."""
        named = request.path_params["model"]
        if "version" not in request.path_params and not named.endswith(ACTIONS) and (":" in named or "@" in named):
            return await self._version(named)
        try:
            ready = await self._health.model_ready(request)
        except PeltonError as error:
            if not from_openai(request):
                raise
            return self._refusal(error, request)
        if ready.status_code != 200 or "version" in request.path_params:
            return ready
        name = request.path_params["model"]
        cards = {key[0]: read(same[0].card) for key, same in current_lanes(await self._site.processes()).items()}
        if name not in cards:
            return ready
        return answer({**self._model(cards[name]), "name": name, "ready": True})

    async def _version(self, named: str) -> Response:
        """One version: "name:version" or "name@alias", as it may stand in a request."""
        try:
            target = await find(self._site, named, None)
        except (ApiError, PeltonError) as error:
            return error_of(error).response()
        return answer({**self._model(read(card_of(target.served))), "id": named})

    def _refusal(self, error: PeltonError, request: Request) -> Response:
        if isinstance(error, NotFound):
            name = request.path_params["model"][:100]
            return ApiError(f"The model {name!r} does not exist; {error}", "model", "model_not_found", 404).response()
        return error_of(error).response()

    def _model(self, card: Card) -> Json:
        created = self._since.setdefault(card.version, int(time.time()))
        return {
            "id": card.name,
            "object": "model",
            "created": created,
            "owned_by": OWNER,
            "kind": self._kind(card),
            "version": card.version[:12],
        }

    def _kind(self, card: Card) -> str:
        """What endpoints a model is for. A model of another worker that embeds or hears is not looked into."""
        served = self._site.engine.directory.current().get(card.name)
        if card.runtime == "language" or served is None:
            return "language" if card.runtime == "language" else "model"
        if embedding.of(served.replica.package) is not None:
            return "embedding"
        return "speech" if sound_of(served) is not None else "model"
