"""POST /v1/responses, and what was said before by its id."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from pelton.errors import PeltonError
from pelton.server.openai import asks, errors, messages, output_form, plan, receipts
from pelton.server.openai import caller as callers
from pelton.server.openai.asks import ChatAsk, Effort, ResponseAsk, Verbosity
from pelton.server.openai.caller import Caller
from pelton.server.openai.chat import Chat, check, planned
from pelton.server.openai.decoding import ask as as_ask
from pelton.server.openai.decoding import convert, unknown_field
from pelton.server.openai.endpoint import find, language_of
from pelton.server.openai.errors import ApiError, invalid, missing, unsupported
from pelton.server.openai.output_form import Form
from pelton.server.openai.plan import Plan
from pelton.server.openai.readers import Readers
from pelton.server.openai.response_items import Output, items_of, messages_of, tool_of
from pelton.server.openai.response_store import ResponseStore
from pelton.server.openai.run import Choice, Logged, Run
from pelton.server.openai.stream import HEAD, Application, EventStream, Whole, encode
from pelton.server.openai.token_logprobs import for_chat
from pelton.server.pages.answers import answer
from pelton.server.site import Site

Json = dict[str, Any]

MOST_ITEMS: Final = 100  # of one page
WORDS: Final[Json] = {"effort": Effort, "verbosity": Verbosity}
LOGPROBS: Final = "message.output_text.logprobs"
RENAMED: Final = {  # fields of chat -> fields here
    "messages": "input", "max_completion_tokens": "max_output_tokens", "max_tokens": "max_output_tokens",
    "response_format": "text.format", "reasoning_effort": "reasoning.effort", "verbosity": "text.verbosity",
}  # fmt: skip
PASSED: Final = (
    "model", "temperature", "top_p", "seed", "top_k", "min_p", "repetition_penalty", "ignore_eos",
    "parallel_tool_calls", "tool_choice", "chat_template_kwargs",
)  # fmt: skip


@dataclass(slots=True)
class Responding:
    """A checked request. `items`: the conversation, earlier answers included; `new`: where the new input begins."""

    ask: ResponseAsk
    chat: Chat
    items: list[Json]
    new: int
    id: str

    def body(self, status: str, output: list[Json], usage: Json | None) -> Json:
        """The response object."""
        ask, chat = self.ask, self.chat
        defaults = chat.language.card.defaults
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": chat.created,
            "status": status,
            "background": False,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": incomplete,
            "instructions": ask.instructions,
            "max_output_tokens": ask.max_output_tokens,
            "max_tool_calls": None,
            "model": ask.model,
            "output": output,
            "parallel_tool_calls": ask.parallel_tool_calls,
            "previous_response_id": ask.previous_response_id,
            "reasoning": {"effort": ask.reasoning.get("effort"), "summary": None},
            "service_tier": "default",
            "store": ask.store,
            "temperature": plan.temperature(chat.ask, defaults),
            "text": {"format": _format(chat.form), "verbosity": ask.text.get("verbosity") or "medium"},
            "tool_choice": ask.tool_choice or "auto",
            "tools": [_tool(tool) for tool in ask.tools],
            "top_logprobs": ask.top_logprobs or 0,
            "top_p": plan.top_p(chat.ask, defaults),
            "truncation": "disabled",
            "metadata": ask.metadata,
            **({"usage": usage} if usage is not None else {}),
        }


class ResponseRoute:
    """The endpoint that makes them."""

    def __init__(self, site: Site, store: ResponseStore) -> None:
        self._site = site
        self._store = store

    async def __call__(self, raw: Json, caller: Caller) -> Application:
        """Raises ApiError, PeltonError."""
        return self._answering(*await self._planned(raw, caller))

    async def count(self, raw: Json, caller: Caller) -> Application:
        """How many tokens the input has: /v1/responses/input_tokens. Raises ApiError, PeltonError."""
        responding, made = await self._planned(raw, caller)
        chat = responding.chat
        body = {"object": "response.input_tokens", "input_tokens": len(made.prompts[0])}
        return answer(body, headers=receipts.headers(chat.target.served, caller, chat.ignored))

    async def _planned(self, raw: Json, caller: Caller) -> tuple[Responding, Plan]:
        ask, ignored = as_ask(raw, ResponseAsk, asks.RESPONSE_REFUSED, asks.RESPONSE_SAID)
        _check(ask, ignored)
        form = _form(ask)
        before = self._before(ask, caller)
        new = items_of([] if ask.input is None else ask.input, lambda name: self._store.item(name, caller.tenant))
        told = [{"role": "system", "content": ask.instructions}] if ask.instructions else []
        told += messages_of([*before, *new])
        alike = len(told) == len(new)  # messages are at the places of the items
        try:
            of_chat = _as_chat(ask, told)
            check(of_chat, ignored)
            tools = output_form.tools_of(of_chat.tools, ask.tool_choice, ask.parallel_tool_calls)
            target = await find(self._site, ask.model, caller.key)
            language, facts = language_of(target.served)
            chat = Chat(of_chat, caller, target, language, facts, form, tools, ignored)
            made = await planned(chat)
            chat.ignored = [RENAMED.get(name, name) for name in chat.ignored]
        except ApiError as error:
            raise _renamed(error, alike) from None
        name = f"resp_{self._site.worker:02x}{secrets.token_hex(23)}"
        return Responding(ask, chat, [*before, *new], len(before), name), made

    def _before(self, ask: ResponseAsk, caller: Caller) -> list[Json]:
        if ask.previous_response_id is None:
            return []
        kept = self._store.get(ask.previous_response_id, caller.tenant)
        if kept is None:
            raise ApiError(
                f"Previous response with id {ask.previous_response_id[:100]!r} not found: responses are kept in memory for "
                "an hour, unless 'store' is false.",
                "previous_response_id",
                "previous_response_not_found",
            )
        return list(kept.items)

    def _answering(self, responding: Responding, made: Plan) -> Application:
        site, chat = self._site, responding.chat
        served = chat.target.served
        known = receipts.headers(served, chat.caller, chat.ignored)
        if responding.ask.stream:
            stream = EventStream({**HEAD, **known})
            events = ResponseEvents(responding, stream, self._store)
            events.run = stream.work = Run(site.engine, served, chat.language, made, chat.caller, events)
            return stream
        whole = ResponseWhole(responding, known, self._store)
        whole.run = whole.work = Run(site.engine, served, chat.language, made, chat.caller, whole)
        return whole


class Responses:
    """What is kept, by its id."""

    def __init__(self, site: Site, store: ResponseStore) -> None:
        self._site = site
        self._store = store

    async def get(self, request: Request) -> Response:
        if request.query_params.get("stream", "false").lower() not in ("false", "0"):
            return unsupported("Unsupported parameter: 'stream'. What is kept is whole.", "stream").response()
        kept = self._store.get(*_asked(request))
        return _missing(request) if kept is None else Response(kept.body, 200, media_type="application/json")

    async def delete(self, request: Request) -> Response:
        name, tenant = _asked(request)
        if not self._store.drop(name, tenant):
            return _missing(request)
        return answer({"id": name, "object": "response", "deleted": True})

    async def input_items(self, request: Request) -> Response:
        """Newest first, as OpenAI's default order is, a page at a time."""
        kept = self._store.get(*_asked(request))
        if kept is None:
            return _missing(request)
        try:
            page, more = _page(list(kept.items[: kept.inputs]), request.query_params)
        except ApiError as error:
            return error.response()
        first, last = (page[0]["id"], page[-1]["id"]) if page else ("", "")
        return answer({"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": more})

    async def cancel(self, request: Request) -> Response:
        if self._store.get(*_asked(request)) is None:
            return _missing(request)
        return invalid("Only responses in the background can be cancelled, and there are none here.", None).response()


def _page(items: list[Json], query: Mapping[str, str]) -> tuple[list[Json], bool]:
    """The items that `order`, `after` and `limit` name, and whether more follow. Raises ApiError."""
    order, limit, after = query.get("order", "desc"), query.get("limit", "20"), query.get("after")
    if order not in ("asc", "desc"):
        raise invalid("Invalid value for 'order': supported values are 'asc' and 'desc'.", "order")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= MOST_ITEMS):
        raise invalid(f"Invalid value for 'limit': expected 1 to {MOST_ITEMS}.", "limit")
    if order == "desc":
        items.reverse()
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise invalid(f"Invalid value for 'after': {after[:80]!r} is none of these items.", "after")
        items = items[ids.index(after) + 1 :]
    return items[: int(limit)], len(items) > int(limit)


def _asked(request: Request) -> tuple[str, str]:
    return request.path_params["response"], callers.tenant(request)


def _missing(request: Request) -> Response:
    name = request.path_params["response"][:100]
    return ApiError(f"Response with id {name!r} not found.", None, "response_not_found", 404).response()


class _Made:
    """What both ways of answering share: the items, their readers, and the end."""

    def __init__(self, responding: Responding, output: Output, store: ResponseStore) -> None:
        self.run: Run | None = None
        self.responding = responding
        self.output = output
        self._readers = Readers(responding.chat)
        self._store = store

    def push(self, choice: Choice, text: str, logged: Sequence[Logged]) -> None:
        chat = self.responding.chat
        told = for_chat(chat.language.tokenizer, logged, chat.logprobs or 0) if logged else []
        for piece in self._readers.push(choice, text):
            self.output.push(piece, told)
            told = []

    def end(self, choice: Choice) -> Json:
        """The response object of a finished answer, which is kept where it should be."""
        assert self.run is not None
        for piece in self._readers.finish(choice):
            self.output.push(piece)
        status = "incomplete" if choice.finish_reason == "length" else "completed"
        self.output.finish(status)
        body = self.responding.body(status, self.output.items, _usage(self.run, self._readers.thought_tokens()))
        self._keep(body)
        return body

    def _keep(self, body: Json) -> None:
        responding = self.responding
        if not responding.ask.store:
            return
        encoded = encode(body)
        items = (*responding.items, *self.output.items)
        size = 2 * len(encoded) + sum(len(encode(item)) for item in responding.items[responding.new :])
        tenant = responding.chat.caller.tenant
        self._store.put(responding.id, tenant, encoded, items, len(responding.items), size)


class ResponseWhole(Whole):
    """An answer in one piece."""

    def __init__(self, responding: Responding, headers: dict[str, str], store: ResponseStore) -> None:
        super().__init__(self._response, headers)
        self.run: Run | None = None
        self._made = _Made(responding, Output(lambda kind, fields: None), store)

    def piece(self, choice: Choice, text: str, logged: Sequence[Logged]) -> None:
        self._made.push(choice, text, logged)

    def _response(self) -> Response:
        run, chat = self.run, self._made.responding.chat
        assert run is not None
        self._made.run = run
        body = self._made.end(run.choices[0])
        if chat.caller.receipt:
            body["receipt"] = receipts.receipt(run)
        return Response(encode(body), 200, receipts.headers_of(run, chat.ignored), "application/json")


class ResponseEvents:
    """A streamed answer: typed events, numbered."""

    def __init__(self, responding: Responding, stream: EventStream, store: ResponseStore) -> None:
        self.run: Run | None = None
        self._stream = stream
        self._number = 0
        self._begun = False
        self._last: Json | None = None
        self._made = _Made(responding, Output(self._emit), store)

    # ---- as a listener

    def piece(self, choice: Choice, text: str, logged: Sequence[Logged]) -> None:
        self._begin()
        self._made.push(choice, text, logged)

    def ended(self, choice: Choice) -> None:
        self._begin()
        self._made.run = self.run
        self._last = self._made.end(choice)

    def complete(self) -> None:
        body = self._last
        assert body is not None
        assert self.run is not None
        if self._made.responding.chat.caller.receipt:
            body["receipt"] = receipts.receipt(self.run)
        self._emit(f"response.{body['status']}", {"response": body})
        self._stream.close()

    def failed(self, error: PeltonError) -> None:
        self._stream.fail(error, self._failure)

    # ---- events

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            body = self._made.responding.body("in_progress", [], None)
            self._emit("response.created", {"response": body})
            self._emit("response.in_progress", {"response": body})

    def _emit(self, kind: str, fields: Json) -> None:
        self._stream.push(self._event(kind, fields))

    def _event(self, kind: str, fields: Json) -> bytes:
        told = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode(told))

    def _failure(self, error: errors.ApiError) -> bytes:
        body = self._made.responding.body("failed", self._made.output.items, None)
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        body["error"] = {"code": code, "message": str(error)}
        return self._event("response.failed", {"response": body})


# ---- checking


def _check(ask: ResponseAsk, ignored: list[str]) -> None:
    if ask.background:
        raise unsupported(
            "Unsupported parameter: 'background'. Answers are made while their caller waits.", "background"
        )
    if ask.input is None and ask.previous_response_id is None:
        raise ApiError(
            "Missing required parameter: 'input'. One of 'input' and 'previous_response_id' is needed.",
            "input",
            "missing_required_parameter",
        )
    if ask.reasoning.get("effort") is not None:
        convert(ask.reasoning["effort"], WORDS["effort"], "reasoning.effort")
    if ask.stream_options and not ask.stream:
        raise invalid("Invalid value for 'stream_options': it needs 'stream' to be true.", "stream_options")
    for name in ask.stream_options:
        if name != "include_obfuscation":
            raise unknown_field(name, ("include_obfuscation",), "stream_options")
        ignored.append("stream_options.include_obfuscation")
    ignored.extend(f"include.{name}" for name in ask.include if name != LOGPROBS)
    if ask.truncation == "auto":
        ignored.append("truncation")  # what does not fit is refused all the same
    if ask.reasoning.get("summary") or ask.reasoning.get("generate_summary"):
        ignored.append("reasoning.summary")


def _form(ask: ResponseAsk) -> Form:
    for name, value in ask.text.items():
        if name not in ("format", "verbosity") and value is not None:
            raise unknown_field(name, ("format", "verbosity"), "text")
    if ask.text.get("verbosity") is not None:
        convert(ask.text["verbosity"], WORDS["verbosity"], "text.verbosity")
    given = ask.text.get("format")
    if given is None:
        return output_form.TEXT
    if not isinstance(given, dict):
        raise invalid("Invalid type for 'text.format': expected an object.", "text.format", "invalid_type")
    if given.get("type") == "json_schema":
        if given.get("schema") is None:
            raise missing("text.format.schema")
        return output_form.schema_form(given, "text.format")
    return output_form.form_of(given, "text.format")


def _as_chat(ask: ResponseAsk, told: list[Json]) -> ChatAsk:
    messages.checked(told)  # what it says of "messages[i]" is renamed
    logprobs = LOGPROBS in ask.include or bool(ask.top_logprobs)
    return ChatAsk(
        **{name: getattr(ask, name) for name in PASSED},
        messages=told,
        max_completion_tokens=ask.max_output_tokens,
        logprobs=logprobs,
        top_logprobs=ask.top_logprobs if logprobs else None,
        reasoning_effort=ask.reasoning.get("effort"),
        verbosity=ask.text.get("verbosity"),
        tools=[tool_of(tool) for tool in ask.tools],
    )


def _renamed(error: ApiError, alike: bool) -> ApiError:
    """An error that names a field of chat, with the field's name here."""
    param = error.param or ""
    if param.startswith("tools[") and ".function" in param:  # tools are flat here
        return _told_as(error, param.replace(".function", "", 1))
    for old, new in RENAMED.items():
        if param == old or param.startswith((old + ".", old + "[")):
            renamed = new if old == "messages" and not alike else new + param[len(old) :]
            return _told_as(error, renamed)
    return error


def _told_as(error: ApiError, param: str) -> ApiError:
    """The same error of another field."""
    made = ApiError(str(error).replace(error.param or "", param), param, error.code, error.status, error.kind)
    made.headers = error.headers
    return made


def _format(form: Form) -> Json:
    if form.kind != "json_schema":
        return {"type": form.kind}
    return {
        "type": form.kind,
        "name": form.name,
        "schema": form.schema,
        "strict": bool(form.strict),
    }


def _tool(tool: Json) -> Json:
    return {"description": None, "strict": False, "parameters": {}, **{k: v for k, v in tool.items() if v is not None}}


def _usage(run: Run, thought: int) -> Json:
    usage = receipts.usage(run)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": receipts.cached(run), "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage["total_tokens"],
    }
