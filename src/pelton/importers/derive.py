"""A language model in another number format -> a new version that knows its parent, and what it lost, as measured.

Tensors of a GGUF file are read in float32 and written anew. Norms and biases, which are small, stay as they are; the table
of tokens and the output, which decide most, get at least 8 bits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from pelton.errors import InvalidInput, PeltonError, Unsupported
from pelton.importers import gguf_writer, language_quality
from pelton.importers.draft import Options, place
from pelton.importers.gguf_writer import NewTensor
from pelton.importers.language_draft import finish, language_draft
from pelton.importers.language_quality import Quality
from pelton.importers.quality_texts import TEXTS
from pelton.importers.quantize import BLOCK, ENCODERS
from pelton.language import TOKENIZER, gguf
from pelton.language import card as cards
from pelton.packages import Package, save
from pelton.registry import Registry
from pelton.runtimes.language import RUNTIME
from pelton.runtimes.lm.gguf import GgufFile, GgufInvalid, TensorInfo

log = logging.getLogger(__name__)

FORMATS: Final = {"q4_0": "Q4_0", "q8_0": "Q8_0", "f16": "F16"}
_FILE_TYPES: Final = {"F16": 1, "Q4_0": 2, "Q8_0": 7}  # general.file_type
_ENDS: Final = ("token_embd.weight", "output.weight")
_ROWS: Final = 1 << 24  # elements at once
# as written in the file; others' blocks have minima, which OpenVINO's reader rounds
_FAITHFUL: Final = frozenset({"F32", "F16", "Q4_0", "Q4_1", "Q6_K", "Q8_0"})
_LARGEST: Final = 4_000_000_000
_BITS: Final = {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8}


class Derived(msgspec.Struct, frozen=True):
    """`quality` is None where it was not measured; `why` says why not. Sizes are bytes of the weights' files."""

    package: Package
    quality: Quality | None
    why: str
    size: int
    parent_size: int


def derive(parent: Package, format: str, registry: Registry, options: Options, measured: bool = True) -> Derived:  # noqa: A002
    """Adds `parent` in another format, under the same name unless `options` say another.

    Raises Unsupported (no GGUF file, or one whose types cannot be read), InvalidInput (an unknown format)."""
    kind = FORMATS.get(format)
    if kind is None:
        raise InvalidInput(f"format {format!r} is not known; known are {', '.join(FORMATS)}")
    if parent.manifest.runtime != RUNTIME or parent.file.suffix != ".gguf":
        raise Unsupported(f"model {parent.name!r} is no GGUF language model: only such can be derived")
    head = gguf.read(parent.file)
    with language_draft(registry) as folder:
        file = parent.manifest.file
        rewrite(head, kind, folder / file)
        place(parent.path(TOKENIZER), folder / TOKENIZER)
        card = msgspec.structs.replace(cards.read(parent.folder), quantization=kind)
        manifest = msgspec.structs.replace(
            parent.manifest, description=f"{parent.manifest.description} as {kind}".strip(), golden=None
        )
        cards.write(card, folder)
        made = save(manifest, folder)
        quality, why = _measured(parent, head, made, registry) if measured else (None, "not asked for")
        told = msgspec.structs.replace(
            options,
            parent=parent.version,
            derivation=options.derivation or format,
            metrics={**(quality.metrics() if quality else {}), **options.metrics},
            source=options.source or f"{parent.name}:{parent.version[:12]}",
        )
        package = finish(folder, manifest, card, registry, told)
    return Derived(package, quality, why, package.file.stat().st_size, parent.file.stat().st_size)


def _measured(parent: Package, head: gguf.Gguf, made: Package, registry: Registry) -> tuple[Quality | None, str]:
    log.info("measuring what was lost: both models read %d texts", len(TEXTS))
    cache = str(registry.home / "cache")
    try:
        with _reference(parent, head, registry) as (reference, told):
            quality = language_quality.measure(reference, made, TEXTS, "" if told else cache)
        return msgspec.structs.replace(quality, reference=told), ""
    except PeltonError as error:
        log.warning("what was lost is not measured: %s", error)
        return None, str(error)


@contextmanager
def _reference(parent: Package, head: gguf.Gguf, registry: Registry) -> Iterator[tuple[Package, str]]:
    """What a derived model is compared with: its parent, or, where the engine that measures rounds the parent's own format,
    the parent's weights in one that it reads as they are (and its name)."""
    if all(tensor.type in _FAITHFUL for tensor in head.tensors):
        yield parent, ""
        return
    if sum(tensor.elements for tensor in head.tensors) > _LARGEST:
        raise Unsupported(
            f"the parent's format is rounded by the engine that measures, and F16 is over {_LARGEST} weights"
        )
    with language_draft(registry) as folder:
        rewrite(head, "F16", folder / parent.manifest.file)
        for file in (TOKENIZER, cards.CARD):
            place(parent.path(file), folder / file)
        yield save(msgspec.structs.replace(parent.manifest, golden=None), folder), "F16"


def rewrite(head: gguf.Gguf, kind: str, target: Path) -> None:
    """Writes the file in another format. Raises Unsupported for tensors that cannot be read."""
    types = {tensor.name: type_of(tensor, kind, head) for tensor in head.tensors}
    if all(types[tensor.name] == tensor.type for tensor in head.tensors):
        raise InvalidInput(f"{head.path.name} has this format already: there is nothing to derive")
    try:
        source = GgufFile(head.path)
    except GgufInvalid as error:
        raise Unsupported(f"{head.path.name}: {error}") from None
    meta = {**head.meta, "general.file_type": _FILE_TYPES[kind]}
    kinds = {**head.kinds, "general.file_type": gguf_writer.UINT32}
    progress = _Progress(sum(tensor.elements for tensor in head.tensors))
    tensors = [_tensor(tensor, types[tensor.name], source, progress) for tensor in head.tensors]
    gguf_writer.write(target, meta, kinds, tensors, head.alignment)


def type_of(tensor: gguf.Tensor, kind: str, head: gguf.Gguf) -> str:
    """The new type of a tensor."""
    if len(tensor.shape) < 2 or tensor.shape[0] % BLOCK or not tensor.name.endswith(".weight"):
        return tensor.type
    if "norm" in tensor.name or tensor.name.startswith("rope"):
        return tensor.type
    if tensor.name in _ENDS and kind == "Q4_0":
        tied = "output.weight" not in head.by_name
        decides = tensor.name == "output.weight" or tied
        return kind if not decides else ("Q8_0" if tensor.type in _BITS else tensor.type)
    return kind


def _tensor(tensor: gguf.Tensor, kind: str, source: GgufFile, progress: _Progress) -> NewTensor:
    size = tensor.size if kind == tensor.type else gguf_writer.size_of(tensor.shape, kind)

    def chunks() -> Iterator[bytes]:
        if kind == tensor.type:
            yield from _copied(source.path, tensor)
        else:
            for part in _parts(source, tensor):
                yield ENCODERS[kind](source.read(part).reshape(-1)).tobytes()
        progress.done(tensor.elements)

    return NewTensor(tensor.name, tensor.shape, kind, size, chunks)


def _parts(source: GgufFile, tensor: gguf.Tensor) -> Iterator[str]:
    """The tensor in pieces of whole rows, so that memory stays bounded: names that `source` reads."""
    whole = source.tensors[tensor.name]
    width, rows = tensor.shape[0], tensor.elements // tensor.shape[0]
    row = whole.size // rows
    step = max(1, _ROWS // width)
    for at in range(0, rows, step):
        count = min(step, rows - at)
        name = f"{tensor.name}[{at}]"
        source.tensors[name] = TensorInfo((count, width), whole.type, whole.offset + at * row, count * row)
        yield name
        del source.tensors[name]


def _copied(path: Path, tensor: gguf.Tensor) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(tensor.offset)
        left = tensor.size
        while left:
            block = file.read(min(left, 1 << 24))
            if not block:
                raise Unsupported(f"{path.name} became shorter while it was read")
            left -= len(block)
            yield block


class _Progress:
    """Tells every two seconds how far it is."""

    def __init__(self, elements: int) -> None:
        self._all = max(elements, 1)
        self._done = 0
        self._told = time.monotonic()

    def done(self, elements: int) -> None:
        self._done += elements
        if time.monotonic() - self._told > 2.0:
            self._told = time.monotonic()
            log.info("writing weights: %.0f %%", 100 * self._done / self._all)


def bits_per_weight(tensors: Sequence[gguf.Tensor]) -> float:
    """Of a whole file."""
    return 8 * sum(tensor.size for tensor in tensors) / float(np.sum([tensor.elements for tensor in tensors]))
