"""The inputs and their encodings. Input i of a model is the same in every process: answers are checked against ref.json.

Model T: 30 floats. Model V: a 96x96x3 uint8 picture. Kinds of body:
plain    {"data": [floats]} or {"data": "<base64>"}
batch1   the same inside a list: {"data": [...]} holds a batch of one (BentoML)
v2       Open Inference Protocol v2 JSON (V: datatype BYTES, base64)
v2array  the same with V as an array of 27,648 numbers (datatype UINT8), as the protocol has it for a UINT8 input
v2bin    v2 with the binary tensor extension (V: datatype UINT8)
rawbin   the raw bytes of the tensor
"""

import base64
import json
import random
import struct

JSON = {"Content-Type": "application/json"}
OCTETS = {"Content-Type": "application/octet-stream"}
SHAPES = {"T": [30], "V": [96, 96, 3]}
DATATYPES = {"T": "FP32", "V": "UINT8"}
# Bodies that wrk sends round-robin. Trees branch on the data: a few rows that repeat train the branch predictor.
DISTINCT = {"T": 4096, "V": 16}


def item(model, i=0):
    rng = random.Random(i)
    if model == "T":
        return [round(rng.gauss(0, 1), 4) for _ in range(30)]
    return rng.randbytes(96 * 96 * 3)


def raw_bytes(model, value):
    """The tensor of one item: little-endian, row-major."""
    return value if model == "V" else struct.pack("<30f", *value)


def tensor(model, rows=1):
    return {"name": "x", "shape": [rows, *SHAPES[model]], "datatype": DATATYPES[model]}


def binary(model, items):
    """Body and headers of one v2 request with binary tensors for several items."""
    content = b"".join(raw_bytes(model, value) for value in items)
    described = tensor(model, len(items)) | {"parameters": {"binary_data_size": len(content)}}
    head = json.dumps({"inputs": [described]}).encode()
    return head + content, {**OCTETS, "Inference-Header-Content-Length": str(len(head))}


def encode(model, kind, i=0):
    """Body and headers of request i."""
    value = item(model, i)
    if kind == "rawbin":
        return raw_bytes(model, value), OCTETS
    if kind == "v2bin":
        return binary(model, [value])
    data = value if model == "T" else base64.b64encode(value).decode()
    if kind == "plain":
        body = {"data": data}
    elif kind == "batch1":
        body = {"data": [data]}
    elif model == "T" or kind == "v2array":
        body = {"inputs": [tensor(model) | {"data": list(value)}]}
    else:
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "BYTES", "data": [data]}]}
    return json.dumps(body).encode(), JSON


def decode_answer(raw):
    """The row of probabilities in any server's answer: its first output."""
    answer = json.loads(raw)
    if isinstance(answer, dict):
        answer = answer["outputs"][0]["data"] if "outputs" in answer else next(iter(answer.values()))
    return answer[0] if isinstance(answer[0], list) else answer
