"""Every route of the OpenAI API, and of Triton's generate extension."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from pelton.server.openai.chat import ChatRoute
from pelton.server.openai.completions import CompletionRoute
from pelton.server.openai.embeddings import EmbeddingRoute
from pelton.server.openai.endpoint import Answer, Endpoint
from pelton.server.openai.models import Models
from pelton.server.openai.response_store import ResponseStore
from pelton.server.openai.responses import ResponseRoute, Responses
from pelton.server.openai.speech import SpeechRoute
from pelton.server.openai.triton import Generate
from pelton.server.site import Site

MODEL = "/v2/models/{model}"


def routes(site: Site) -> list[Route]:
    """All of them."""
    models, generate, store = Models(site), Generate(site), ResponseStore(site.engine.clock)
    kept, responses = Responses(site, store), ResponseRoute(site, store)
    posts: list[tuple[str, Answer]] = [
        ("/v1/chat/completions", ChatRoute(site)),
        ("/v1/completions", CompletionRoute(site)),
        ("/v1/embeddings", EmbeddingRoute(site)),
        ("/v1/responses", responses),
        ("/v1/responses/input_tokens", responses.count),
    ]
    made = [_route(path, Endpoint(site, answer), "POST") for path, answer in posts]
    made.append(_route("/v1/audio/transcriptions", SpeechRoute(site, "transcribe"), "POST"))
    made.append(_route("/v1/audio/translations", SpeechRoute(site, "translate"), "POST"))
    for base in (MODEL, MODEL + "/versions/{version}"):
        made += [_route(base + "/generate", generate.whole, "POST")]
        made += [_route(base + "/generate_stream", generate.stream, "POST")]
    return [
        *made,
        Route("/v1/responses/{response}", kept.get, methods=["GET"]),
        Route("/v1/responses/{response}", kept.delete, methods=["DELETE"]),
        Route("/v1/responses/{response}/input_items", kept.input_items, methods=["GET"]),
        Route("/v1/responses/{response}/cancel", kept.cancel, methods=["POST"]),
        Route("/v1/models", models.list, methods=["GET"]),
        Route("/v1/models/{model}", models.one, methods=["GET"]),
        Route("/v1/models/{model}/versions/{version}", models.one, methods=["GET"]),
    ]


def _route(path: str, endpoint: Callable[[Request], Awaitable[Any]], method: str) -> Route:
    async def answered(request: Request) -> Any:
        return await endpoint(request)

    return Route(path, answered, methods=[method])
