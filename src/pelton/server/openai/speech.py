"""POST /v1/audio/transcriptions and /v1/audio/translations: sounds to text, through Whisper packages."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pelton.engine import Served
from pelton.errors import InvalidInput, PeltonError
from pelton.packages.preprocess import Speech
from pelton.server.openai import caller as callers
from pelton.server.openai import errors, multipart, receipts
from pelton.server.openai.asks import Name
from pelton.server.openai.caller import Caller
from pelton.server.openai.calls import submitted
from pelton.server.openai.decoding import ask as as_ask
from pelton.server.openai.endpoint import PROTOCOL, Target, body_of, find
from pelton.server.openai.errors import ApiError, invalid, unsupported
from pelton.server.openai.stream import HEAD, Application, encode
from pelton.server.site import Site
from pelton.types import Call

log = logging.getLogger(__name__)

Json = dict[str, Any]

FORMATS: Final = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES: Final = ("word", "segment")
LISTS: Final = (
    "timestamp_granularities",
    "include",
    "keywords",
    "languages",
    "known_speaker_names",
    "known_speaker_references",
)
STREAMED: Final = ("json", "text")
EVENTS: Final = HEAD["content-type"]
TEXT: Final = "text/plain; charset=utf-8"
REFUSED: Final = {
    "keywords": "Put them into 'prompt'.",
    "languages": "Use 'language', or none: then it is heard.",
    "known_speaker_names": "Speakers are not told apart.",
    "known_speaker_references": "Speakers are not told apart.",
}
SAID: Final[Json] = {"user": str, "chunking_strategy": Literal["auto"]}  # long sounds are cut at quiet places
BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


class SpeechAsk(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The form. Of translations, too, where `language` and `timestamp_granularities` are refused."""

    model: Name
    file: bytes
    language: Annotated[str, Meta(max_length=40)] = ""
    prompt: Annotated[str, Meta(max_length=20_000)] = ""
    response_format: str = "json"
    temperature: Annotated[float, Meta(ge=0, le=1)] = 0.0
    timestamp_granularities: list[str] = []
    include: list[str] = []
    stream: bool = False


class SpeechRoute:
    """One of the two endpoints."""

    def __init__(self, site: Site, task: str) -> None:
        self._site = site
        self._task = task

    async def __call__(self, request: Request) -> Application:
        received, name = self._site.engine.clock(), ""
        headers: dict[str, str] = {}
        try:
            caller = callers.of(request, received)
            headers = {"x-request-id": caller.request_id}
            form = multipart.read(
                request.headers.get("content-type", "").encode("latin-1"), await body_of(request, self._site)
            )
            raw = fields_of(form)
            name = str(raw.get("model", ""))[:200]
            return await self._begun(raw, caller)
        except ClientDisconnect:
            return Response()
        except Exception as error:  # every error is answered, in one form
            if not isinstance(error, (ApiError, PeltonError)):
                log.exception("answering a request for model %r failed", name)
            own = error if isinstance(error, PeltonError) else InvalidInput(str(error))
            self._site.engine.reject(name.partition(":")[0].partition("@")[0], PROTOCOL, own, received)
            return errors.of(error).response(headers)

    async def _begun(self, raw: Json, caller: Caller) -> Application:
        ask, ignored = as_ask(raw, SpeechAsk, REFUSED, SAID)
        _check(ask, self._task, ignored)
        target = await find(self._site, ask.model, caller.key)
        field = sound_of(target.served)
        if field is None:
            raise ApiError(
                f"The model {target.served.name!r} hears nothing; GET /v1/models says what each one is.",
                "model",
                "model_not_supported",
            )
        return _Answer(self._site, ask, target, caller, self._fields(ask, field), ignored)

    def _fields(self, ask: SpeechAsk, field: str) -> dict[str, list[Any]]:
        """What the model is sent."""
        return {
            field: [ask.file],
            "language": [ask.language],
            "prompt": [ask.prompt],
            "temperature": [ask.temperature],
            "task": [self._task],
            "words": ["word" in ask.timestamp_granularities],
        }


def sound_of(served: Served) -> str | None:
    """The field that a speech model takes sounds in; None: it is no such model."""
    manifest = served.replica.package.manifest
    return next((block.field for block in manifest.preprocess if isinstance(block, Speech)), None)


def fields_of(form: multipart.Form) -> Json:
    """A form's fields with their types. Raises ApiError."""
    made: Json = {}
    for key, values in form.items():
        name = key.removesuffix("[]")
        if name == "file":
            made[name] = values[-1]
            continue
        try:
            texts = [value.decode() for value in values]
        except UnicodeDecodeError:
            raise invalid(f"Invalid value for '{name[:60]}': it is not UTF-8.", name[:60]) from None
        if name in LISTS:
            made[name] = [*made.get(name, []), *texts]
        elif name == "temperature":
            made[name] = _number(texts[-1])
        elif name == "stream":
            made[name] = BOOLEANS.get(texts[-1].lower(), texts[-1])
        else:
            made[name] = texts[-1]
    return made


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise invalid("Invalid value for 'temperature': expected a number from 0 to 1.", "temperature") from None


def _check(ask: SpeechAsk, task: str, ignored: list[str]) -> None:
    if ask.response_format not in FORMATS:
        known = ", ".join(f"'{name}'" for name in FORMATS)
        raise invalid(f"Invalid value for 'response_format': supported values are {known}.", "response_format")
    if not ask.file:
        raise invalid("Invalid value for 'file': it is empty.", "file")
    for name in ask.timestamp_granularities:
        if name not in GRANULARITIES:
            raise invalid(
                "Invalid value for 'timestamp_granularities': supported values are 'word' and 'segment'.",
                "timestamp_granularities",
            )
    if ask.timestamp_granularities and ask.response_format != "verbose_json":
        raise invalid(
            "Invalid value for 'timestamp_granularities': it needs 'response_format' to be 'verbose_json'.",
            "timestamp_granularities",
        )
    if ask.include:
        raise unsupported(
            "Unsupported parameter: 'include'. Use 'verbose_json' for what is known of each segment.", "include"
        )
    if ask.stream and ask.response_format not in STREAMED:
        raise invalid("Invalid value for 'stream': it needs 'response_format' to be 'json' or 'text'.", "stream")
    if task == "translate":
        for name in ("language", "timestamp_granularities", "stream"):
            if getattr(ask, name):
                raise unsupported(f"Unsupported parameter: '{name}'. Translations do not take it.", name)


class _Answer:
    """Waits for one call; an ASGI application."""

    def __init__(
        self,
        site: Site,
        ask: SpeechAsk,
        target: Target,
        caller: Caller,
        fields: dict[str, list[Any]],
        ignored: list[str],
    ) -> None:
        self._site = site
        self._ask = ask
        self._target = target
        self._caller = caller
        self._fields = fields
        self._headers = receipts.headers(target.served, caller, ignored)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            call = await submitted(self._site.engine, self._target, self._caller, self._fields, receive)
            if call is None:
                return
            response = self._response(call)
        except PeltonError as error:
            told = errors.of(error)
            if told.kind == errors.INVALID and told.code != "model_not_found":
                told.param = param_of(str(error))
            response = told.response(self._headers)
        await response(scope, receive, send)

    def _response(self, call: Call) -> Response:
        outcome = call.outcome
        assert isinstance(outcome, list)
        told = self._target.served.replica.finish(outcome, call.counts)[0]
        kind, body = written(told, self._ask, self._fields["task"][0])
        return Response(body, 200, self._headers, kind)


def param_of(message: str) -> str:
    """The field that an error of the model's input names, as callers know it."""
    named = message.partition("'")[2].partition("'")[0] if message.startswith("input '") else ""
    return named if named in ("language", "prompt", "temperature") else "file"


def written(told: Json, ask: SpeechAsk, task: str = "transcribe") -> tuple[str, bytes]:
    """Content type and body. `told`: what the package answers (`pelton.runtimes.whisper`)."""
    segments = told["segments"]
    text = told["text"].strip()
    if ask.stream:
        return EVENTS, _events(segments, text)
    if ask.response_format == "text":
        return TEXT, text.encode() + b"\n"
    if ask.response_format == "srt":
        return TEXT, _subtitles(segments, ",", True).encode()
    if ask.response_format == "vtt":
        return "text/vtt; charset=utf-8", ("WEBVTT\n\n" + _subtitles(segments, ".", False)).encode()
    usage = {"type": "duration", "seconds": told["duration"]}
    if ask.response_format == "json":
        return "application/json", encode({"text": text, "usage": usage})
    body: Json = {
        "task": task,
        "language": "english" if task == "translate" else told["language"],
        "duration": told["duration"],
        "text": text,
    }
    wanted = ask.timestamp_granularities or ["segment"]
    if "segment" in wanted:
        body["segments"] = [{key: value for key, value in one.items() if key != "words"} for one in segments]
    if "word" in wanted:
        body["words"] = [
            {"word": word["word"].strip(), "start": word["start"], "end": word["end"]}
            for one in segments
            for word in one.get("words", ())
        ]
    return "application/json", encode({**body, "usage": usage})


def _events(segments: list[Json], text: str) -> bytes:
    """A segment is one event. All come together: the model hears a sound as a whole."""
    told = [{"type": "transcript.text.delta", "delta": one["text"]} for one in segments]
    told.append({"type": "transcript.text.done", "text": text})
    return b"".join(b"event: %b\ndata: %b\n\n" % (one["type"].encode(), encode(one)) for one in told)


def _subtitles(segments: list[Json], point: str, numbered: bool) -> str:
    blocks = []
    for number, one in enumerate(segments, 1):
        times = f"{_time(one['start'], point)} --> {_time(one['end'], point)}"
        head = f"{number}\n" if numbered else ""
        blocks.append(f"{head}{times}\n{one['text'].strip().replace('-->', '->')}\n\n")
    return "".join(blocks)


def _time(seconds: float, point: str) -> str:
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest:02}{point}{thousandths:03}"
