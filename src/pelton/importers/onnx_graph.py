"""Small surgery on converted ONNX graphs. Works on the objects that a converter made; imports no library."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


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


def round_thresholds_down(proto: Any, splits: Iterable[tuple[int, float]]) -> Any:
    """Makes trees exact for float32 inputs. `splits`: (feature, threshold) of the original, in float64.

    x <= t holds for a float32 x exactly where x <= the largest float32 that is not above t. A converter that takes the
    nearest float32 sends the x between the two the other way."""
    above: set[tuple[int, float]] = set()
    rest: set[tuple[int, float]] = set()
    for feature, threshold in splits:
        nearest = float(np.float32(threshold))
        (above if nearest > threshold else rest).add((feature, nearest))
    above -= rest  # one float32 stands for several thresholds: leave it, the comparison will tell
    for node in proto.graph.node:
        if not node.op_type.startswith("TreeEnsemble"):
            continue
        found = {attribute.name: attribute for attribute in node.attribute}
        features, values = found["nodes_featureids"].ints, found["nodes_values"].floats
        modes = found["nodes_modes"].strings
        for i, (feature, mode) in enumerate(zip(features, modes, strict=True)):
            if mode == b"BRANCH_LEQ" and (feature, values[i]) in above:
                values[i] = float(np.nextafter(np.float32(values[i]), np.float32(-np.inf)))
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
