"""Grammars: what may come next in an output. The only file that imports llguidance (extra "chat").

`check` runs where requests arrive and needs no vocabulary; `compile` runs in the engine's process.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from pelton.errors import ExtraMissing, InvalidInput, PackageInvalid, TooLarge
from pelton.language import card as cards
from pelton.language import schema as schemas
from pelton.language.grammar_spec import GrammarSpec

try:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    from llguidance.gbnf_to_lark import any_to_lark
except ImportError:  # pragma: no cover - the extra is part of the tests
    raise ExtraMissing("a grammar of the output", "chat") from None

_KEPT: Final = 64  # compiled grammars; callers tend to send the same one
_SEARCHED: Final = 2_000  # schemas inside of a schema, to find the one that is wrong
_ENDED: Final = array("i")


class Vocabulary:
    """The tokens of a model as grammars see them. One for all grammars of a model; for one thread."""

    def __init__(self, tokenizer: str, size: int, ends: Sequence[int]) -> None:
        """`tokenizer`: contents of tokenizer.json; `size`: rows of the model's output; `ends`: tokens that end it."""
        try:
            self._tokenizer = LLTokenizer(tokenizer, n_vocab=size, eos_token=list(ends))
        except Exception as error:  # noqa: BLE001 - the library's own exceptions, of no common kind
            raise PackageInvalid(f"{cards.TOKENIZER}: grammars cannot use it: {error}") from None
        self.size: Final = size
        self._first = lru_cache(maxsize=_KEPT)(self._compiled)

    @classmethod
    def read(cls, folder: Path) -> Vocabulary:
        """From a package's folder. Takes half a second for large vocabularies. Raises PackageInvalid."""
        card = cards.read(folder)
        ends = sorted({*card.stop_tokens, *([card.eos] if card.eos >= 0 else [])})
        if not ends:
            raise PackageInvalid(f"{folder / cards.CARD} names no token that ends an answer: add it as stop_tokens")
        try:
            text = (folder / cards.TOKENIZER).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise PackageInvalid(f"{folder / cards.TOKENIZER} cannot be read: {error}") from None
        return cls(text, card.vocab_size, ends)

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """The grammar at its beginning. Raises InvalidInput for one that cannot be compiled."""
        return CompiledGrammar(self._first(spec).deep_copy(), self.size)

    def _compiled(self, spec: GrammarSpec) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, _source(spec), log_level=0, limits=_limits())
        if matcher.is_error():
            raise InvalidInput(_told(spec, matcher.get_error()))
        return matcher


class CompiledGrammar:
    """The state of one output (a `Grammar` of `pelton.runtimes.step_engine`)."""

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher = matcher
        self._size = size
        self._allowed: Sequence[int] | None = None

    @property
    def complete(self) -> bool:
        """Whether the output may end here."""
        return bool(self._matcher.is_accepting())

    def allowed(self) -> Sequence[int]:
        """Token ids that may come next (`array` of 32-bit integers); the tokens that end the text are among them only
        where the output is complete. Empty: it is complete, and nothing can follow."""
        if self._allowed is None:
            self._allowed = self._next()
        return self._allowed

    def _next(self) -> Sequence[int]:
        if self._matcher.is_stopped() and not self._matcher.is_error():
            return _ENDED
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise InvalidInput(f"the grammar is too complex for this output: {_short(self._matcher.get_error())}")
        ids = np.flatnonzero(np.unpackbits(bits, bitorder="little")[: self._size])
        return array("i", ids.astype(np.int32).tobytes())

    def advance(self, token: int) -> None:
        """Takes the chosen token. Raises InvalidInput for one that was not allowed."""
        self._allowed = None
        if not self._matcher.consume_token(token):
            raise InvalidInput(f"the grammar does not allow token {token}: {_short(self._matcher.get_error())}")


def compile(spec: GrammarSpec, vocabulary: Vocabulary) -> CompiledGrammar:  # noqa: A001 - as `re.compile`
    """The grammar of one output, at its beginning. Raises InvalidInput."""
    return vocabulary.compile(spec)


def check(spec: GrammarSpec, where: str = "") -> None:
    """Raises InvalidInput with the place of what cannot be compiled (`where`: of the grammar in the request).

    A schema of 2,000 properties takes 70 ms: check long ones in a thread."""
    where = where or ("schema" if spec.kind == "json_schema" else spec.kind)
    if len(spec.text) > schemas.TEXT_LIMIT:
        raise TooLarge(f"{where}: {len(spec.text)} characters; at most {schemas.TEXT_LIMIT} are accepted")
    if spec.kind == "json_object":
        return
    if spec.kind == "json_schema":
        schemas.check(_decoded(spec), where)
    problem = _problem(_source(spec))
    if problem and spec.kind == "json_schema":
        where, problem = _place(_decoded(spec), where, problem)
    if problem:
        raise InvalidInput(f"{where}: {problem}")


def lark_of(text: str, where: str) -> str:
    """A grammar as Lark: that of llama.cpp (GBNF, `root ::= ...`) is translated. Raises InvalidInput."""
    if len(text) > schemas.TEXT_LIMIT:
        raise TooLarge(f"{where}: {len(text)} characters; at most {schemas.TEXT_LIMIT} are accepted")
    if "::=" not in text:
        return text
    try:
        return str(any_to_lark(text))
    except Exception as error:  # noqa: BLE001 - the library raises bare exceptions
        raise InvalidInput(f"{where}: this is no grammar: {_short(str(error))}") from None


def _place(schema: Any, where: str, problem: str) -> tuple[str, str]:
    """The innermost schema that is wrong, and what is wrong with it."""
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    for i, (path, part) in enumerate(schemas.parts(schema, where)):
        if i > _SEARCHED:
            break
        deeper = path.startswith(where) or ".$defs." in path
        if i and deeper and (inner := _problem(_json_source({**shared, **part}))):
            where, problem = path, inner
    return where, problem


def _problem(source: str) -> str:
    wrong, messages = LLMatcher.validate_grammar_with_warnings(source, limits=_limits())
    return _short(messages[0]) if wrong and messages else ""


def _decoded(spec: GrammarSpec) -> Any:
    try:
        schema = msgspec.json.decode(spec.text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput(f"the schema is no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise InvalidInput("the schema is no JSON object")
    return schema


def _source(spec: GrammarSpec) -> str:
    if spec.kind == "json_object":
        return _json_source({"type": "object"})
    if spec.kind == "json_schema":
        return _json_source(_decoded(spec))
    if spec.kind == "regex":
        return str(LLMatcher.grammar_from_regex(spec.text))
    return str(LLMatcher.grammar_from_lark(spec.text))


def _json_source(schema: dict[str, Any]) -> str:
    return str(LLMatcher.grammar_from_json_schema(schema, overrides=schemas.WHITE_SPACE))  # type: ignore[arg-type]


def _limits() -> LLParserLimits:
    return LLParserLimits(verbose_errors=False)


def _told(spec: GrammarSpec, error: str) -> str:
    return f"{spec.kind}: {_short(error)}"


def _short(error: str) -> str:
    """The library adds its whole state to some messages."""
    return error.partition("\n<")[0].strip()[:400]
