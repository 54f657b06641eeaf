"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.responses import Response

from pelton.errors import InvalidInput, PeltonError, Unsupported
from pelton.language import Language, Tokenizer, reasoning
from pelton.language import tools as tool_calls
from pelton.language.reasoning import Marks, Thought
from pelton.language.tool_parser import CallPiece
from pelton.runtimes.language import Facts
from pelton.server.openai import asks, errors, messages, output_form, plan, receipts
from pelton.server.openai.asks import ChatAsk
from pelton.server.openai.caller import Caller
from pelton.server.openai.constraints import grammar_of, refusal
from pelton.server.openai.decoding import ask as as_ask
from pelton.server.openai.endpoint import PROTOCOL, Target, find, in_turn, language_of
from pelton.server.openai.errors import invalid, unsupported
from pelton.server.openai.guided import guided
from pelton.server.openai.output_form import Form, Tools
from pelton.server.openai.plan import Plan
from pelton.server.openai.readers import Part, Readers, call_of
from pelton.server.openai.run import Choice, Logged, Run
from pelton.server.openai.stream import DONE, HEAD, Application, EventStream, Whole, encode
from pelton.server.openai.token_logprobs import for_chat
from pelton.server.site import Site

Json = dict[str, Any]

TEMPLATE_FIELDS: Final = frozenset(("messages", "tools", "add_generation_prompt", "documents"))
MAX_TEMPLATE_ARGUMENTS: Final = 32


@dataclass(slots=True)
class Chat:
    """A checked request."""

    ask: ChatAsk
    caller: Caller
    target: Target
    language: Language
    facts: Facts
    form: Form
    tools: Tools
    ignored: list[str]
    marks: Marks | None = None  # of thoughts that the answer may have
    inside: bool = False  # the prompt has begun them
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(14)}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def logprobs(self) -> int | None:
        """How many likely tokens beside each token are told; None: no logprobs."""
        return (self.ask.top_logprobs or 0) if self.ask.logprobs else None

    @property
    def legacy(self) -> bool:
        """Tools are told as functions, as they were at first."""
        return bool(self.ask.functions)

    @property
    def model(self) -> str:
        return self.ask.model


class ChatRoute:
    """The endpoint."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def __call__(self, raw: Json, caller: Caller) -> Application:
        """Raises ApiError, PeltonError."""
        ask, ignored = as_ask(raw, ChatAsk, asks.CHAT_REFUSED, asks.CHAT_SAID)
        check(ask, ignored)
        target = await find(self._site, ask.model, caller.key)
        language, facts = language_of(target.served)
        form = guided(ask, output_form.form_of(ask.response_format))
        tools = _tools(ask)
        chat = Chat(ask, caller, target, language, facts, form, tools, ignored)
        made = await planned(chat)
        return answering(self._site, chat, made)


def _tools(ask: ChatAsk) -> Tools:
    if ask.functions:
        return output_form.functions_of(ask.functions, ask.function_call)
    return output_form.tools_of(ask.tools, ask.tool_choice, ask.parallel_tool_calls)


def check(ask: ChatAsk, ignored: list[str]) -> None:
    """What fields may not say together, and values that are not served. Raises ApiError."""
    if ask.top_logprobs is not None and not ask.logprobs:
        raise invalid("Invalid value for 'top_logprobs': it needs 'logprobs' to be true.", "top_logprobs")
    if ask.functions and (ask.tools or ask.tool_choice is not None):
        raise invalid("Invalid value for 'functions': it is the older form of 'tools'; send one of them.", "functions")
    if ask.function_call is not None and not ask.functions:
        raise invalid("Invalid value for 'function_call': it needs 'functions'.", "function_call")
    limits = {ask.max_tokens, ask.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise invalid(
            "Invalid value for 'max_tokens': it is the older name of 'max_completion_tokens'; send one of them.",
            "max_tokens",
        )
    if ask.stream_options is not None:
        check_stream_options(ask, ignored)
    if ask.modalities != ("text",):
        raise unsupported("Unsupported value: 'modalities'; this server gives text only.", "modalities")
    if ask.verbosity not in (None, "medium"):
        ignored.append("verbosity")
    if (
        not TEMPLATE_FIELDS.isdisjoint(ask.chat_template_kwargs)
        or len(ask.chat_template_kwargs) > MAX_TEMPLATE_ARGUMENTS
    ):
        raise invalid(
            "Invalid value for 'chat_template_kwargs': it names what Pelton sets itself.", "chat_template_kwargs"
        )


def check_stream_options(ask: asks.SamplingAsk, ignored: list[str]) -> None:
    """Raises ApiError."""
    if ask.stream_options is None:
        return
    if not ask.stream:
        raise invalid("Invalid value for 'stream_options': it needs 'stream' to be true.", "stream_options")
    if ask.stream_options.include_obfuscation:
        ignored.append("stream_options.include_obfuscation")
    if ask.stream_options.continuous_usage_stats:
        ignored.append("stream_options.continuous_usage_stats")


async def planned(chat: Chat) -> Plan:
    """What the engine is asked. Raises ApiError, PeltonError."""
    ask, facts, language = chat.ask, chat.facts, chat.language
    told = messages.checked(ask.messages)
    size = sum(len(message["content"].encode("utf-8", "replace")) for message in told)
    plan.check_text(size, plan.room(facts), "messages")
    shown = chat.tools.told() or None
    sampling = plan.sampling(ask, facts, language.card.vocab_size, language.card.defaults)
    sampling = plan.with_logprobs(sampling, chat.logprobs, facts, "top_logprobs")
    stops = plan.stops(ask)
    variables = {**_effort(chat), **ask.chat_template_kwargs}
    try:
        prompt = await in_turn(size, lambda: language.encode_chat(told, shown, **variables))
    except (InvalidInput, Unsupported) as error:
        raise refusal(error, "messages") from None
    chat.marks = language.marks
    chat.inside = chat.marks is not None and reasoning.opened(chat.marks, prompt, language.tokenizer)
    grammar = await grammar_of(chat.form, chat.tools, language, chat.marks, chat.inside)
    limit = ask.max_completion_tokens if ask.max_completion_tokens is not None else ask.max_tokens
    plan.check_length((prompt,), limit, plan.room(facts), "messages")
    plan.check_runs(ask.n, "n")
    return Plan(
        protocol=PROTOCOL,
        prompts=(prompt,),
        context=plan.room(facts),
        sampling=sampling,
        stop_tokens=plan.stop_tokens(language, ask),
        max_tokens=limit,
        n=ask.n,
        stops=stops,
        include_stop=ask.include_stop_str_in_output,
        grammar=plan.grammar(grammar, facts, chat.form.at if chat.form.kind != "text" else "tool_choice"),
        logprobs=chat.logprobs,
        show=tool_calls.shown(language.tokenizer, bool(chat.tools.names), chat.marks),
        route=chat.target.route,
        key=chat.target.key,
    )


def _effort(chat: Chat) -> Json:
    """`reasoning_effort` as the model's template takes it, if it does."""
    effort, template = chat.ask.reasoning_effort, chat.language.template
    known = template.variables if template is not None else frozenset()
    if effort is None:
        return {}
    if "reasoning_effort" in known:
        return {"reasoning_effort": effort}
    if "enable_thinking" in known:
        return {"enable_thinking": effort not in ("none", "minimal")}
    if effort != "none":
        chat.ignored.append("reasoning_effort")
    return {}


def answering(site: Site, chat: Chat, made: Plan) -> Application:
    """The answer as an application; nothing has begun yet."""
    served = chat.target.served
    known = receipts.headers(served, chat.caller, chat.ignored)
    if chat.ask.stream:
        stream = EventStream({**HEAD, **known})
        events = ChatEvents(chat, stream)
        events.run = stream.work = Run(site.engine, served, chat.language, made, chat.caller, events)
        return stream
    whole = ChatWhole(chat, known)
    whole.run = whole.work = Run(site.engine, served, chat.language, made, chat.caller, whole)
    return whole


class ChatWhole(Whole):
    """An answer in one piece."""

    def __init__(self, chat: Chat, headers: dict[str, str]) -> None:
        super().__init__(self._response, headers)
        self.run: Run | None = None
        self._chat = chat
        self._readers = Readers(chat)

    def piece(self, choice: Choice, text: str, logged: Sequence[Logged]) -> None:
        super().piece(choice, "".join(_texts(self._readers.push(choice, text))), logged)

    def ended(self, choice: Choice) -> None:
        rest = "".join(_texts(self._readers.finish(choice)))
        super().piece(choice, rest + self._readers.broken(choice), ())

    def _response(self) -> Response:
        chat, run = self._chat, self.run
        assert run is not None
        body: Json = {
            "id": chat.id,
            "object": "chat.completion",
            "created": chat.created,
            "model": chat.model,
            "choices": [self._choice(choice) for choice in run.choices],
            "usage": receipts.usage(run, self._readers.thought_tokens()),
            "service_tier": "default",
            "system_fingerprint": receipts.fingerprint(run.served),
        }
        if chat.caller.receipt:
            body["receipt"] = receipts.receipt(run)
        return Response(encode(body), 200, receipts.headers_of(run, chat.ignored), "application/json")

    def _choice(self, choice: Choice) -> Json:
        chat, logprobs = self._chat, None
        if chat.logprobs is not None:
            logged = self.logged.get(choice.index, ())
            logprobs = {"content": for_chat(chat.language.tokenizer, logged, chat.logprobs), "refusal": None}
        text: str | None = self.text(choice)
        message: Json = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        calls = self._readers.calls(choice)
        if thought := self._readers.thought(choice):
            message |= {"content": text or None, "reasoning_content": thought}
        if calls:
            message["content"] = text if text and text.strip() else None
            message |= {"function_call": calls[0]["function"]} if chat.legacy else {"tool_calls": calls}
        return {
            "index": choice.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self._readers.reason(choice),
        }


def _texts(parts: Sequence[Part]) -> list[str]:
    return [part for part in parts if isinstance(part, str)]


class ChatEvents:
    """A streamed answer: chunks are made of what all of them share, and a little of their own."""

    def __init__(self, chat: Chat, stream: EventStream) -> None:
        self.run: Run | None = None
        self._chat = chat
        self._stream = stream
        self._tokenizer: Tokenizer = chat.language.tokenizer
        self._readers = Readers(chat)
        self._begun: set[int] = set()
        shared: Json = {
            "id": chat.id,
            "object": "chat.completion.chunk",
            "created": chat.created,
            "model": chat.model,
            "service_tier": "default",
            "system_fingerprint": receipts.fingerprint(chat.target.served),
        }
        self._shared = shared
        options = chat.ask.stream_options
        self._usage = options is not None and options.include_usage
        self._head = b"data: " + encode(shared)[:-1] + b',"choices":[{"index":'
        self._tail = b'}],"usage":null}\n\n' if self._usage else b"}]}\n\n"
        self._plain_tail = b'},"logprobs":null,"finish_reason":null' + self._tail

    # ---- as a listener

    def piece(self, choice: Choice, text: str, logged: Sequence[Logged]) -> None:
        self._begin(choice)
        told: Json | None = None
        if logged:
            count = self._chat.logprobs or 0
            told = {"content": for_chat(self._tokenizer, logged, count), "refusal": None}
        for piece in self._readers.push(choice, text):
            self._piece(choice.index, piece, told)
            told = None
        if told is not None:  # its text is still held back
            self._chunk(choice.index, {"content": ""}, told, None)

    def ended(self, choice: Choice) -> None:
        self._begin(choice)
        for piece in self._readers.finish(choice):
            self._piece(choice.index, piece, None)
        self._chunk(choice.index, {}, None, self._readers.reason(choice))

    def complete(self) -> None:
        assert self.run is not None
        receipt = receipts.receipt(self.run) if self._chat.caller.receipt else None
        if self._usage or receipt is not None:
            usage = receipts.usage(self.run, self._readers.thought_tokens()) if self._usage else None
            last: Json = {**self._shared, "choices": [], "usage": usage}
            if receipt is not None:
                last["receipt"] = receipt
            self._stream.push(b"data: %b\n\n" % encode(last))
        self._stream.push(DONE)
        self._stream.close()

    def failed(self, error: PeltonError) -> None:
        self._stream.fail(error, error_event)

    # ---- chunks

    def _piece(self, index: int, piece: Part, logprobs: Json | None) -> None:
        if isinstance(piece, CallPiece):
            self._chunk(index, _call_delta(piece, self._chat.legacy), logprobs, None)
        elif isinstance(piece, Thought):
            self._chunk(index, {"reasoning_content": piece.text}, logprobs, None)
        elif logprobs is None:
            self._stream.push(b'%b%d,"delta":{"content":%b%b' % (self._head, index, encode(piece), self._plain_tail))
        else:
            self._chunk(index, {"content": piece}, logprobs, None)

    def _begin(self, choice: Choice) -> None:
        if choice.index not in self._begun:
            self._begun.add(choice.index)
            self._chunk(choice.index, {"role": "assistant", "content": "", "refusal": None}, None, None)

    def _chunk(self, index: int, delta: Json, logprobs: Json | None, finish_reason: str | None) -> None:
        rest = b'%d,"delta":%b,"logprobs":%b,"finish_reason":%b' % (
            index, encode(delta), encode(logprobs), encode(finish_reason),
        )  # fmt: skip
        self._stream.push(self._head + rest + self._tail)


def _call_delta(piece: CallPiece, legacy: bool) -> Json:
    """A call's name and id come once."""
    if legacy:
        return {"function_call": {"name": piece.name, "arguments": ""} if piece.id else {"arguments": piece.arguments}}
    if piece.id:
        return {"tool_calls": [{"index": piece.index, **call_of(piece.id, piece.name, piece.arguments)}]}
    return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.arguments}}]}


def error_event(error: errors.ApiError) -> bytes:
    """The last event of a stream that broke off."""
    return b"event: error\ndata: %b\n\n" % error.body()
