"""An ONNX file -> a package: signature read, unknown shapes learned by running an example, weights beside it taken along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from pelton.errors import SourceInvalid
from pelton.importers import examples, onnx_file
from pelton.importers.draft import GOLDEN_ROWS, Options, Rows, draft, finish, name_from, place, random_rows
from pelton.packages import Batching, Manifest, Package
from pelton.registry import Registry
from pelton.runtimes.onnx import OnnxModel, inspect, open_session
from pelton.types import Array, Signature, TensorSpec

FILE: Final = "model.onnx"
# what dimensions that may vary are tried with, until the model runs: tokens, then sides of pictures
_SIZES: Final = (16, 32, 64, 128, 224, 256, 320, 512)


class Learned(msgspec.Struct, frozen=True):
    """`rows`: an example that the model ran. `max_rows` is 1 where the file fixes the batch (None: any)."""

    signature: Signature
    rows: Rows
    max_rows: int | None


def add(source: str, registry: Registry, options: Options) -> Package:
    """Adds an ONNX file. Raises SourceInvalid, PackageInvalid (what ONNX Runtime cannot load)."""
    path = Path(source)
    with draft() as folder:
        collect(path, folder)
        learned = learn(folder / FILE, options.example)
        return finish(folder, manifest_of(path.stem, str(path.name), learned), learned.rows, registry, options)


def manifest_of(name: str, source: str, learned: Learned) -> Manifest:
    return Manifest(
        name_from(name),
        "onnx",
        FILE,
        learned.signature,
        source=source,
        batching=Batching() if learned.max_rows is None else Batching(max_rows=learned.max_rows),
    )


def collect(path: Path, folder: Path) -> onnx_file.OnnxFile:
    """Puts the model and the files that hold its weights into a draft. Raises SourceInvalid."""
    described = onnx_file.read(path)
    root = path.resolve().parent
    for name in described.external:
        pure = PurePosixPath(name)
        source = (root / name).resolve()
        if pure.is_absolute() or ".." in pure.parts or not source.is_relative_to(root):
            raise SourceInvalid(f"{path} keeps weights in {name!r}, outside of its folder: move both into one folder")
        if not source.is_file():
            raise SourceInvalid(f"{path} keeps weights in {name!r}, which is not there: put it beside the model")
        place(source, folder / name)
    place(path, folder / FILE)
    return described


def learn(file: Path, example: Path | None, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Learned:
    """Reads the signature and runs the model on one row, on three, and on other sizes, to learn what the file leaves
    open: output shapes, and whether it takes several rows at all. `shapes`: row shapes of inputs that are known from
    elsewhere. Raises SourceInvalid where no example runs."""
    session = open_session(file, threads=1)
    found, fixed = inspect(session)
    described = onnx_file.read(file)
    inputs = tuple(
        msgspec.structs.replace(
            spec,
            nan=spec.type.kind == "float" and described.reads_nan(spec.name),
            shape=(shapes or {}).get(spec.name, spec.shape),
        )
        for spec in found.inputs
    )
    found = msgspec.structs.replace(found, inputs=inputs)
    given = None if example is None else examples.read(example, found)
    model = OnnxModel(session, found)
    one, size = _first_that_runs(model, found, given)
    first = _run(model, one)
    several = None
    if found.batched and fixed is None:
        several = _try(model, random_rows(found, 3, size) if given is None else _repeat(one, 3))
    if found.batched and not _counts_rows(first, 1):
        return Learned(_without_rows(found, fixed, first), one, 1)
    if several is not None and not _counts_rows(several, 3):
        return Learned(_without_rows(found, fixed, first), one, 1)
    other = next((got for step in (2 * size, size + 8) if (got := _try(model, random_rows(found, 1, step)))), None)
    signature = msgspec.structs.replace(found, outputs=_outputs(found, first, other))
    one_at_a_time = not found.batched or several is None
    rows = given or random_rows(found, GOLDEN_ROWS, size)
    return Learned(signature, rows if found.batched else one, 1 if one_at_a_time else None)


def _first_that_runs(model: OnnxModel, found: Signature, given: Rows | None) -> tuple[Rows, int]:
    """One row that the model answers, and what its varying dimensions were."""
    if given is not None:
        one = {name: array[:1] for name, array in given.items()} if found.batched else given
        return one, _SIZES[0]
    sizes: Sequence[int] = _SIZES if any(not spec.fixed for spec in found.inputs) else _SIZES[:1]
    for size in sizes:
        rows = random_rows(found, 1, size)
        try:
            _run(model, rows)
        except SourceInvalid as error:
            problem = error
        else:
            return rows, size
    raise SourceInvalid(f"the model does not run on made-up rows; give real ones with --example FILE. {problem}")


def _run(model: OnnxModel, rows: Rows) -> list[Array]:
    try:
        return model.run(list(rows.values()))
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises a dozen classes of its own here
        raise SourceInvalid(f"ONNX Runtime: {error}") from None


def _try(model: OnnxModel, rows: Rows) -> list[Array] | None:
    try:
        return _run(model, rows)
    except SourceInvalid:
        return None


def _repeat(rows: Rows, count: int) -> Rows:
    return {name: array.repeat(count, axis=0) for name, array in rows.items()}


def _counts_rows(outputs: Sequence[Array], rows: int) -> bool:
    return all(array.ndim > 0 and array.shape[0] == rows for array in outputs)


def _outputs(found: Signature, first: Sequence[Array], other: Sequence[Array] | None) -> tuple[TensorSpec, ...]:
    """A dimension is fixed where the file says so, where no input varies, or where two sizes of input gave the same."""
    closed = all(spec.fixed for spec in found.inputs)
    specs = []
    for i, spec in enumerate(found.outputs):
        seen = first[i].shape[1:] if found.batched else first[i].shape
        again: tuple[int, ...] | None = seen if closed else None
        if again is None and other is not None and other[i].ndim == first[i].ndim:
            again = other[i].shape[1:] if found.batched else other[i].shape
        known = spec.shape if len(spec.shape) == len(seen) else (-1,) * len(seen)
        shape = tuple(
            dim if dim != -1 else size if again is not None and again[axis] == size else -1
            for axis, (dim, size) in enumerate(zip(known, seen, strict=True))
        )
        specs.append(msgspec.structs.replace(spec, shape=shape))
    return tuple(specs)


def _without_rows(found: Signature, fixed: int | None, first: Sequence[Array]) -> Signature:
    """The first dimension of this model does not count rows after all: it belongs to the shapes."""
    lead = -1 if fixed is None else fixed
    inputs = tuple(msgspec.structs.replace(spec, shape=(lead, *spec.shape)) for spec in found.inputs)
    outputs = tuple(
        msgspec.structs.replace(spec, shape=array.shape if fixed else (-1,) * array.ndim)
        for spec, array in zip(found.outputs, first, strict=True)
    )
    return Signature(inputs, outputs, batched=False)
