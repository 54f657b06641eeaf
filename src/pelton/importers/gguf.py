"""A GGUF file (llama.cpp's format) with a language model -> a package: the file, its vocabulary as tokenizer.json, its
metadata as language.json."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import msgspec

from pelton.importers import language_card, language_vocabulary
from pelton.importers.draft import Options
from pelton.importers.language_draft import TEMPLATE, finish, language_draft, manifest_of, take
from pelton.language import TOKENIZER, Tokenizer, gguf
from pelton.packages import Package
from pelton.registry import Registry

log = logging.getLogger(__name__)

FILE: Final = "model.gguf"


def add(source: str, registry: Registry, options: Options) -> Package:
    """Adds a GGUF file. Raises SourceInvalid (damaged), Unsupported (no language model, an unknown architecture or
    vocabulary), PackageInvalid, ModelFailed (it does not load)."""
    path = Path(source)
    return build(path, path.stem, path.name, registry, options)


def build(path: Path, name: str, told: str, registry: Registry, options: Options, license: str = "") -> Package:  # noqa: A002
    """The same for a file that was fetched: `name` for the model, `told` is where it came from."""
    file = gguf.read(path)
    card = language_card.card_of_gguf(file)
    vocabulary = language_vocabulary.tokenizer_of(file)
    Tokenizer(vocabulary, str(path))  # it is readable
    if not card.chat_template and TEMPLATE not in options.settings:
        log.warning(
            "%s has no chat template: it is a base model, which completes text but does not chat"
            " (--option chat_template=chatml, or a file, gives it one)",
            path.name,
        )
    with language_draft(registry) as folder:
        (folder / TOKENIZER).write_bytes(vocabulary)
        take(path, folder / FILE)
        manifest = manifest_of(name, FILE, told, license or file.get("general.license", str, ""))
        described = f"{card.name}, {card.architecture}, {_count(card.parameters)} parameters, {card.quantization}"
        manifest = msgspec.structs.replace(manifest, description=described)
        return finish(folder, manifest, card, registry, options)


def _count(number: int) -> str:
    """1,235,814,432 as 1.2 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
