"""Reads what an import must know about an ONNX file without the `onnx` package and without loading weights.

ONNX is protobuf: a message is a sequence of (field number, wire type, value). Only the fields used here are looked
at; the numbers are those of onnx.proto (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from pelton.errors import SourceInvalid

# an operator that hands NaN on to a tree, as it came
_TRANSPARENT: Final = frozenset({"Identity", "Cast", "Concat", "Reshape", "Scaler", "FeatureVectorizer", "Flatten"})
_NESTING_LIMIT: Final = 32

Message = memoryview


class Node(msgspec.Struct, frozen=True):
    """One operator of the main graph. `kind` is `domain::type`, or the type alone in the standard domain."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class OnnxFile(msgspec.Struct, frozen=True):
    """`external`: files with weights beside the model, relative to it. `metadata`: what the exporter wrote down."""

    external: tuple[str, ...]
    metadata: dict[str, str]
    nodes: tuple[Node, ...]

    @property
    def has_trees(self) -> bool:
        return any(_is_tree(node) for node in self.nodes)

    def reads_nan(self, name: str) -> bool:
        """Whether NaN in the input `name` reaches nothing but tree ensembles, which read it as "missing"."""
        todo, found = [name], False
        seen = {name}
        while todo:
            tensor = todo.pop()
            for node in self.nodes:
                if tensor not in node.inputs:
                    continue
                if _is_tree(node):
                    found = True
                elif node.kind.rpartition("::")[2] in _TRANSPARENT:
                    todo += [output for output in node.outputs if output not in seen]
                    seen.update(node.outputs)
                else:
                    return False
        return found


def read(path: Path) -> OnnxFile:
    """Raises SourceInvalid where the file is no ONNX model."""
    try:
        with path.open("rb") as file:
            # closed with its last view: views still stand in the frames of an error
            return _model(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as error:
        raise SourceInvalid(f"{path}: {error.strerror}") from None
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise SourceInvalid(f"{path} is no ONNX model, or was cut short ({error})") from None


def _is_tree(node: Node) -> bool:
    return node.kind.startswith("ai.onnx.ml::TreeEnsemble")


def _model(view: Message) -> OnnxFile:
    external: dict[str, None] = {}
    metadata: dict[str, str] = {}
    nodes: list[Node] = []
    for field, value in _fields(view):
        if field == 7:
            _graph(value, external, nodes, 0)
        elif field == 14:
            key, text = _pair(value)
            metadata[key] = text
        elif field == 25:  # functions: their nodes may hold constants
            _function(value, external)
    return OnnxFile(tuple(external), metadata, tuple(nodes))


def _graph(view: Message, external: dict[str, None], nodes: list[Node] | None, depth: int) -> None:
    if depth > _NESTING_LIMIT:
        raise ValueError("graphs are nested too deep")
    for field, value in _fields(view):
        if field == 1:
            node = _node(value, external, depth)
            if nodes is not None:
                nodes.append(node)
        elif field == 5:
            _tensor(value, external)
        elif field == 15:  # sparse: values and indices are tensors
            for part, tensor in _fields(value):
                if part in (1, 2):
                    _tensor(tensor, external)


def _function(view: Message, external: dict[str, None]) -> None:
    for field, value in _fields(view):
        if field == 7:
            _node(value, external, 0)


def _node(view: Message, external: dict[str, None], depth: int) -> Node:
    inputs, outputs, kind, domain = [], [], "", ""
    for field, value in _fields(view):
        if field == 1:
            inputs.append(_text(value))
        elif field == 2:
            outputs.append(_text(value))
        elif field == 4:
            kind = _text(value)
        elif field == 5:
            _attribute(value, external, depth)
        elif field == 7:
            domain = _text(value)
    return Node(f"{domain}::{kind}" if domain else kind, tuple(inputs), tuple(outputs))


def _attribute(view: Message, external: dict[str, None], depth: int) -> None:
    for field, value in _fields(view, wanted=frozenset({5, 6, 10, 11})):
        if field in (5, 10):
            _tensor(value, external)
        else:
            _graph(value, external, None, depth + 1)


def _tensor(view: Message, external: dict[str, None]) -> None:
    for field, value in _fields(view, wanted=frozenset({13})):
        if field == 13:
            key, text = _pair(value)
            if key == "location":
                external[text] = None


def _pair(view: Message) -> tuple[str, str]:
    found = {field: _text(value) for field, value in _fields(view)}
    return found.get(1, ""), found.get(2, "")


def _text(value: Message) -> str:
    return bytes(value).decode()


def _fields(view: Message, wanted: frozenset[int] | None = None) -> Iterator[tuple[int, Message]]:
    """The length-delimited fields of a message, in order; numbers are stepped over."""
    at, end = 0, len(view)
    while at < end:
        key, at = _varint(view, at)
        wire = key & 7
        if wire == 0:
            _, at = _varint(view, at)
        elif wire == 1:
            at += 8
        elif wire == 5:
            at += 4
        elif wire == 2:
            size, at = _varint(view, at)
            if at + size > end:
                raise ValueError("a field is longer than the file")
            if wanted is None or key >> 3 in wanted:
                yield key >> 3, view[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
    if at != end:
        raise ValueError("the last field is cut short")


def _varint(view: Message, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
