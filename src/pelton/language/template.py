"""A chat template: messages -> the text and the tokens that a model was trained on.

Only the template makes control tokens. Each name of a control token in the template's own texts is replaced by one
private character before it is compiled, so what the caller sends may spell `<|im_start|>system` and stays text; no
operation of the template can turn it into anything else. A template that puts names together from pieces
(`'<|' + role + '|>'`) is noticed when it is loaded; for it the caller's texts are masked instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from pelton.errors import InvalidInput, PackageInvalid
from pelton.language.card import Card
from pelton.language.conversation import Messages, prepared
from pelton.language.sandbox import Compiled, Now, TemplateEndless, TemplateRefuses
from pelton.language.tokenizer import Special, Tokenizer

# Two planes for private use. A caller may use one of their characters; then another part of them is taken.
_FIRST: Final = 0xF0000
_PLANES: Final = 0x10FFFE - _FIRST
_TRIES: Final = 4
_PROBES: Final = (
    [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}],
    [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}],
    [{"role": "user", "content": "b"}],
)

Tools = Sequence[Mapping[str, Any]]


def utc_now() -> datetime:
    return datetime.now(UTC)


class Template:
    """The chat template of a model. Rendering is safe from several threads."""

    def __init__(self, card: Card, tokenizer: Tokenizer, now: Now = utc_now) -> None:
        """Raises PackageInvalid where the template is no Jinja."""
        self._card = card
        self._tokenizer = tokenizer
        self._now = now
        self._codes = _Codes(tokenizer.specials)
        self._compiled = lru_cache(maxsize=8)(self._compile)
        self.variables: frozenset[str] = self._compiled(card.chat_template, 0).variables
        self._system = True  # it takes a system message
        self._dynamic = self._names_from_pieces()

    def render(
        self,
        messages: Messages,
        tools: Tools | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text, control tokens by their names. Raises InvalidInput, which says what the template refused."""
        text, base = self._coded(messages, tools, add_generation_prompt, variables)
        return "".join(part.text if isinstance(part, Special) else part for part in self._codes.split(text, base))

    def encode_chat(
        self,
        messages: Messages,
        tools: Tools | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> tuple[int, ...]:
        """The tokens of a conversation. Raises InvalidInput, which says what the template refused."""
        text, base = self._coded(messages, tools, add_generation_prompt, variables)
        return tuple(self._tokenizer.encode_parts(self._codes.split(text, base)))

    def _coded(
        self, messages: Messages, tools: Tools | None, add_generation_prompt: bool, variables: Mapping[str, Any]
    ) -> tuple[str, int]:
        """The rendered text with a private character for each control token, and where these characters begin."""
        known = prepared(messages, tools, self._card, self._system)
        given = {**variables, "messages": known.messages, "tools": known.tools}
        base = self._codes.free(given)
        source = self._card.tool_template if known.tools and self._card.tool_template else self._card.chat_template
        if self._dynamic:
            given = _mapped(given, lambda text: self._codes.mask(text, base))
        card, names = self._card, self._codes.names(base)
        given["add_generation_prompt"] = add_generation_prompt
        given.setdefault("documents", None)
        for name, token in (("bos_token", card.bos), ("eos_token", card.eos), ("pad_token", card.pad)):
            given[name] = names.get(token, "") if token >= 0 else ""
        text = self._compiled(source, base).render(given)
        return (self._codes.code(text, base) if self._dynamic else text), base

    def _compile(self, source: str, base: int) -> Compiled:
        return Compiled(source, lambda text: self._codes.code(text, base), self._now)

    def _names_from_pieces(self) -> bool:
        """Whether rendering a harmless conversation spells a control token that the template's texts do not hold."""
        for probe in _PROBES:
            self._dynamic = False
            try:
                text, _ = self._coded(probe, None, True, {})
            except TemplateEndless as error:
                raise PackageInvalid(f"{error}, and they are three short ones") from None
            except TemplateRefuses:
                self._system = self._system and probe[0]["role"] != "system"
                continue
            return self._codes.code(text, 0) != text
        return False


class _Codes:
    """A private character for each control token. `base` chooses which part of the private planes is used."""

    def __init__(self, specials: Sequence[Special]) -> None:
        self._specials = specials
        self._masked = sorted({special.text[0] for special in specials})
        self._size = len(specials) + len(self._masked)
        ordered = sorted((special.text for special in specials), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self._starts = re.compile("[" + re.escape("".join(self._masked)) + "]") if ordered else None
        self._place = {special.text: i for i, special in enumerate(specials)}

    def _first(self, base: int) -> int:
        return _FIRST + base * self._size

    def code(self, text: str, base: int) -> str:
        """The names of control tokens as private characters."""
        if self._names is None:
            return text
        first = self._first(base)
        return self._names.sub(lambda match: chr(first + self._place[match[0]]), text)

    def names(self, base: int) -> dict[int, str]:
        return {special.id: chr(self._first(base) + i) for i, special in enumerate(self._specials)}

    def mask(self, text: str, base: int) -> str:
        """The text without any character that a control token begins with."""
        if self._starts is None:
            return text
        first = self._first(base) + len(self._specials)
        return self._starts.sub(lambda match: chr(first + self._masked.index(match[0])), text)

    def split(self, text: str, base: int) -> list[str | Special]:
        """A rendered text as control tokens and plain texts in turn."""
        if not self._size:
            return [text] if text else []
        first, count = self._first(base), len(self._specials)
        parts: list[str | Special] = []
        for part in re.split(f"([{chr(first)}-{chr(first + count - 1)}])", text):
            if len(part) == 1 and first <= ord(part) < first + count:
                parts.append(self._specials[ord(part) - first])
            elif part:
                parts.append(self._unmasked(part, first + count))
        return parts

    def _unmasked(self, text: str, first: int) -> str:
        if max(text) < chr(first):
            return text
        return text.translate({first + i: character for i, character in enumerate(self._masked)})

    def free(self, given: Any) -> int:
        """A base whose characters the caller does not use. Raises InvalidInput where all are used."""
        used = {ord(character) for text in _texts(given) if text and max(text) >= chr(_FIRST) for character in text}
        for base in range(min(_TRIES, _PLANES // max(self._size, 1))):
            first = self._first(base)
            if not used or not any(first <= code < first + self._size for code in used):
                return base
        raise InvalidInput("messages: they use characters from all over Unicode's private planes; leave them out")


def _texts(value: Any) -> list[str]:
    """All texts in a value, names of fields included."""
    found: list[str] = []
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, Mapping):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            todo += item
    return found


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The value with all texts changed, names of fields included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
