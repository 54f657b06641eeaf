"""Callers' fields -> the model's inputs, by the blocks that a package declares."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from pelton.errors import InvalidInput, PackageInvalid
from pelton.packages import Package
from pelton.packages import preprocess as pre
from pelton.transforms.fields import FieldSpec, Prepared, Step
from pelton.transforms.table import UNSET, Vector, compile_table
from pelton.transforms.tensor import Tensor
from pelton.types import Fields


class Prepare:
    """The compiled preprocessing of a package. Safe from several threads; keeps nothing of a call.

    `fields`: everything that a caller sends. `heavy`: worth a thread (pictures, sounds, tokenizer files).
    """

    def __init__(self, steps: Sequence[tuple[Step, tuple[int, ...]]], inputs: int) -> None:
        self.fields: tuple[FieldSpec, ...] = tuple(field for step, _ in steps for field in step.fields)
        self.heavy = any(step.heavy for step, _ in steps)
        self._steps = tuple(steps)
        self._inputs = inputs
        self._count = len(self.fields)
        self._names = frozenset(field.name for field in self.fields)
        step, slots = steps[0]
        # One block that fills everything in order, which is most models: its answer is the answer.
        self._only = step if len(steps) == 1 and slots == tuple(range(inputs)) else None
        self._one_row = step.one_row if isinstance(self._only, Vector) and isinstance(step, Vector) else None

    def __call__(self, fields: Fields) -> Prepared:
        """One value per instance in every field. Raises InvalidInput that names the field, the row and the mend.

        A column that an instance leaves out while others send it is `msgspec.UNSET`.
        """
        if self._one_row is not None and (row := self._one_row(fields)) is not None:
            return Prepared([row])
        if len(fields) != self._count or not fields.keys() <= self._names:
            fields = self._completed(fields)
        if not _even(fields):
            self._uneven(fields)
        if self._only is not None:
            return self._only(fields)
        return self._joined([(step(fields), slots) for step, slots in self._steps])

    def _joined(self, parts: Sequence[tuple[Prepared, tuple[int, ...]]]) -> Prepared:
        inputs: list[Any] = [None] * self._inputs
        several = {part.counts for part, _ in parts if part.counts is not None}
        if len(several) > 1:
            raise InvalidInput("the sounds of one call must have equally many windows in every field")
        counts = several.pop() if several else None
        texts = [part.lengths for part, _ in parts if part.lengths is not None]
        lengths = texts[0] if len(texts) == 1 and counts is None else None
        for part, slots in parts:
            for slot, array in zip(slots, part.inputs, strict=True):
                inputs[slot] = array if counts is None or part.counts is not None else np.repeat(array, counts, axis=0)
        return Prepared(inputs, counts, lengths)

    def _completed(self, fields: Fields) -> Fields:
        """With the optional columns that the caller leaves out."""
        known = ", ".join(repr(field.name) for field in self.fields[:50])
        for name in fields:
            if name not in self._names:
                raise InvalidInput(f"unknown field {_short(name)}; this model takes {known}")
        missing = [field for field in self.fields if field.name not in fields]
        for field in missing:
            if field.required:
                raise InvalidInput(f"the field {field.name!r} is missing ({field.description})")
        lengths = [len(values) for values in fields.values() if type(values) in _SEQUENCES]
        if not lengths:
            raise InvalidInput(f"there is no field with a list of values; this model takes {known}")
        rows = max(lengths)
        return {**fields, **{field.name: [UNSET] * rows for field in missing}}

    def _uneven(self, fields: Fields) -> NoReturn:
        lengths: dict[str, int] = {}
        for name, values in fields.items():
            if not isinstance(values, list | tuple | np.ndarray) or np.ndim(values[:0]) < 1:
                raise InvalidInput(f"the field {name!r} needs a list with one value per instance")
            lengths[name] = len(values)
        if 0 in lengths.values():
            raise InvalidInput("there are no instances")
        told = ", ".join(f"{name!r}: {length}" for name, length in list(lengths.items())[:10])
        raise InvalidInput(f"every field needs one value per instance, but the numbers of values differ ({told})")


def _even(fields: Fields) -> bool:
    """Whether all fields are sequences of one length that is not 0."""
    if not _SEQUENCES.issuperset(map(type, fields.values())):
        return False
    lengths = set(map(len, fields.values()))
    return len(lengths) == 1 and 0 not in lengths


_SEQUENCES = frozenset({list, tuple, np.ndarray})


def _short(name: Any) -> str:
    text = repr(name)
    return text if len(text) <= 60 else f"{text[:60]}..."


def compile_prepare(package: Package) -> Prepare:
    """Compiles the blocks and reads their files; inputs that no block fills become tensor fields.

    Raises PackageInvalid where a block contradicts the signature, ExtraMissing where a library is missing.
    """
    manifest = package.manifest
    order = {spec.name: slot for slot, spec in enumerate(manifest.signature.inputs)}
    pre.check_names(manifest.preprocess, set(order))
    steps: list[tuple[Step, tuple[int, ...]]] = []
    open_slots = set(order.values())
    for block in manifest.preprocess:
        slots = tuple(order[name] for name in pre.fills(block))
        open_slots.difference_update(slots)
        steps.append((_step(block, slots, package), slots))
    steps += [(Tensor(manifest.signature.inputs[slot]), (slot,)) for slot in sorted(open_slots)]
    names = [field.name for step, _ in steps for field in step.fields]
    for name in names:
        if names.count(name) > 1:
            raise PackageInvalid(f"two inputs read the field {name!r}; give the preprocess block another field")
    return Prepare(steps, len(order))


def _step(block: pre.Preprocess, slots: tuple[int, ...], package: Package) -> Step:
    """Pillow is loaded only for packages that read pictures, soundfile and tokenizers likewise."""
    specs = [package.manifest.signature.inputs[slot] for slot in slots]
    if isinstance(block, pre.Table):
        return compile_table(block, specs)
    module = importlib.import_module(f"pelton.transforms.{_OWNERS[type(block)]}")
    step: Step
    if isinstance(block, pre.Image):
        step = module.Pictures(block, specs[0])
    elif isinstance(block, pre.Audio):
        step = module.Sounds(block, specs[0])
    elif isinstance(block, pre.Speech):
        step = module.Speeches(block, specs)
    else:
        step = module.Texts(block, specs, package)
    return step


_OWNERS: dict[type, str] = {pre.Image: "image", pre.Audio: "audio", pre.Text: "text", pre.Speech: "speech"}
