"""What text is to a language model: its tokens, its chat template, its tool calls, and the grammar of its output.

A package of the runtime "language" brings `language.json` (the card) and `tokenizer.json`; nothing here reads weights
or knows an engine. Importing this is cheap: the libraries are loaded with the first model.
"""

from pelton.language.card import CARD, TOKENIZER, Card
from pelton.language.grammar_spec import GrammarSpec
from pelton.language.language import Language, load
from pelton.language.stream import TextStream
from pelton.language.tokenizer import Special, Tokenizer

__all__ = ["CARD", "TOKENIZER", "Card", "GrammarSpec", "Language", "Special", "TextStream", "Tokenizer", "load"]
