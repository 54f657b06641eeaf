"""Whether callers of one version can be given answers of another: what they send must still be taken, and what they
read must still be there. Pure, out of the manifests."""

from __future__ import annotations

import msgspec

from pelton.errors import Unsupported
from pelton.packages import Manifest
from pelton.packages import preprocess as pre
from pelton.types import TensorSpec


class Field(msgspec.Struct, frozen=True):
    """What callers send under one name. `values`: the texts that are taken, empty for any; `shape` only of tensors."""

    kind: str
    required: bool = True
    values: frozenset[str] = frozenset()
    shape: tuple[int, ...] | None = None
    least: float = float("-inf")
    most: float = float("inf")


def incompatible(deployed: Manifest, candidate: Manifest) -> list[str]:
    """One sentence a difference that would break callers of the deployed version; empty: there is none."""
    found = _inputs(fields_of(deployed), fields_of(candidate))
    old, new = answers_of(deployed), answers_of(candidate)
    for name, shape in old.items():
        if name not in new:
            found.append(f"the output {name!r} is gone")
        elif new[name] != shape:
            found.append(f"the output {name!r} was {shape} and is {new[name]}")
    if deployed.signature.batched != candidate.signature.batched:
        found.append("one of them takes batches, the other does not")
    return found


def check_comparable(manifest: Manifest) -> None:
    """Raises Unsupported for a model whose answers cannot be compared with those of another version."""
    if manifest.runtime == "language":
        raise Unsupported(
            f"{manifest.name} is a language model: two good texts differ, so a shadow's answers would say nothing; use a "
            f"rollout, which counts errors and slow calls: pelton rollout start {manifest.name}:VERSION"
        )


def fields_of(manifest: Manifest) -> dict[str, Field]:
    """Everything that callers send, by name."""
    fields: dict[str, Field] = {}
    filled: set[str] = set()
    for block in manifest.preprocess:
        filled.update(pre.fills(block))
        if isinstance(block, pre.Table):
            fields.update({column.name: _column(column) for column in block.columns})
        else:
            fields.update({name: Field(type(block).__name__.lower()) for name in pre.field_names(block)})
    for spec in manifest.signature.inputs:
        if spec.name not in filled:
            fields[spec.name] = Field(f"tensor {spec.datatype}", shape=spec.shape)
    return fields


def answers_of(manifest: Manifest) -> dict[str, str]:
    """Everything that callers may read, by name: what it is, in words."""
    answers = {spec.name: _tensor(spec) for spec in manifest.signature.outputs}
    for block in manifest.postprocess:
        answers[block.field] = type(block).__name__.lower()
    return answers


def _inputs(old: dict[str, Field], new: dict[str, Field]) -> list[str]:
    found = []
    for name, field in old.items():
        if name not in new:
            found.append(f"the input {name!r} is not taken any more")
        else:
            found += _field(name, field, new[name])
    for name, field in new.items():
        if name not in old and field.required:
            found.append(f"the input {name!r} is new and must be sent")
    return found


def _field(name: str, old: Field, new: Field) -> list[str]:
    if old.kind != new.kind:
        return [f"the input {name!r} was {old.kind} and is {new.kind}"]
    found = []
    if new.required and not old.required:
        found.append(f"the input {name!r} must be sent now")
    if new.values and not old.values:
        found.append(f"the input {name!r} takes {len(new.values)} values only")
    elif new.values and old.values - new.values:
        gone = ", ".join(repr(value) for value in sorted(old.values - new.values)[:3])
        found.append(f"the input {name!r} does not take {gone} any more")
    if new.least > old.least or new.most < old.most:
        found.append(f"the input {name!r} takes a smaller range")
    if old.shape is not None and new.shape is not None and not _takes(new.shape, old.shape):
        found.append(f"the input {name!r} was {list(old.shape)} and is {list(new.shape)}")
    return found


def _takes(wider: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(wider) == len(shape) and all(a in (-1, b) for a, b in zip(wider, shape, strict=True))


def _column(column: pre.Column) -> Field:
    # an unknown value that has a place of its own is taken: then the list of values binds nobody
    values = frozenset() if column.unknown is not None else frozenset(column.values)
    least = column.minimum if column.minimum is not None else float("-inf")
    most = column.maximum if column.maximum is not None else float("inf")
    return Field(column.type, column.required and column.default is None, values, None, least, most)


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.datatype}{list(spec.shape)}"
