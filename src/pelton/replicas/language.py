"""A loaded language model: its engine, what text is to it, and the way of a plain text through both.

Who sends rows of the input `prompt`, as for any other model, gets for each the text of one generation: greedy, of
`DEFAULT_TOKENS` tokens at most, and through the model's chat template where it has one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final, NamedTuple

import numpy as np

from pelton.errors import InvalidInput, ModelFailed, PeltonError, TooLarge
from pelton.language import Language
from pelton.language import load as load_language
from pelton.packages import Package
from pelton.replicas.replica import Replica
from pelton.runtimes import language as runtime
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.language import Facts, LanguageEngine, Order
from pelton.runtimes.step_engine import LmRequest, StepReport
from pelton.scheduling import LatencyModel
from pelton.types import Array, Signature

DEFAULT_TOKENS: Final = 256  # of an answer to a plain text
LONGEST_TOKEN: Final = 64  # bytes: a text with more than this for every token of the context cannot fit
PROBE: Final = b"Hello"
PROBE_TOKENS: Final = 2

Answer = Callable[[Sequence[bytes], int], list[bytes]]  # texts, tokens at most -> texts; may take long


class Asked(NamedTuple):
    """A text as the engine is asked for its continuation."""

    prompt: tuple[int, ...]
    max_tokens: int


class LanguageReplica(Replica):
    """One loaded version. `answer` is how `ask` and the golden check get their texts: at first alone with the engine,
    in a server through its lane."""

    def __init__(
        self, package: Package, engine: LanguageEngine, language: Language, clock: Callable[[], float]
    ) -> None:
        texts = _Texts(package.manifest.signature)
        super().__init__(package, texts, clock)
        self.engine = engine
        self.language = language
        self._texts = texts
        self._alone = Alone(engine, self)
        texts.answer = self._alone.answer

    @property
    def facts(self) -> Facts:
        return self.engine.facts

    def through(self, answer: Answer) -> None:
        """From now on texts are answered by `answer`."""
        self._texts.answer = answer

    def probe(self) -> None:
        """A first generation: what is only set up when it is first used, is. Raises what made it fail."""
        self._texts.answer([PROBE], PROBE_TOKENS)

    def profile(self) -> LatencyModel:
        """Of rows, as other models have it: nothing is measured here, the engine did that."""
        return LatencyModel([(1, max(self.facts.speed.decode.get(1, 0.0), 1e-3))])

    def asked(self, text: bytes, most: int = DEFAULT_TOKENS) -> Asked:
        """Raises InvalidInput for a text that this model cannot continue."""
        context = self.facts.context
        if len(text) > context * LONGEST_TOKEN:
            raise TooLarge(f"a prompt of {len(text)} bytes does not fit into {context} tokens of context")
        try:
            words = text.decode()
        except UnicodeDecodeError as error:
            raise InvalidInput(f"prompt: not UTF-8: {error.reason} at byte {error.start}") from None
        language = self.language
        if language.template is not None:
            prompt = language.encode_chat([{"role": "user", "content": words}])
        else:
            prompt = language.encode_prompt(words)
        if not prompt:
            raise InvalidInput("the prompt is empty: send at least one token")
        if len(prompt) >= context:
            raise TooLarge(f"the prompt has {len(prompt)} tokens, this model's context is {context}")
        return Asked(prompt, min(most, context - len(prompt)))

    def text_of(self, tokens: Sequence[int]) -> bytes:
        """The text of a whole answer."""
        stream = self.language.text_stream(start=True)
        return (stream.push(tokens) + stream.finish()).encode()

    def close(self) -> None:
        """Ends the engine's process."""
        self._alone.close()
        self.engine.close()


class _Texts:
    """`LoadedModel`: rows of texts."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.answer: Answer

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        answers = self.answer([bytes(text) for text in inputs[0].ravel()], DEFAULT_TOKENS)
        result = np.empty(len(answers), object)
        result[:] = answers
        return [result]

    def close(self) -> None:
        """The replica closes the engine."""


class Alone:
    """Asks an engine that has no lane: on a loop and a thread of its own, made at the first question."""

    def __init__(self, engine: LanguageEngine, replica: LanguageReplica) -> None:
        self._engine = engine
        self._replica = replica
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._waiting: dict[str, tuple[list[int], Future[list[int]]]] = {}  # the loop's
        self._number = 0

    def answer(self, texts: Sequence[bytes], most: int) -> list[bytes]:
        """Blocks. Raises what the engine says."""
        loop = self._started()
        futures: list[Future[list[int]]] = []
        for asked in [self._replica.asked(text, most) for text in texts]:
            futures.append(Future())
            loop.call_soon_threadsafe(self._add, asked, futures[-1])
        return [self._replica.text_of(future.result()) for future in futures]

    def close(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def reported(self, report: StepReport) -> None:
        for output in report.outputs:
            waiting = self._waiting.get(output.request_id)
            if waiting is None:
                continue
            tokens, future = waiting
            tokens.extend(output.tokens)
            if output.finish_reason is None:
                continue
            del self._waiting[output.request_id]
            if output.finish_reason in ("stop", "length"):
                future.set_result(tokens)
            else:
                future.set_exception(ModelFailed(f"model {self._replica.name!r} failed: {output.error}"))

    def lost(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for _, future in waiting.values():
            future.set_exception(ModelFailed(f"model {self._replica.name!r}: the engine ended ({reason})"))

    def back(self, facts: Facts) -> None:
        """The next question finds it."""

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            loop = self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._run, args=(loop,), name="pelton-ask", daemon=True)
            self._thread.start()
            attached: Future[None] = Future()
            loop.call_soon_threadsafe(self._attach, loop, attached)
            attached.result()
        return self._loop

    def _attach(self, loop: asyncio.AbstractEventLoop, attached: Future[None]) -> None:
        self._engine.attach(loop, self)
        attached.set_result(None)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()
        loop.close()

    def _add(self, asked: Asked, future: Future[list[int]]) -> None:
        self._number += 1
        name = f"alone-{self._number}"
        self._waiting[name] = ([], future)
        stops = self._replica.language.stop_tokens
        self._engine.add(Order(LmRequest(name, asked.prompt, asked.max_tokens, stop_tokens=stops)))


def load(package: Package, options: RuntimeOptions, clock: Callable[[], float]) -> LanguageReplica:
    """Starts the engine's process and reads the text side. Slow. Raises PackageInvalid, ExtraMissing, ModelFailed."""
    language = load_language(package)
    engine = runtime.load(package, options)
    try:
        return LanguageReplica(package, engine, language, clock)
    except PeltonError:
        engine.close()
        raise
