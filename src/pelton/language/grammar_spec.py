"""What an output must look like, as data: protocols write it, `pelton.language.grammar` compiles it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What the output must look like, as data: it crosses to the engine's process and is compiled there.

    `text` is a JSON schema, a regular expression (of the whole output), a Lark grammar, or, for "json_object", nothing.
    """

    kind: Literal["json_object", "json_schema", "regex", "lark"]
    text: str = ""
