"""POST /v1/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.responses import Response

from pelton.errors import InvalidInput, PeltonError
from pelton.language import Language
from pelton.runtimes.language import Facts
from pelton.server.openai import asks, plan, receipts
from pelton.server.openai.asks import MANY, CompletionAsk, TokenId
from pelton.server.openai.caller import Caller
from pelton.server.openai.chat import check_stream_options, error_event
from pelton.server.openai.constraints import grammar_of
from pelton.server.openai.decoding import ask as as_ask
from pelton.server.openai.endpoint import PROTOCOL, Target, find, in_turn, language_of
from pelton.server.openai.errors import invalid, unsupported
from pelton.server.openai.guided import guided
from pelton.server.openai.output_form import NO_TOOLS, TEXT
from pelton.server.openai.plan import Plan, Prompt
from pelton.server.openai.run import Choice, Logged, Run
from pelton.server.openai.stream import DONE, HEAD, Application, EventStream, Whole, encode
from pelton.server.openai.token_logprobs import CompletionLogprobs, joined
from pelton.server.site import Site

Json = dict[str, Any]


@dataclass(slots=True)
class Completion:
    """A checked request. `texts`: what an echo says, one per prompt."""

    ask: CompletionAsk
    caller: Caller
    target: Target
    language: Language
    facts: Facts
    ignored: list[str]
    texts: list[str] = field(default_factory=list)
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(14)}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def runs(self) -> int:
        """Generations for each prompt, of which the `n` likeliest are told."""
        return self.ask.best_of or self.ask.n

    @property
    def only_echo(self) -> bool:
        """Nothing is to be said beyond the prompt; the engine makes one token all the same, which is dropped."""
        return self.ask.echo and self.ask.max_tokens == 0

    def finish_reason(self, choice: Choice) -> str:
        return "length" if self.only_echo else choice.finish_reason


class CompletionRoute:
    """The endpoint."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def __call__(self, raw: Json, caller: Caller) -> Application:
        """Raises ApiError, PeltonError."""
        ask, ignored = as_ask(raw, CompletionAsk, asks.COMPLETION_REFUSED, asks.COMPLETION_SAID)
        _check(ask, ignored)
        target = await find(self._site, ask.model, caller.key)
        language, facts = language_of(target.served)
        completion = Completion(ask, caller, target, language, facts, ignored)
        made = await _planned(completion)
        return _answering(self._site, completion, made)


def _check(ask: CompletionAsk, ignored: list[str]) -> None:
    if ask.suffix:
        raise unsupported("Unsupported parameter: 'suffix'. Text is continued here, not filled in.", "suffix")
    if ask.best_of is not None and ask.best_of < ask.n:
        raise invalid("Invalid value for 'best_of': it must not be less than 'n'.", "best_of")
    if ask.best_of is not None and ask.best_of > ask.n and ask.stream:
        raise invalid(
            "Invalid value for 'best_of': which is the best is known at the end; it cannot be streamed.", "best_of"
        )
    if ask.max_tokens == 0 and not ask.echo:
        raise invalid("Invalid value for 'max_tokens': 0 needs 'echo' to be true.", "max_tokens")
    check_stream_options(ask, ignored)


async def _planned(completion: Completion) -> Plan:
    ask, facts, language = completion.ask, completion.facts, completion.language
    inputs = prompts_of(ask.prompt, "prompt")
    plan.check_runs(len(inputs) * completion.runs, "prompt")
    sampling = plan.sampling(ask, facts, language.card.vocab_size, language.card.defaults)
    logprobs = 0 if ask.logprobs is None and completion.runs > ask.n else ask.logprobs
    sampling = plan.with_logprobs(sampling, logprobs, facts, "logprobs")
    told = ask.echo and ask.logprobs is not None
    if told and not facts.prompt_logprobs:
        raise plan.cannot("echo", facts)
    prompts = tuple([await tokens_of(language, one, plan.room(facts), "prompt") for one in inputs])
    plan.check_length(prompts, ask.max_tokens, plan.room(facts), "prompt")
    if ask.echo:
        completion.texts = [
            one if isinstance(one, str) else language.tokenizer.decode(tokens, special=True)
            for one, tokens in zip(inputs, prompts, strict=True)
        ]
    form = guided(ask, TEXT)
    spec = await grammar_of(form, NO_TOOLS, language)
    return Plan(
        protocol=PROTOCOL,
        prompts=prompts,
        context=plan.room(facts),
        sampling=sampling,
        stop_tokens=plan.stop_tokens(language, ask),
        max_tokens=ask.max_tokens,
        n=completion.runs,
        stops=plan.stops(ask),
        include_stop=ask.include_stop_str_in_output,
        grammar=plan.grammar(spec, facts, form.at),
        logprobs=logprobs,
        prompt_logprobs=told,
        log_stop_token=True,
        begins=False,
        route=completion.target.route,
        key=completion.target.key,
    )


def prompts_of(given: str | list[Any], param: str) -> list[str | Prompt]:
    """A text, tokens, or a list of texts or of tokens. Raises ApiError."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise invalid(f"Invalid value for '{param}': the array is empty.", param)
    if not isinstance(given[0], (str, list)):
        return [_tokens(given, param)]
    if len(given) > MANY:
        raise invalid(f"Invalid value for '{param}': at most {MANY} entries are taken.", param)
    kind = type(given[0])
    made: list[str | Prompt] = []
    for index, one in enumerate(given):
        if type(one) is not kind:
            raise invalid(
                f"Invalid type for '{param}[{index}]': all entries must be alike.", f"{param}[{index}]", "invalid_type"
            )
        made.append(one if isinstance(one, str) else _tokens(one, f"{param}[{index}]"))
    return made


def _tokens(given: Any, param: str) -> Prompt:
    try:
        return tuple(msgspec.convert(given, list[TokenId], strict=True))
    except msgspec.ValidationError:
        raise invalid(
            f"Invalid type for '{param}': expected a string, or an array of strings or tokens.", param, "invalid_type"
        ) from None


async def tokens_of(language: Language, given: str | Prompt, context: int, param: str) -> Prompt:
    """A prompt as tokens. Raises ApiError."""
    if not isinstance(given, str):
        return plan.check_tokens(given, language.card.vocab_size, param)
    size = len(given.encode("utf-8", "replace"))
    plan.check_text(size, context, param)
    try:
        found: Prompt = await in_turn(size, lambda: language.encode_prompt(given))
    except InvalidInput as error:
        raise invalid(str(error), param) from None
    return found


def _answering(site: Site, completion: Completion, made: Plan) -> Application:
    served = completion.target.served
    known = receipts.headers(served, completion.caller, completion.ignored)
    if completion.ask.stream:
        stream = EventStream({**HEAD, **known})
        events = CompletionEvents(completion, made, stream)
        events.run = stream.work = Run(site.engine, served, completion.language, made, completion.caller, events)
        return stream
    whole = Whole(lambda: _whole(completion, run, whole), known)
    run = whole.work = Run(site.engine, served, completion.language, made, completion.caller, whole)
    return whole


def _whole(completion: Completion, run: Run, whole: Whole) -> Response:
    body: Json = {
        "id": completion.id,
        "object": "text_completion",
        "created": completion.created,
        "model": completion.ask.model,
        "choices": [
            {"index": index, **_choice(completion, choice, whole)}
            for index, choice in enumerate(likeliest(run.choices, whole.logged, completion.runs, completion.ask.n))
        ],
        "usage": _usage(completion, run),
        "system_fingerprint": receipts.fingerprint(run.served),
    }
    if completion.caller.receipt:
        body["receipt"] = receipts.receipt(run)
    return Response(encode(body), 200, receipts.headers_of(run, completion.ignored), "application/json")


def _usage(completion: Completion, run: Run) -> Json:
    usage = receipts.usage(run)
    if completion.only_echo:
        usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
    return usage


def likeliest(choices: Sequence[Choice], logged: Mapping[int, Sequence[Logged]], runs: int, n: int) -> Sequence[Choice]:
    """Of each `runs` choices in a row the `n` whose tokens are likeliest on average."""
    if runs == n:
        return choices

    def likelihood(choice: Choice) -> float:
        tokens = logged.get(choice.index, ())
        return sum(one.logprobs.chosen for one in tokens) / max(1, len(tokens))

    groups = (choices[first : first + runs] for first in range(0, len(choices), runs))
    return [choice for group in groups for choice in sorted(group, key=likelihood, reverse=True)[:n]]


def _choice(completion: Completion, choice: Choice, whole: Whole) -> Json:
    ask = completion.ask
    text = "" if completion.only_echo else whole.text(choice)
    logprobs = None
    if ask.logprobs is not None:
        made = CompletionLogprobs(completion.language.tokenizer, ask.logprobs)
        parts = []
        if ask.echo and choice.prompt_logprobs is not None:
            parts.append(made.prompt(choice.generation.prompt, choice.prompt_logprobs))
        if not completion.only_echo:
            parts.append(made.more(whole.logged.get(choice.index, ())))
        logprobs = joined(parts)
    if ask.echo:
        text = completion.texts[choice.index // completion.runs] + text
    return {
        "text": text,
        "logprobs": logprobs,
        "finish_reason": completion.finish_reason(choice),
    }


class CompletionEvents:
    """A streamed answer."""

    def __init__(self, completion: Completion, made: Plan, stream: EventStream) -> None:
        self.run: Run | None = None
        self._completion = completion
        self._stream = stream
        ask = completion.ask
        self._logprobs: dict[int, CompletionLogprobs] = {}
        self._echoed: set[int] = set()
        shared: Json = {
            "id": completion.id,
            "object": "text_completion",
            "created": completion.created,
            "model": ask.model,
            "system_fingerprint": receipts.fingerprint(completion.target.served),
        }
        self._shared = shared
        self._usage = ask.stream_options is not None and ask.stream_options.include_usage
        self._head = b"data: " + encode(shared)[:-1] + b',"choices":[{"index":'
        self._tail = b'}],"usage":null}\n\n' if self._usage else b"}]}\n\n"

    # ---- as a listener

    def piece(self, choice: Choice, text: str, logged: Sequence[Logged]) -> None:
        self._echo(choice)
        if self._completion.only_echo:
            return
        logprobs = self._of(choice).more(logged) if self._completion.ask.logprobs is not None else None
        self._chunk(choice.index, text, logprobs, None)

    def ended(self, choice: Choice) -> None:
        self._echo(choice)
        self._chunk(choice.index, "", None, self._completion.finish_reason(choice))

    def complete(self) -> None:
        assert self.run is not None
        wanted = self._completion.caller.receipt
        if self._usage or wanted:
            usage = _usage(self._completion, self.run) if self._usage else None
            last: Json = {**self._shared, "choices": [], "usage": usage}
            if wanted:
                last["receipt"] = receipts.receipt(self.run)
            self._stream.push(b"data: %b\n\n" % encode(last))
        self._stream.push(DONE)
        self._stream.close()

    def failed(self, error: PeltonError) -> None:
        self._stream.fail(error, error_event)

    # ---- chunks

    def _of(self, choice: Choice) -> CompletionLogprobs:
        known = self._logprobs.get(choice.index)
        if known is None:
            made = CompletionLogprobs(self._completion.language.tokenizer, self._completion.ask.logprobs or 0)
            known = self._logprobs[choice.index] = made
        return known

    def _echo(self, choice: Choice) -> None:
        """The prompt, once."""
        ask = self._completion.ask
        if not ask.echo or choice.index in self._echoed:
            return
        self._echoed.add(choice.index)
        logprobs = None
        if choice.prompt_logprobs is not None:
            logprobs = self._of(choice).prompt(choice.generation.prompt, choice.prompt_logprobs)
        self._chunk(choice.index, self._completion.texts[choice.index // ask.n], logprobs, None)

    def _chunk(self, index: int, text: str, logprobs: Json | None, finish_reason: str | None) -> None:
        rest = b'%d,"text":%b,"logprobs":%b,"finish_reason":%b' % (
            index, encode(text), encode(logprobs), encode(finish_reason),
        )  # fmt: skip
        self._stream.push(self._head + rest + self._tail)
