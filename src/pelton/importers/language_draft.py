"""A package of a language model on its way into the registry: the manifest, and the proof that it loads and answers."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from pelton import language
from pelton.errors import ExtraMissing, InvalidInput
from pelton.importers.draft import Options, name_from, with_options
from pelton.language import card as cards
from pelton.language.card import Card
from pelton.language.tools import style_of, uses_tools
from pelton.packages import Manifest, Package, save
from pelton.registry import Registry
from pelton.replicas.language import Alone, LanguageReplica
from pelton.runtimes import language as runtime
from pelton.runtimes.contract import RuntimeOptions
from pelton.runtimes.language import RUNTIME, LanguageEngine
from pelton.types import ModelRef, Signature, TensorSpec

log = logging.getLogger(__name__)

SIGNATURE: Final = Signature((TensorSpec("prompt", "BYTES"),), (TensorSpec("text", "BYTES"),))
SAMPLE: Final = "What is the capital of France?"
PROOF_TOKENS: Final = 16
TEMPLATE: Final = "chat_template"  # a setting of the import, not of the engine
CHATML: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_TOLD: Final = 2.0  # seconds; whatever takes longer is told
_BLOCK: Final = 64 * 1024**2


@contextmanager
def language_draft(registry: Registry) -> Iterator[Path]:
    """An empty folder on the registry's own disk, where a large file can be linked instead of copied."""
    cache = registry.home / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="draft-", dir=cache) as folder:
        yield Path(folder)


def manifest_of(name: str, file: str, source: str, license: str = "", engine: str = "auto") -> Manifest:  # noqa: A002
    """`pelton.toml` of a language model."""
    return Manifest(
        name_from(name),
        RUNTIME,
        file,
        SIGNATURE,
        source=source,
        license=license,
        options={"engine": engine},
        example={"prompt": SAMPLE},
    )


def take(source: Path, target: Path) -> None:
    """Puts a large file, which nobody changes, into a draft: a second name for it where the disk allows, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    size, done, told = source.stat().st_size, 0, time.monotonic()
    with source.open("rb") as reader, target.open("xb") as writer:
        while block := reader.read(_BLOCK):
            writer.write(block)
            done += len(block)
            if time.monotonic() - told > _TOLD:
                told = time.monotonic()
                log.info("copying %s: %d of %d MiB", source.name, done >> 20, size >> 20)
    shutil.copymode(source, target)


def finish(folder: Path, manifest: Manifest, card: Card, registry: Registry, options: Options) -> Package:
    """Writes card and manifest, proves the package where an engine is installed, and adds it.

    Raises PackageInvalid, ModelFailed (it does not load, or answers nothing), and what `Registry.add` raises."""
    settings = dict(options.settings)
    card = with_template(card, str(settings.pop(TEMPLATE, "")), folder)
    cards.write(card, folder)
    manifest = with_options(manifest, msgspec.structs.replace(options, settings=settings))
    package = save(manifest, folder)
    prove(package)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > 1 << 30:
        log.info("storing %s: %d MiB", manifest.name, size >> 20)
    version = registry.add(
        folder,
        by=options.by,
        source=options.source,
        parent=options.parent,
        derivation=options.derivation,
        accepted_on=options.accepted_on,
        metrics=options.metrics,
    )
    return registry.resolve(ModelRef(manifest.name, version))


def with_template(card: Card, wanted: str, folder: Path) -> Card:
    """The card with another chat template: "chatml", or a file with Jinja. Raises InvalidInput, PackageInvalid."""
    if not wanted:
        return card
    tokenizer = language.Tokenizer.read(folder / cards.TOKENIZER)
    ends: tuple[int, ...] = ()
    if wanted == "chatml":
        names = [tokenizer.id_of(name) for name in ("<|im_start|>", "<|im_end|>")]
        if names[0] is None or names[1] is None:
            raise InvalidInput(f"{TEMPLATE}: this vocabulary has no <|im_start|> and <|im_end|>: chatml is not its way")
        source, ends = CHATML, (names[1],)
    else:
        path = Path(wanted)
        if not path.is_file() or path.stat().st_size > cards.CARD_LIMIT:
            raise InvalidInput(f"{TEMPLATE} is {wanted!r}: 'chatml' or a file with a Jinja template is expected")
        source = path.read_text(encoding="utf-8")
    return msgspec.structs.replace(
        card,
        chat_template=source,
        tool_template="",
        tool_style=style_of(source),
        tools_in_template=uses_tools(source),
        stop_tokens=tuple(sorted({*card.stop_tokens, *ends})),
    )


def prove(package: Package) -> str:
    """The beginning of a greedy answer; "" where no engine is installed, which the log says.

    Raises ModelFailed, PackageInvalid: it does not load, or fails."""
    begun = time.monotonic()
    text = language.load(package)
    log.info("%s: loading it for a first answer", package.name)
    try:
        engine = _engine(package)
    except ExtraMissing as error:
        log.warning("%s: nobody proved that it loads and answers, no engine is installed: %s", package.name, error)
        return ""
    with closing(LanguageReplica(package, engine, text, time.monotonic)) as replica:
        alone = Alone(engine, replica)
        with closing(alone):
            (answer,) = alone.answer([SAMPLE.encode()], PROOF_TOKENS)
    told = answer.decode("utf-8", "replace")
    log.info("%s answers after %.1f s: %s", package.name, time.monotonic() - begun, told)
    return told


def _engine(package: Package) -> LanguageEngine:
    """The engine of the package; where it leaves the choice, the one that reads its file at once."""
    if package.file.suffix == ".gguf" and package.manifest.options.get("engine", "auto") == "auto":
        options = {**package.manifest.options, "engine": "llama.cpp", "engine_options": {}}
        quick = msgspec.structs.replace(package.manifest, options=options)
        with suppress(ExtraMissing):
            return runtime.load(msgspec.structs.replace(package, manifest=quick), RuntimeOptions())
    return runtime.load(package, RuntimeOptions())
