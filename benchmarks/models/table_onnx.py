"""Writes an ONNX file whose run fails for a whole batch in which one row is out of range, without the package onnx.

y = (table[i] @ identity) @ identity ...: the row i of a table of 16, after products that take their time, so that calls
wait and are batched. ONNX Runtime refuses a batch with an index of 16 or more. Numbers are the fields of onnx.proto.
"""

import numpy as np

ROWS, WIDTH, PRODUCTS = 16, 1024, 40
FLOAT, INT64 = 1, 7


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


def node(kind, inputs, output):
    named = b"".join(field(1, name) for name in inputs)
    return field(1, named + field(2, output) + field(4, kind))


def weights(name, array):
    dims = b"".join(field(1, size) for size in array.shape)
    return field(5, dims + field(2, FLOAT) + field(8, name) + field(9, array.tobytes()))


def value(number, name, element, shape):
    dims = b"".join(field(1, field(2, size) if isinstance(size, str) else field(1, size)) for size in shape)
    return field(number, field(1, name) + field(2, field(1, field(1, element) + field(2, dims))))


def write(path):
    """The model: `i` INT64 [n] -> `y` FP32 [n, WIDTH]."""
    steps = [node("Gather", ["table", "i"], "y0")]
    steps += [node("MatMul", [f"y{k}", "identity"], f"y{k + 1}") for k in range(PRODUCTS - 1)]
    steps += [node("MatMul", [f"y{PRODUCTS - 1}", "identity"], "y")]
    graph = b"".join(steps) + field(2, "table") + weights("table", table())
    graph += weights("identity", np.eye(WIDTH, dtype="<f4"))
    graph += value(11, "i", INT64, ["n"]) + value(12, "y", FLOAT, ["n", WIDTH])
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17)))
