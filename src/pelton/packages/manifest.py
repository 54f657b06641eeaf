"""`pelton.toml`: reading, checking, writing. The folder that holds it is a package; its files are named relative to it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from pelton.errors import InvalidInput, PackageInvalid
from pelton.packages import preprocess as pre
from pelton.types import DATATYPES, Signature, check_name

MANIFEST_NAME = "pelton.toml"
LANGUAGE = "language"  # the runtime of language models
MANIFEST_LIMIT = 4 * 1024 * 1024


class Slo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The latency target: 99 of 100 answers within `p99_ms` milliseconds, from the first byte read to the reply.

    None: Pelton takes 200 ms, or 4 times the model's own time for one row where that is longer.

    Of language models: `ttft_ms`, from the first byte read to the first token (None: 30 s), and `tpot_ms`, from one
    token to the next (None: as many streams run at once as the engine can)."""

    p99_ms: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None


class Batching(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`objective`: "latency" never waits for company; "cost" uses the slack before the earliest deadline to fill
    batches; "balanced" uses half of it. `max_rows` bounds a batch; 1 switches batching off."""

    objective: Literal["latency", "balanced", "cost"] = "latency"
    max_rows: int = 128


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Recorded requests and answers (`pelton.packages.golden`) that a loaded copy must reproduce before it serves.

    An element passes when |answer - recorded| <= atol + rtol * |recorded|."""

    file: str = "golden.json"
    rtol: float = 1e-3
    atol: float = 1e-5


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The contents of `pelton.toml`.

    `runtime` names a file of `pelton.runtimes`; `file` is what it loads. `options` belong to the runtime.
    `source` and `license` say where the model came from, for people.
    """

    name: str
    runtime: str
    file: str
    signature: Signature
    description: str = ""
    source: str = ""
    license: str = ""
    options: dict[str, Any] = {}
    slo: Slo = Slo()
    batching: Batching = Batching()
    preprocess: tuple[pre.Preprocess, ...] = ()
    postprocess: tuple[pre.Postprocess, ...] = ()
    golden: Golden | None = None
    example: dict[str, Any] | None = None  # one row as a caller would send it: shown in documentation, used by bench


class Package(msgspec.Struct, frozen=True):
    """A manifest and the folder that it was read from. `version` is the digest of the files (empty: not stored yet)."""

    folder: Path
    manifest: Manifest
    version: str = ""

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def file(self) -> Path:
        return self.folder / self.manifest.file

    def path(self, name: str) -> Path:
        """A file of the package, which must lie inside its folder."""
        return _inside(self.folder, name)


def load(folder: Path, version: str = "") -> Package:
    """Reads and checks a package. Raises PackageInvalid with the file, the field and the mend."""
    path = folder / MANIFEST_NAME
    try:
        if path.stat().st_size > MANIFEST_LIMIT:
            raise PackageInvalid(f"{path} is larger than {MANIFEST_LIMIT} bytes")
        text = path.read_bytes()
    except OSError as error:
        raise PackageInvalid(
            f"{folder} is not a model package: cannot read {MANIFEST_NAME} ({error.strerror})"
        ) from None
    try:
        manifest = msgspec.toml.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackageInvalid(f"{path}: {error}") from None
    check(manifest, folder)
    return Package(folder, manifest, version)


def save(manifest: Manifest, folder: Path) -> Package:
    """Writes `pelton.toml` into a folder that already holds the package's files."""
    check(manifest, folder)
    (folder / MANIFEST_NAME).write_bytes(msgspec.toml.encode(manifest))
    return Package(folder, manifest)


def check(manifest: Manifest, folder: Path) -> None:
    """Everything that can be wrong without loading the model."""
    try:
        check_name(manifest.name)
    except InvalidInput as error:
        raise PackageInvalid(f"{MANIFEST_NAME}: name: {error}") from None
    _check_signature(manifest.signature)
    pre.check_names(manifest.preprocess, {spec.name for spec in manifest.signature.inputs})
    outputs = {spec.name for spec in manifest.signature.outputs}
    for block in manifest.postprocess:
        if block.output not in outputs:
            raise PackageInvalid(f"{MANIFEST_NAME}: postprocess reads {block.output!r}; outputs are {sorted(outputs)}")
    if manifest.batching.max_rows < 1:
        raise PackageInvalid(f"{MANIFEST_NAME}: batching.max_rows must be at least 1, not {manifest.batching.max_rows}")
    for name in ("p99_ms", "ttft_ms", "tpot_ms"):
        value = getattr(manifest.slo, name)
        if value is not None and not value > 0:
            raise PackageInvalid(f"{MANIFEST_NAME}: slo.{name} must be positive, not {value}")
    if manifest.runtime == LANGUAGE:
        _check_language(manifest)
    elif manifest.slo.ttft_ms is not None or manifest.slo.tpot_ms is not None:
        raise PackageInvalid(f"{MANIFEST_NAME}: slo.ttft_ms and slo.tpot_ms are for language models; use slo.p99_ms")
    for name in _files(manifest):
        if not _inside(folder, name).exists():
            raise PackageInvalid(f"{folder}: {MANIFEST_NAME} names {name!r}, which is not there")


def _check_language(manifest: Manifest) -> None:
    """A language model takes texts and gives texts, row by row; what it does with them is no matter of blocks."""
    signature = manifest.signature
    for what, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        if [(spec.datatype, spec.shape) for spec in specs] != [("BYTES", ())] or not signature.batched:
            raise PackageInvalid(
                f"{MANIFEST_NAME}: a language model has one of signature.{what}, BYTES of shape [], and takes batches"
            )
    if manifest.preprocess or manifest.postprocess:
        raise PackageInvalid(f"{MANIFEST_NAME}: a language model has no preprocess and no postprocess blocks")
    if manifest.slo.p99_ms is not None:
        raise PackageInvalid(
            f"{MANIFEST_NAME}: slo.p99_ms says nothing of texts, which may be long: use slo.ttft_ms and slo.tpot_ms"
        )


def _check_signature(signature: Signature) -> None:
    for what, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        if not specs:
            raise PackageInvalid(f"{MANIFEST_NAME}: signature.{what} is empty")
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            raise PackageInvalid(f"{MANIFEST_NAME}: signature.{what} has a name twice: {names}")
        for spec in specs:
            if spec.datatype not in DATATYPES:
                raise PackageInvalid(
                    f"{MANIFEST_NAME}: {what} {spec.name!r}: unknown datatype {spec.datatype!r}; one of {', '.join(DATATYPES)}"
                )
            if any(dim < -1 for dim in spec.shape):
                raise PackageInvalid(
                    f"{MANIFEST_NAME}: {what} {spec.name!r}: shape {spec.shape} has a dimension below -1"
                )


def _files(manifest: Manifest) -> list[str]:
    names = [manifest.file]
    for block in manifest.preprocess:
        if isinstance(block, pre.Text) and block.tokenizer != "bytes":
            names.append(block.tokenizer)
    for post in manifest.postprocess:
        if isinstance(post, pre.Ctc):
            names.append(post.symbols_file)
        elif isinstance(post, pre.Labels) and post.labels_file:
            names.append(post.labels_file)
    if manifest.golden is not None:
        names.append(manifest.golden.file)
    return names


def _inside(folder: Path, name: str) -> Path:
    """Package files may not point outside of the package."""
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise PackageInvalid(f"{MANIFEST_NAME}: the file name {name!r} must be relative and stay inside the package")
    return folder / name
