"""Small surgery on converted ONNX graphs. Works on the objects that a converter made; imports no library."""

from __future__ import annotations

from typing import Any


def keep_one_output(proto: Any, position: int, name: str) -> Any:
    """The model with only the output at `position` (negative: from the end), called `name`; what fed the others is cut."""
    graph = proto.graph
    kept = graph.output[min(position, len(graph.output) - 1)]
    old = kept.name
    del_others = [output for output in graph.output if output.name != old]
    for output in del_others:
        graph.output.remove(output)
    if any(name in (*node.input, *node.output) for node in graph.node):
        name = old
    for node in graph.node:
        _rename(node.input, old, name)
        _rename(node.output, old, name)
    graph.output[0].name = name
    _cut(graph, {name})
    return proto


def _rename(names: Any, old: str, new: str) -> None:
    for i, name in enumerate(names):
        if name == old:
            names[i] = new


def _cut(graph: Any, needed: set[str]) -> None:
    """Drops nodes and weights that nothing needs. Nodes are in topological order, so one pass from the end will do."""
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            if any(attribute.HasField("g") for attribute in node.attribute):
                return  # a subgraph may read any name: leave everything in
    nodes = list(reversed(kept))
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(weights)
