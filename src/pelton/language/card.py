"""`language.json`: what a server must know of a language model besides its weights. Importers write it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from pelton.errors import PackageInvalid

CARD: Final = "language.json"
TOKENIZER: Final = "tokenizer.json"
CARD_LIMIT: Final = 8 * 1024**2

ToolStyle = Literal["hermes", "tags", "llama3", "mistral", "json"]


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The contents of `language.json`. Tokens are ids; -1 where the model has no such token.

    `chat_template` is Jinja, as Hugging Face defines it; "" means a base model, which chats not. `tool_template` is the
    one for requests with tools, where the model has two. `defaults` are the sampling parameters that its makers advise.
    """

    vocab_size: int  # rows of the output; ids beyond the tokenizer's are padding
    context: int  # tokens of prompt and output together that it was trained for
    name: str = ""
    architecture: str = ""
    parameters: int = 0
    quantization: str = ""  # of most weights: "Q4_1", "F16", ...; "" unknown
    bos: int = -1
    eos: int = -1
    pad: int = -1
    stop_tokens: tuple[int, ...] = ()  # each of them ends an answer
    add_bos: bool = False  # a prompt that is plain text starts with `bos`
    chat_template: str = ""
    tool_template: str = ""
    tool_style: ToolStyle = "hermes"  # how it writes a call of a tool
    tools_in_template: bool = False  # the template shows the tools itself; otherwise Pelton describes them
    defaults: dict[str, float] = {}

    def __post_init__(self) -> None:
        if self.vocab_size < 1 or self.context < 1:
            raise ValueError(f"vocab_size ({self.vocab_size}) and context ({self.context}) must be positive")
        for token in (self.bos, self.eos, self.pad, *self.stop_tokens):
            if not -1 <= token < self.vocab_size:
                raise ValueError(f"token {token} is not one of the {self.vocab_size} of the vocabulary")


def read(folder: Path) -> Card:
    """The card of a package's folder. Raises PackageInvalid with the file, the field and the mend."""
    path = folder / CARD
    try:
        if path.stat().st_size > CARD_LIMIT:
            raise PackageInvalid(f"{path} is larger than {CARD_LIMIT} bytes")
        return msgspec.json.decode(path.read_bytes(), type=Card)
    except OSError as error:
        raise PackageInvalid(
            f"{folder} holds no readable {CARD} ({error.strerror}): add the model again, `pelton add` writes it"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackageInvalid(f"{path}: {error}") from None


def write(card: Card, folder: Path) -> None:
    """Writes `language.json`, readable for people."""
    (folder / CARD).write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2))
