"""Writes an ONNX file whose run fails for a whole batch in which one row is out of range, without the package onnx.

y = table[i] + 0 * max(many random numbers): the row i of a table of 16. Making the numbers takes some milliseconds for
any batch, so that calls wait and are batched. ONNX Runtime refuses a batch with an index of 16 or more. The numbers in
this file are the fields of onnx.proto.
"""

import numpy as np

ROWS, WIDTH, NUMBERS = 16, 8, 400_000
FLOAT, INT64 = 1, 7
INTS = 7  # AttributeProto.type


def table():
    return (np.arange(ROWS)[:, None] * 1000 + np.arange(WIDTH)).astype("<f4")


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number, value):
    """One field: an integer, or bytes, text, or a nested message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def node(kind, inputs, output, attribute=b""):
    named = b"".join(field(1, name) for name in inputs)
    return field(1, named + field(2, output) + field(4, kind) + attribute)


def integers(name, values):
    """An attribute of a node."""
    return field(5, field(1, name) + b"".join(field(8, number) for number in values) + field(20, INTS))


def weights(name, array):
    dims = b"".join(field(1, size) for size in array.shape)
    return field(5, dims + field(2, FLOAT) + field(8, name) + field(9, array.tobytes()))


def value(number, name, element, shape):
    dims = b"".join(field(1, field(2, size) if isinstance(size, str) else field(1, size)) for size in shape)
    return field(number, field(1, name) + field(2, field(1, field(1, element) + field(2, dims))))


def write(path):
    """The model: `i` INT64 [n] -> `y` FP32 [n, WIDTH]."""
    steps = [
        node("Gather", ["table", "i"], "rows"),
        node("RandomNormal", [], "numbers", integers("shape", [NUMBERS])),
        node("ReduceMax", ["numbers"], "largest"),
        node("Mul", ["largest", "zero"], "nothing"),
        node("Add", ["rows", "nothing"], "y"),
    ]
    graph = b"".join(steps) + field(2, "table") + weights("table", table()) + weights("zero", np.zeros(1, "<f4"))
    graph += value(11, "i", INT64, ["n"]) + value(12, "y", FLOAT, ["n", WIDTH])
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17)))
