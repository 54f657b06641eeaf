"""A language model's text side, loaded from its package: the card, the tokenizer, the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pelton.errors import PackageInvalid, Unsupported
from pelton.language import card as cards
from pelton.language.card import Card
from pelton.language.reasoning import Marks, marks_of
from pelton.language.stream import TextStream
from pelton.language.tokenizer import Tokenizer
from pelton.packages import Package

if TYPE_CHECKING:
    from pelton.language.template import Template


@dataclass(frozen=True, slots=True)
class Language:
    """What a protocol needs to turn text into tokens and back. Safe from several threads.

    `template` is None for a base model, which completes text but does not chat."""

    card: Card
    tokenizer: Tokenizer
    template: Template | None
    marks: Marks | None = None  # around what a chat's answer is thought out with

    def encode_prompt(self, text: str, special: bool = False) -> tuple[int, ...]:
        """A text to be continued, with the token that begins a text where the model wants one.

        `special`: names of control tokens in the text become those tokens. Raises InvalidInput."""
        ids = self.tokenizer.encode(text, special)
        if self.card.add_bos and self.card.bos >= 0 and ids[:1] != [self.card.bos]:
            ids.insert(0, self.card.bos)
        return tuple(ids)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> tuple[int, ...]:
        """The tokens of a conversation (roles and contents as in the OpenAI API). `variables` go to the template.

        Raises InvalidInput (what the template refuses), Unsupported (a base model, or pictures)."""
        if self.template is None:
            raise Unsupported(
                f"{self.card.name or 'this model'} is a base model without a chat template: use completions instead"
            )
        return self.template.encode_chat(messages, tools, add_generation_prompt, **variables)

    def text_stream(self, stops: Sequence[str] = (), include_stop: bool = False, **how: Any) -> TextStream:
        """The text of one generation, as its tokens come."""
        return TextStream(self.tokenizer, stops, include_stop, **how)

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Each of them ends an answer."""
        return frozenset(self.card.stop_tokens) | ({self.card.eos} if self.card.eos >= 0 else frozenset())


def load(package: Package) -> Language:
    """Reads `language.json` and `tokenizer.json`. Raises PackageInvalid, ExtraMissing (tokenizers, jinja2)."""
    card = cards.read(package.folder)
    tokenizer = Tokenizer.read(package.path(cards.TOKENIZER))
    if tokenizer.vocab_size > card.vocab_size:
        raise PackageInvalid(
            f"{package.name}: {cards.TOKENIZER} has {tokenizer.vocab_size} tokens, but {cards.CARD} says that the model"
            f" has {card.vocab_size}: they do not belong together"
        )
    if not card.chat_template:
        return Language(card, tokenizer, None)
    from pelton.language.template import Template

    return Language(card, tokenizer, Template(card, tokenizer), marks_of(card.chat_template, tokenizer))
