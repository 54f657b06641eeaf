"""The model's outputs -> one JSON-able answer per instance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from pelton.errors import ModelFailed, PackageInvalid
from pelton.packages import Package
from pelton.packages.preprocess import Ctc, Embedding, Labels, Postprocess, Transcript, Value
from pelton.transforms.elements import from_bf16
from pelton.transforms.transcript import answer as transcript
from pelton.types import Array, TensorSpec

FILE_LIMIT: Final = 16 * 1024 * 1024  # of a labels or symbols file
_FEW: Final = 64  # so many floats are checked faster in Python than in numpy

Counts = tuple[int, ...] | None
# One output [rows, ...] -> its answers: one per row, or one per instance where it joins windows itself.
Answer = Callable[[Array, Counts], list[Any]]


class Finish:
    """The compiled answers of a package. Safe from several threads."""

    def __init__(self, parts: Sequence[tuple[str, int, Answer]]) -> None:
        self.fields = tuple(name for name, _, _ in parts)
        self._parts = tuple((position, answer) for _, position, answer in parts)

    def __call__(self, outputs: Sequence[Array], counts: Counts = None) -> list[dict[str, Any]]:
        """`outputs` in the signature's order, each [rows, ...]; `counts`: rows of each instance (None: one each).

        Not finite numbers become None, for JSON has none. Raises ModelFailed where labels or symbols do not fit.
        """
        columns = [answer(outputs[position], counts) for position, answer in self._parts]
        names = self.fields
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def compile_finish(package: Package) -> Finish:
    """Reads labels and symbols. Raises PackageInvalid where blocks, files and signature contradict each other."""
    manifest = package.manifest
    specs = {spec.name: (position, spec) for position, spec in enumerate(manifest.signature.outputs)}
    parts: list[tuple[str, int, Answer]] = []
    for block in manifest.postprocess:
        if block.output not in specs:
            raise PackageInvalid(f"postprocess reads {block.output!r}; outputs are {sorted(specs)}")
        position, spec = specs[block.output]
        parts.append((block.field, position, _answer(block, spec, package)))
    used = {block.output for block in manifest.postprocess}
    for name, (position, spec) in specs.items():
        if name not in used:
            parts.append((name, position, _per_instance(_plainly(spec))))
    names = [name for name, _, _ in parts]
    for name in names:
        if names.count(name) > 1:
            raise PackageInvalid(f"two answers have the name {name!r}; give one postprocess block another field")
    return Finish(parts)


def _answer(block: Postprocess, spec: TensorSpec, package: Package) -> Answer:
    if isinstance(block, Labels):
        return _labels(block, spec, package)
    if isinstance(block, Transcript):
        return transcript(block, spec)
    if isinstance(block, Embedding):
        return _per_instance(_embedding(block, spec))
    if spec.type.kind == "bytes" and (isinstance(block, Ctc) or block.index is not None):
        raise PackageInvalid(f"postprocess of {spec.name!r}: the output is BYTES, numbers are needed")
    if isinstance(block, Ctc):
        return _per_instance(_ctc(block, spec, package))
    return _per_instance(_value(block, spec))


def _per_instance(per_row: Callable[[Array], list[Any]]) -> Answer:
    """Groups the answers of rows by instance where an instance has several."""

    def answer(array: Array, counts: Counts) -> list[Any]:
        answers = per_row(array)
        return answers if counts is None else _grouped(answers, counts)

    return answer


def _grouped(answers: list[Any], counts: tuple[int, ...]) -> list[Any]:
    if sum(counts) != len(answers):
        raise ModelFailed(f"the model answered {len(answers)} rows for {sum(counts)}")
    groups: list[Any] = []
    start = 0
    for count in counts:
        groups.append(answers[start : start + count])
        start += count
    return groups


def _plainly(spec: TensorSpec) -> Callable[[Array], list[Any]]:
    """Nested lists; text for BYTES."""
    kind, bf16 = spec.type.kind, spec.type.name == "BF16"

    def listed(array: Array) -> list[Any]:
        if bf16:
            array = from_bf16(array)
        if kind == "bytes":
            flat = np.array([_text(item) for item in array.ravel()], np.object_)
            return _list(flat.reshape(array.shape))
        if kind == "float" and not _finite(array):
            loose = array.astype(np.object_)
            loose[~np.isfinite(array)] = None
            return _list(loose)
        return _list(array)

    return listed


def _finite(array: Array) -> bool:
    if array.size <= _FEW:
        return all(map(math.isfinite, array.ravel().tolist()))
    return bool(np.isfinite(array).all())


def _list(array: Array) -> list[Any]:
    values: list[Any] = array.tolist()
    return values


def _text(item: Any) -> str:
    return item.decode(errors="replace") if isinstance(item, bytes) else str(item)


def _embedding(block: Embedding, spec: TensorSpec) -> Callable[[Array], list[Any]]:
    if spec.type.kind != "float" or len(spec.shape) != 1 or spec.shape[0] < 1:
        raise PackageInvalid(
            f"postprocess of {spec.name!r}: an embedding is a vector of floats of known length; "
            f"the output is {spec.datatype} {list(spec.shape)}"
        )
    if any(not 0 < size <= spec.shape[0] for size in block.dimensions):
        raise PackageInvalid(f"postprocess of {spec.name!r}: dimensions must be 1 to {spec.shape[0]}")
    return _plainly(spec)


def _value(block: Value, spec: TensorSpec) -> Callable[[Array], list[Any]]:
    plainly = _plainly(spec)
    index = block.index
    if index is None:
        return plainly
    if index < 0 or (spec.fixed and index >= spec.elements):
        raise PackageInvalid(f"postprocess of {spec.name!r}: it has no element {index}; its shape is {spec.shape}")

    def pick(array: Array) -> list[Any]:
        rows = array.reshape(len(array), -1)
        if index >= rows.shape[1]:
            raise ModelFailed(f"output {spec.name!r} has {rows.shape[1]} elements a row; element {index} is declared")
        return plainly(rows[:, index])

    return pick


def _ctc(block: Ctc, spec: TensorSpec, package: Package) -> Callable[[Array], list[Any]]:
    symbols = ("", *_lines(package, block.symbols_file))
    if len(spec.shape) != 2 or spec.shape[1] not in (-1, len(symbols)):
        raise PackageInvalid(
            f"postprocess of {spec.name!r}: {block.symbols_file!r} has {len(symbols) - 1} symbols, and one blank; "
            f"the shape [t, symbols] is {spec.shape}"
        )

    def decode(array: Array) -> list[Any]:
        if array.shape[-1] != len(symbols):
            raise ModelFailed(f"output {spec.name!r} has {array.shape[-1]} symbols; {len(symbols)} are declared")
        scores = from_bf16(array) if spec.type.name == "BF16" else array
        best = scores.argmax(axis=2)
        starts = np.ones(best.shape, np.bool_)
        starts[:, 1:] = best[:, 1:] != best[:, :-1]
        return ["".join([symbols[i] for i in row[kept].tolist()]) for row, kept in zip(best, starts, strict=True)]

    return decode


def _labels(block: Labels, spec: TensorSpec, package: Package) -> Answer:
    if spec.type.kind not in ("float", "int"):
        raise PackageInvalid(f"postprocess of {spec.name!r}: scores are numbers; the output is {spec.datatype}")
    if block.top < 1:
        raise PackageInvalid(f"postprocess of {spec.name!r}: top must be at least 1")
    names = block.labels or (_lines(package, block.labels_file) if block.labels_file else ())
    _check_labels(names, spec)
    bf16 = spec.type.name == "BF16"

    def answer(array: Array, counts: Counts) -> list[Any]:
        scores = (from_bf16(array) if bf16 else array).reshape(len(array), -1)
        if not _finite(scores):
            raise ModelFailed(f"output {spec.name!r} has scores that are not finite")
        if names and max(2, scores.shape[1]) != len(names):
            raise ModelFailed(f"output {spec.name!r} has {scores.shape[1]} scores; {len(names)} labels are declared")
        if counts is None and scores.size <= _FEW:
            return [_best_of(_probabilities_of(row, block.softmax), names, block.top) for row in scores.tolist()]
        scores = _probabilities(scores, block.softmax)
        if counts is not None and block.over_rows != "none":
            return _best(_joined(scores, counts, block.over_rows), names, block.top)
        answers = _best(scores, names, block.top)
        return answers if counts is None else _grouped(answers, counts)

    return answer


def _check_labels(names: Sequence[str], spec: TensorSpec) -> None:
    count = max(2, spec.elements) if spec.fixed else len(names)
    if names and count != len(names):
        raise PackageInvalid(f"postprocess of {spec.name!r}: {len(names)} labels for {count} scores")


def _probabilities(scores: Array, logits: bool) -> Array:
    """float64 [rows, n]. One score is that of the second of two labels."""
    wide = scores.astype(np.float64)
    if wide.shape[1] == 1:
        if logits:
            with np.errstate(over="ignore"):
                wide = 1.0 / (1.0 + np.exp(-wide))
        return np.concatenate([1.0 - wide, wide], axis=1)
    if logits:
        wide = np.exp(wide - wide.max(axis=1, keepdims=True))
        wide /= wide.sum(axis=1, keepdims=True)
    return wide


def _probabilities_of(scores: list[float], logits: bool) -> list[float]:
    """The same for one row, ten times faster than numpy where a row is short."""
    if len(scores) == 1:
        score = scores[0]
        if logits:
            score = 1.0 / (1.0 + math.exp(-score)) if score > -700.0 else 0.0
        return [1.0 - score, score]
    if not logits:
        return scores
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def _joined(scores: Array, counts: tuple[int, ...], how: str) -> Array:
    if sum(counts) != len(scores):
        raise ModelFailed(f"the model answered {len(scores)} rows for {sum(counts)}")
    parts = np.split(scores, np.cumsum(counts)[:-1])
    return np.stack([part.mean(axis=0) if how == "mean" else part.max(axis=0) for part in parts])


def _best(scores: Array, names: Sequence[str], top: int) -> list[Any]:
    """The best first; of equal scores, the lower index. Seven digits are what a float32 holds."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    values = np.take_along_axis(scores, order, axis=1).tolist()
    return [
        [
            {"label": names[i] if names else str(i), "score": float(f"{score:.7g}")}
            for i, score in zip(row, row_scores, strict=True)
        ]
        for row, row_scores in zip(order.tolist(), values, strict=True)
    ]


def _best_of(scores: list[float], names: Sequence[str], top: int) -> list[dict[str, Any]]:
    """The same for one row."""
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:top]
    return [{"label": names[i] if names else str(i), "score": float(f"{scores[i]:.7g}")} for i in order]


def _lines(package: Package, name: str) -> tuple[str, ...]:
    """The lines of a file of the package. Only line ends are cut off: a space, or a rare separator, is a symbol."""
    path = package.path(name)
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise PackageInvalid(f"{name} is larger than {FILE_LIMIT} bytes")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise PackageInvalid(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PackageInvalid(f"{name} is not UTF-8 text") from None
    return tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))
