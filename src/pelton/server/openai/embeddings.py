"""POST /v1/embeddings: texts to vectors, through models whose packages say that they embed."""

from __future__ import annotations

import base64
from typing import Any, Final

import numpy as np
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pelton.errors import InvalidInput, PeltonError, TooLarge
from pelton.server.openai import asks, errors, receipts
from pelton.server.openai.asks import EmbeddingAsk
from pelton.server.openai.caller import Caller
from pelton.server.openai.calls import submitted
from pelton.server.openai.completions import prompts_of
from pelton.server.openai.decoding import ask as as_ask
from pelton.server.openai.endpoint import Target, find
from pelton.server.openai.errors import ApiError, invalid
from pelton.server.openai.stream import Application, encode
from pelton.server.site import Site
from pelton.transforms import embedding
from pelton.transforms.embedding import EmbeddingModel
from pelton.types import Array, Call

Json = dict[str, Any]

FORMATS: Final = ("float", "base64")


class EmbeddingRoute:
    """The endpoint."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def __call__(self, raw: Json, caller: Caller) -> Application:
        """Raises ApiError, PeltonError."""
        ask, ignored = as_ask(raw, EmbeddingAsk, asks.EMBEDDING_REFUSED, asks.EMBEDDING_SAID)
        if ask.encoding_format not in FORMATS:
            raise invalid(
                "Invalid value for 'encoding_format': supported values are 'float' and 'base64'.", "encoding_format"
            )
        texts = [one if isinstance(one, str) else list(one) for one in prompts_of(ask.input, "input")]
        for index, one in enumerate(texts):
            if not one:
                raise invalid(f"Invalid value for 'input': entry {index} is empty.", "input")
        target = await find(self._site, ask.model, caller.key)
        model = embedding.of(target.served.replica.package)
        if model is None:
            raise ApiError(
                f"The model {target.served.name!r} makes no embeddings; GET /v1/models says what each one is.",
                "model",
                "model_not_supported",
            )
        try:
            model.check(ask.dimensions)
        except InvalidInput as error:
            raise invalid(str(error), "dimensions") from None
        return _Answer(self._site, ask, target, model, texts, caller, ignored)


class _Answer:
    """Waits for one call; an ASGI application."""

    def __init__(
        self,
        site: Site,
        ask: EmbeddingAsk,
        target: Target,
        model: EmbeddingModel,
        texts: list[Any],
        caller: Caller,
        ignored: list[str],
    ) -> None:
        self._site = site
        self._ask = ask
        self._target = target
        self._model = model
        self._texts = texts
        self._caller = caller
        self._headers = receipts.headers(target.served, caller, ignored)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fields = {self._model.field: self._texts}
        try:
            call = await submitted(self._site.engine, self._target, self._caller, fields, receive)
        except PeltonError as error:
            told = errors.of(error)
            if isinstance(error, TooLarge):
                told = ApiError(str(error), "input", "context_length_exceeded")
            elif told.status == 400:
                told.param = "input"
            await told.response(self._headers)(scope, receive, send)
            return
        if call is not None:
            await self._response(call)(scope, receive, send)

    def _response(self, call: Call) -> Response:
        outcome, batch = call.outcome, call.batch
        assert isinstance(outcome, list)
        vectors = self._model.cut(outcome[self._model.position], self._ask.dimensions)
        data = [
            {"object": "embedding", "index": index, "embedding": _written(vector, self._ask.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        body = {
            "object": "list",
            "data": data,
            "model": self._ask.model,
            "usage": {"prompt_tokens": call.tokens, "total_tokens": call.tokens},
        }
        timing = f"prepare;dur={call.prepared * 1e3:.3f}"
        if batch is not None:
            timing = (
                f"queue;dur={(batch.started - call.queued) * 1e3:.3f}, run;dur={batch.run_seconds * 1e3:.3f}, " + timing
            )
        headers = {**self._headers, "server-timing": timing, "pelton-tokens": f"prompt={call.tokens}"}
        return Response(encode(body), 200, headers, "application/json")


def _written(vector: Array, form: str) -> Any:
    if form == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
    return vector.tolist()
