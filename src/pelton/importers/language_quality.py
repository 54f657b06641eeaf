"""How much a derived language model differs from its parent: both read the same texts and tell, token by token, what they
expect next. Measured through an engine that tells the probabilities of a prompt's tokens; nothing is claimed otherwise."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from contextlib import closing

import msgspec

from pelton import language
from pelton.errors import ExtraMissing, ModelFailed, Unsupported
from pelton.packages import Package
from pelton.runtimes import language as runtime
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.language import Facts, LanguageEngine, Order
from pelton.runtimes.step_engine import LmRequest, Sampling, StepReport, TokenLogprobs

log = logging.getLogger(__name__)

ENGINE = "openvino"  # it tells the probabilities of a prompt's tokens
TOP = 20
_MOST = 512  # tokens of a text
_AT_ONCE = 4
_SECONDS = 1800.0

Read = list[TokenLogprobs]  # one for each token of a text but the first


class Quality(msgspec.Struct, frozen=True):
    """Means over all tokens of the texts. `kl`: nats, of the parent's distribution from the derived one, over the 20 tokens
    that the parent finds most likely and all others together. `top1_agreement`: share of tokens where both expect the same
    one most. `perplexity` of the derived model and of its parent, on the texts themselves."""

    kl: float
    top1_agreement: float
    perplexity: float
    parent_perplexity: float
    tokens: int
    engine: str
    reference: str = ""  # the format in which the parent was read, where not its own

    def metrics(self) -> dict[str, float]:
        """For the registry."""
        told = msgspec.structs.asdict(self)
        return {name: round(float(value), 6) for name, value in told.items() if isinstance(value, int | float)}


def measure(parent: Package, derived: Package, texts: Sequence[str], cache: str = "") -> Quality:
    """Reads the texts with both. Slow. Raises Unsupported or ExtraMissing with the reason why it cannot be measured."""
    tokenizer = language.load(parent)
    prompts = [ids for text in texts if len(ids := tokenizer.encode_prompt(text)[:_MOST]) > 1]
    one, engine = read(parent, prompts, cache)
    other, _ = read(derived, prompts, "")
    return compared([x for text in one for x in text], [x for text in other for x in text], engine)


def compared(parent: Read, derived: Read, engine: str) -> Quality:
    """Pure."""
    count = len(parent)
    if not count or count != len(derived):
        raise ModelFailed(f"the parent told of {count} tokens, the derived model of {len(derived)}")
    agreed = sum(a.top[0][0] == b.top[0][0] for a, b in zip(parent, derived, strict=True))
    return Quality(
        kl=sum(divergence(a, b) for a, b in zip(parent, derived, strict=True)) / count,
        top1_agreement=agreed / count,
        perplexity=math.exp(-sum(x.chosen for x in derived) / count),
        parent_perplexity=math.exp(-sum(x.chosen for x in parent) / count),
        tokens=count,
        engine=engine,
    )


def divergence(parent: TokenLogprobs, derived: TokenLogprobs) -> float:
    """Kullback and Leibler's, in nats, over the parent's most likely tokens and all others together.

    A token that is not among the derived model's most likely ones is taken to be as likely as the last of these, or as what
    is left for all others allows."""
    known = dict(derived.top)
    left = max(1.0 - sum(map(math.exp, known.values())), 1e-9)
    last = min(math.exp(min(known.values())), left) if known else left
    total = rest = other = 0.0
    for token, logprob in parent.top:
        p = math.exp(logprob)
        q = math.exp(known[token]) if token in known else last
        total += p * (logprob - math.log(max(q, 1e-12)))
        rest += p
        other += q
    rest, other = max(1.0 - rest, 0.0), max(1.0 - other, 1e-9)
    if rest > 1e-9:
        total += rest * math.log(rest / other)
    return max(total, 0.0)


def read(package: Package, prompts: Sequence[tuple[int, ...]], cache: str) -> tuple[list[Read], str]:
    """What a model expects at every token of the prompts, and the engine that told it."""
    if package.manifest.options.get("engine") != "echo":  # of tests
        options = {"engine": ENGINE, "context": _MOST + 8}
        package = msgspec.structs.replace(package, manifest=msgspec.structs.replace(package.manifest, options=options))
    with closing(runtime.load(package, RuntimeOptions(cache=cache))) as engine:
        if not engine.facts.prompt_logprobs or engine.facts.top_logprobs < TOP:
            raise Unsupported(f"the engine {engine.facts.engine} does not tell the probabilities of a prompt's tokens")
        return asyncio.run(_Reader(engine, prompts).run()), engine.facts.engine


class _Reader:
    """Asks an engine for the probabilities of prompts."""

    def __init__(self, engine: LanguageEngine, prompts: Sequence[tuple[int, ...]]) -> None:
        self._engine = engine
        self._prompts = prompts
        self._found: dict[int, Read] = {}
        self._next = 0
        self._told = time.monotonic()

    async def run(self) -> list[Read]:
        loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = loop.create_future()
        self._engine.attach(loop, self)
        for _ in range(_AT_ONCE):
            self._ask()
        await asyncio.wait_for(self._done, _SECONDS)
        return [self._found[i] for i in range(len(self._prompts))]

    def _ask(self) -> None:
        if self._next < len(self._prompts):
            request = LmRequest(
                str(self._next),
                self._prompts[self._next],
                max_tokens=1,
                sampling=Sampling(logprobs=TOP),
                salt=str(self._next),
                prompt_logprobs=True,
            )
            self._next += 1
            self._engine.add(Order(request))

    def reported(self, report: StepReport) -> None:
        for output in report.outputs:
            if output.prompt_logprobs is not None:
                self._found[int(output.request_id)] = [x for x in output.prompt_logprobs if x is not None]
            if output.finish_reason is None:
                continue
            if output.finish_reason == "failed" or int(output.request_id) not in self._found:
                return self._fail(output.error or "it told no probabilities")
            if time.monotonic() - self._told > 2.0:
                self._told = time.monotonic()
                log.info("measuring: %d of %d texts", len(self._found), len(self._prompts))
            self._ask()
        if len(self._found) == len(self._prompts) and not self._done.done():
            self._done.set_result(None)
        return None

    def lost(self, reason: str) -> None:
        self._fail(f"the engine ended: {reason}")

    def back(self, facts: Facts) -> None:
        """It is too late."""

    def _fail(self, why: str) -> None:
        if not self._done.done():
            self._done.set_exception(ModelFailed(f"the model cannot be measured: {why}"))


NOT_MEASURED = (ExtraMissing, Unsupported)
