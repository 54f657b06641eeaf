"""Triton's generate extension: POST /v2/models/{model}/generate and /generate_stream.

Specification: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md; its
errors are `{"error": text}`, also inside of a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pelton.errors import ModelFailed, PeltonError
from pelton.language import Language
from pelton.runtimes.language import Facts
from pelton.server.openai import caller as callers
from pelton.server.openai import errors, plan, receipts
from pelton.server.openai.asks import SamplingAsk
from pelton.server.openai.caller import Caller
from pelton.server.openai.completions import tokens_of
from pelton.server.openai.decoding import ask as as_ask
from pelton.server.openai.decoding import convert, json_object
from pelton.server.openai.endpoint import Target, body_of, find, language_of
from pelton.server.openai.errors import ApiError, invalid
from pelton.server.openai.plan import Plan
from pelton.server.openai.run import Choice, Logged, Run
from pelton.server.openai.stream import HEAD, Application, EventStream, Whole, encode
from pelton.server.protocols.status import error_body
from pelton.server.site import Site

Json = dict[str, Any]

PROTOCOL: Final = "generate"
STATUS: Final = {400: 422, 404: 404, 413: 413, 429: 429, 503: 503, 504: 504}  # errors of OpenAI as Triton's


class Parameters(SamplingAsk, kw_only=True, forbid_unknown_fields=True):
    """Sampling as in /v1/completions, under `parameters`."""

    model: str = "m"
    max_tokens: Annotated[int, Meta(ge=1, le=2**31)] = 20
    details: bool = False


class GenerateAsk(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    text_input: str
    id: Annotated[str, Meta(max_length=200)] | None = None
    parameters: Json = {}


class Generate:
    """The two routes."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def whole(self, request: Request) -> Application:
        return await self._answer(request, False)

    async def stream(self, request: Request) -> Application:
        return await self._answer(request, True)

    async def _answer(self, request: Request, stream: bool) -> Application:
        path = request.path_params
        name = path["model"]
        received = self._site.engine.clock()
        try:
            caller = callers.of(request, received)
            raw = json_object(await body_of(request, self._site), self._site.limits.json)
            ask, _ = as_ask(raw, GenerateAsk, {}, {})
            parameters = convert(_set(ask.parameters), Parameters, "parameters")
            model = f"{name}:{path['version']}" if "version" in path else name
            target = await find(self._site, model, caller.key)
            language, facts = language_of(target.served)
            made = await _planned(ask, parameters, target, language, facts)
        except ClientDisconnect:
            return Response()
        except (ApiError, PeltonError) as error:
            own = error if isinstance(error, PeltonError) else ModelFailed(str(error))
            self._site.engine.reject(name, PROTOCOL, own, received)
            return _refusal(error)
        return self._answering(_Asked(ask, parameters, target, caller, language), made, stream)

    def _answering(self, asked: _Asked, made: Plan, stream: bool) -> Application:
        site, served = self._site, asked.target.served
        known = receipts.headers(served, asked.caller, [])
        if stream:
            events = EventStream({**HEAD, **known})
            listener = _Events(asked, events)
            events.work = Run(site.engine, served, asked.language, made, asked.caller, listener)
            return events
        whole = Whole(lambda: _whole(asked, run, whole), known, _refusal)
        run = whole.work = Run(site.engine, served, asked.language, made, asked.caller, whole)
        return whole


class _Asked(msgspec.Struct):
    ask: GenerateAsk
    parameters: Parameters
    target: Target
    caller: Caller
    language: Language


def _set(parameters: Json) -> Json:
    if "model" in parameters or "stream" in parameters or "n" in parameters:
        raise invalid("parameters: 'model', 'stream' and 'n' are not taken here", "parameters")
    return {name: value for name, value in parameters.items() if value is not None}


async def _planned(ask: GenerateAsk, parameters: Parameters, target: Target, language: Language, facts: Facts) -> Plan:
    prompt = await tokens_of(language, ask.text_input, plan.room(facts), "text_input")
    plan.check_length((prompt,), parameters.max_tokens, plan.room(facts), "text_input")
    sampling = plan.sampling(parameters, facts, language.card.vocab_size, language.card.defaults)
    logprobs = 0 if parameters.details else None
    return Plan(
        protocol=PROTOCOL,
        prompts=(prompt,),
        context=plan.room(facts),
        sampling=plan.with_logprobs(sampling, logprobs, facts, "details"),
        stop_tokens=frozenset() if parameters.ignore_eos else language.stop_tokens,
        max_tokens=parameters.max_tokens,
        stops=plan.stops(parameters),
        logprobs=logprobs,
        begins=False,
        route=target.route,
        key=target.key,
    )


def _refusal(error: Exception, headers: dict[str, str] | None = None) -> Response:
    told = errors.of(error)
    status = STATUS.get(told.status, 500)
    return Response(error_body(str(told)), status, {**told.headers, **(headers or {})}, "application/json")


def _reason(choice: Choice) -> str:
    if choice.finish_reason == "length":
        return "length"
    return "eos_token" if choice.stop_string is None else "stop_sequence"


def _named(asked: _Asked, text: str) -> Json:
    served = asked.target.served
    made: Json = {"text_output": text, "model_name": served.name, "model_version": served.version}
    if asked.ask.id is not None:
        made["id"] = asked.ask.id
    return made


def _tokens(language: Language, logged: Sequence[Logged]) -> list[Json]:
    tokenizer = language.tokenizer
    return [
        {
            "id": one.token,
            "text": tokenizer.token_text(one.token),
            "logprob": one.logprobs.chosen,
            "special": one.token in tokenizer.special_ids,
        }
        for one in logged
    ]


def _whole(asked: _Asked, run: Run, whole: Whole) -> Response:
    choice = run.choices[0]
    body = _named(asked, whole.text(choice))
    if asked.parameters.details:
        logged = whole.logged.get(0, ())
        body["details"] = {"finish_reason": _reason(choice), "logprobs": _tokens(asked.language, logged)}
    return Response(encode(body), 200, receipts.headers_of(run, []), "application/json")


class _Events:
    """A streamed answer: each event has the new text."""

    def __init__(self, asked: _Asked, stream: EventStream) -> None:
        self._asked = asked
        self._stream = stream

    def piece(self, choice: Choice, text: str, logged: Sequence[Logged]) -> None:
        body = _named(self._asked, text)
        if self._asked.parameters.details and logged:
            body["details"] = {"token": _tokens(self._asked.language, logged)[-1]}
        self._stream.push(b"data: %b\n\n" % encode(body))

    def ended(self, choice: Choice) -> None:
        if self._asked.parameters.details:
            body = {**_named(self._asked, ""), "details": {"finish_reason": _reason(choice)}}
            self._stream.push(b"data: %b\n\n" % encode(body))

    def complete(self) -> None:
        self._stream.close()

    def failed(self, error: PeltonError) -> None:
        self._stream.fail(error, lambda told: b"data: %b\n\n" % error_body(str(told)), _refusal)
