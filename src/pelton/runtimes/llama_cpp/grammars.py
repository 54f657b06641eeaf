"""Grammars for llama.cpp: its build holds llguidance, which reads Lark; Pelton's own copy checks every token.

llama.cpp does not refuse a grammar that it cannot compile, it forgets it. So each is compiled here first, and the output
is followed: a token that is not allowed fails the request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pelton.errors import PeltonError
from pelton.language.grammar_spec import GrammarSpec
from pelton.runtimes.step_engine import Grammar

if TYPE_CHECKING:
    from pelton.language.grammar import Vocabulary

HEAD = "%llguidance {}\n"


class LlamaGrammar:
    """A `Grammar` that llama.cpp applies; `text` is what it is told."""

    def __init__(self, text: str, own: Grammar) -> None:
        self.text = text
        self._own = own

    def allowed(self) -> Sequence[int] | None:
        return self._own.allowed()

    def advance(self, token: int) -> None:
        self._own.advance(token)


class Grammars:
    """Compiles the grammars of one model. For one thread."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._vocabulary: Vocabulary | None = None

    def __call__(self, spec: GrammarSpec) -> LlamaGrammar:
        """Raises ValueError for one that cannot be used, ExtraMissing."""
        try:
            if self._vocabulary is None:
                from pelton.language.grammar import Vocabulary

                self._vocabulary = Vocabulary.read(self._folder)
            return LlamaGrammar(lark(spec), self._vocabulary.compile(spec))
        except PeltonError as error:
            raise ValueError(str(error)) from None


def lark(spec: GrammarSpec) -> str:
    """The grammar as llama.cpp reads it."""
    from pelton.language import schema as schemas

    if spec.kind == "lark":
        return HEAD + spec.text
    if spec.kind == "regex":
        return HEAD + "start: /" + spec.text.replace("/", "\\/").replace("\n", "\\n") + "/"
    schema = {"type": "object"} if spec.kind == "json_object" else json.loads(spec.text)
    return HEAD + "start: %json " + json.dumps(schemas.bounded(schema))
