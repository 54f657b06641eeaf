"""A package on its way into the registry: options applied, golden requests recorded and reproduced, then added."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from pelton.errors import Disagrees, InvalidInput, ModelFailed, PackageInvalid, PeltonError
from pelton.packages import Golden, Manifest, Package, golden, save
from pelton.registry import Registry
from pelton.runtimes import contract
from pelton.transforms import compile_prepare
from pelton.types import Array, ModelRef, Signature, TensorSpec, check_name

log = logging.getLogger(__name__)

GOLDEN_FILE: Final = "golden.json"
GOLDEN_ROWS: Final = 4
EXAMPLE_LIMIT: Final = 4096  # elements; larger rows are not shown as examples
SEED: Final = 0
LANGUAGE: Final = "language"
WITH_OPTIONS: Final = (LANGUAGE, "whisper")

Rows = Mapping[str, Array]  # one array [rows, ...] for each input


class Options(msgspec.Struct, frozen=True):
    """What `add` may be told. `example`: a file with rows (`pelton.importers.examples`). `trust`: code may run.

    The last ones are kept beside the version in the registry: `by` whom and from which `source` it was added, the full
    version that it derives from, by what, on which hardware it was accepted, and its measured quality."""

    name: str = ""
    p99_ms: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    objective: Literal["latency", "balanced", "cost"] | None = None
    max_rows: int | None = None
    trust: bool = False
    example: Path | None = None
    by: str = ""
    source: str = ""
    parent: str = ""
    derivation: str = ""
    accepted_on: str = ""
    metrics: dict[str, float] = {}
    settings: dict[str, Any] = {}  # `options` of pelton.toml, of runtimes that have such


@contextmanager
def draft() -> Iterator[Path]:
    """An empty folder to build a package in; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="pelton-draft-") as folder:
        yield Path(folder)


def name_from(text: str) -> str:
    """A model name made of a file's or repository's name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100]
    return name or "model"


def place(source: Path, target: Path) -> None:
    """Copies a file into a draft. (A second link would do, but drafts rewrite files, and this one may be the user's.)"""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def finish(folder: Path, manifest: Manifest, rows: Rows | None, registry: Registry, options: Options) -> Package:
    """Records golden requests from `rows` (None: keep those of the draft), proves them on a fresh copy, and adds the
    draft. Raises ModelFailed or PackageInvalid where the model does not run on its example, and what `add` raises."""
    manifest = with_options(manifest, options)
    if rows is not None:
        manifest = record(folder, manifest, rows, options.trust)
    package = save(manifest, folder)
    with closing(contract.load(package, contract.RuntimeOptions(trust=options.trust))) as model:
        golden.check(package, model.run)
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


def with_options(manifest: Manifest, options: Options) -> Manifest:
    """The manifest with the user's wishes in it. Raises InvalidInput for an unusable name."""
    batching = manifest.batching
    if options.objective is not None:
        batching = msgspec.structs.replace(batching, objective=options.objective)
    if options.max_rows is not None:
        batching = msgspec.structs.replace(batching, max_rows=options.max_rows)
    targets = {"p99_ms": options.p99_ms, "ttft_ms": options.ttft_ms, "tpot_ms": options.tpot_ms}
    slo = msgspec.structs.replace(manifest.slo, **{key: value for key, value in targets.items() if value is not None})
    name = check_name(options.name or manifest.name)
    _check_fitting(name, manifest.runtime, options)
    own = manifest.options | options.settings
    return msgspec.structs.replace(manifest, name=name, batching=batching, slo=slo, options=own)


def _check_fitting(name: str, runtime: str, options: Options) -> None:
    """Raises InvalidInput for a wish that means nothing to this kind of model."""
    if options.settings and runtime not in WITH_OPTIONS:
        raise InvalidInput(f"{name}: models of the runtime {runtime!r} have no options ({min(options.settings)})")
    wrong: tuple[str, ...]
    if runtime == LANGUAGE:
        wrong = ("p99_ms", "objective", "max_rows", "example")
        mend = "a language model has ttft_ms, tpot_ms and options such as streams instead"
    else:
        wrong, mend = ("ttft_ms", "tpot_ms"), "only language models have it; p99_ms is the target of others"
    for field in wrong:
        if getattr(options, field) is not None:
            raise InvalidInput(f"{name}: {field} means nothing to this model: {mend}")


def rows_of_example(package: Package) -> dict[str, Array]:
    """The manifest's example as the model's inputs, through the package's own preprocessing."""
    example = package.manifest.example or {}
    try:
        prepared = compile_prepare(package)({name: [value] for name, value in example.items()})
    except InvalidInput as error:
        raise PackageInvalid(f"the example of {package.name!r} is no valid call: {error}") from None
    arrays = prepared.inputs if package.manifest.signature.batched else [array[0] for array in prepared.inputs]
    return dict(zip((spec.name for spec in package.manifest.signature.inputs), arrays, strict=True))


def record(folder: Path, manifest: Manifest, rows: Rows, trust: bool) -> Manifest:
    """Runs the model on each row alone and on all together, and writes golden.json.

    Where rows change their answers in company, batching is switched off; where the same row gets two answers, there
    is nothing to record. Both are said in the log."""
    signature = manifest.signature
    package = save(msgspec.structs.replace(manifest, golden=None), folder)
    with closing(contract.load(package, contract.RuntimeOptions(trust=trust))) as model:
        singles = split(signature, rows)
        requests = [ask(model, manifest, inputs) for inputs in singles]
        try:
            golden.compare(requests[0].outputs, ask(model, manifest, singles[0]).outputs)
        except Disagrees as error:
            log.warning(
                "%s answers the same row in two ways: no golden requests were recorded (%s)", manifest.name, error
            )
            return msgspec.structs.replace(manifest, golden=None)
        if signature.batched and manifest.batching.max_rows > 1 and len(singles) > 1:
            manifest = _check_company(model, manifest, requests)
    golden.write(folder / GOLDEN_FILE, requests, signature)
    return msgspec.structs.replace(
        manifest, golden=Golden(GOLDEN_FILE), example=manifest.example or example_of(manifest, rows)
    )


def split(signature: Signature, rows: Rows) -> list[list[Array]]:
    """Each row alone, at most GOLDEN_ROWS; all at once where the model knows no rows."""
    arrays = [rows[spec.name] for spec in signature.inputs]
    if not signature.batched:
        return [arrays]
    return [[array[i : i + 1] for array in arrays] for i in range(min(len(arrays[0]), GOLDEN_ROWS))]


def ask(model: contract.LoadedModel, manifest: Manifest, inputs: Sequence[Array]) -> golden.Request:
    """One call whose answer must fit the signature. Raises ModelFailed."""
    signature = manifest.signature
    try:
        outputs = model.run(inputs)
    except PeltonError:
        raise
    except Exception as error:  # noqa: BLE001 - a model may raise anything; the importer's user gets one sentence
        raise ModelFailed(f"model {manifest.name!r} fails on the example: {error}") from None
    for spec, array in zip(signature.outputs, outputs, strict=True):
        problem = misfit(spec, array, len(inputs[0]) if signature.batched else None)
        if problem:
            raise ModelFailed(f"model {manifest.name!r}: the output {spec.name!r} {problem}")
    names = [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs]
    return golden.Request(dict(zip(names[0], inputs, strict=True)), dict(zip(names[1], outputs, strict=True)))


def misfit(spec: TensorSpec, array: Array, rows: int | None) -> str:
    """Why an array is not what `spec` says ("" where it is). `rows`: None where there is no batch dimension."""
    shape = spec.shape if rows is None else (rows, *spec.shape)
    if len(array.shape) != len(shape) or any(
        want not in (-1, have) for want, have in zip(shape, array.shape, strict=True)
    ):
        return f"has the shape {list(array.shape)} instead of {list(shape)}"
    if array.dtype != spec.type.dtype:
        return f"is {array.dtype} instead of {spec.datatype}"
    return ""


def _check_company(model: contract.LoadedModel, manifest: Manifest, requests: Sequence[golden.Request]) -> Manifest:
    """Every row must get the same answer alone and in a batch; otherwise the model runs one row at a time."""
    shapes = {tuple(array.shape for array in request.inputs.values()) for request in requests}
    if len(shapes) > 1:
        return manifest  # such rows never share a batch
    specs = manifest.signature
    together = [np.concatenate([request.inputs[spec.name] for request in requests]) for spec in specs.inputs]
    alone = {spec.name: np.concatenate([request.outputs[spec.name] for request in requests]) for spec in specs.outputs}
    try:
        golden.compare(alone, ask(model, manifest, together).outputs)
    except (Disagrees, ModelFailed) as error:
        log.warning(
            "%s answers rows in a batch otherwise than alone: it will run one row at a time (%s)", manifest.name, error
        )
        return msgspec.structs.replace(manifest, batching=msgspec.structs.replace(manifest.batching, max_rows=1))
    return manifest


def example_of(manifest: Manifest, rows: Rows) -> dict[str, object] | None:
    """The first row as a caller would send it, where all of it are tensors and small."""
    if manifest.preprocess:
        return None
    example: dict[str, object] = {}
    for spec in manifest.signature.inputs:
        array = rows[spec.name]
        if manifest.signature.batched:
            array = array[:1].reshape(array.shape[1:])
        if array.size > EXAMPLE_LIMIT or (array.dtype.kind == "f" and not np.isfinite(array).all()):
            return None
        if spec.datatype == "BYTES":
            try:
                array = np.array([x.decode() for x in array.ravel()], object).reshape(array.shape)
            except UnicodeDecodeError:
                return None
        if array.dtype.kind == "f":  # the shortest decimals that read back as the same elements
            array = array.astype(str).astype(np.float64)
        example[spec.name] = array.tolist()
    return example


def random_rows(signature: Signature, rows: int, size: int) -> dict[str, Array]:
    """Rows to try a model with, the same in every run. Dimensions that may vary get `size`.

    Numbers are normal, integers 0 or 1 (any vocabulary has them), masks 1, the types of tokens 0."""
    random = np.random.default_rng(SEED)
    return {spec.name: _random(random, spec, rows if signature.batched else None, size) for spec in signature.inputs}


def _random(random: np.random.Generator, spec: TensorSpec, rows: int | None, size: int) -> Array:
    shape = tuple(size if dim == -1 else dim for dim in spec.shape)
    shape = shape if rows is None else (rows, *shape)
    if spec.datatype == "BYTES":
        return np.full(shape, b"a", object)
    if spec.type.kind == "float" and spec.type.dtype.kind == "f":
        return random.standard_normal(shape).astype(spec.type.dtype)
    if "mask" in spec.name:
        return np.ones(shape, spec.type.dtype)
    if "type" in spec.name:
        return np.zeros(shape, spec.type.dtype)
    high = 256 if spec.datatype == "UINT8" else 2
    return random.integers(0, high, shape).astype(spec.type.dtype)
