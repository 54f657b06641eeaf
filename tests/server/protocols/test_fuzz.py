"""Inventions of all kinds against the parsers: every answer is well-formed, none is a 5xx, and nothing hangs.

The examples are the same in every run (derandomized); PELTON_FUZZ=N tries N of each, at random.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pelton.testing import EchoModel
from pelton.types import DATATYPES, Signature, TensorSpec

SCHEMA = json.loads(Path(__file__).with_name("oip_schema.json").read_text())
VALIDATE = {
    kind: jsonschema.Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": SCHEMA["$defs"]}).validate
    for kind in ("inference_request", "inference_response", "error_response")
}

TRIES = int(os.environ.get("PELTON_FUZZ", "0"))


def fuzz(examples: int) -> Any:
    return settings(
        max_examples=TRIES or examples,
        derandomize=not TRIES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


NAMES = [
    "x",
    "y",
    "m",
    "inputs",
    "instances",
    "data",
    "name",
    "shape",
    "datatype",
    "parameters",
    "outputs",
    "id",
    "b64",
]
NUMBERS = [0, 1, 3, -1, 255, 256, 2**31, 2**63, 2**64, 10**400, 0.5, 1e39, 1e308, -0.0, 4096, 10**9]
LEAVES = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([*NAMES, *DATATYPES, "", "AAAA", "\x00"]), st.text(max_size=8),
)  # fmt: skip
KEYS = st.one_of(st.sampled_from(NAMES), st.text(max_size=4))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=20,
)

VALID: dict[str, list[Any]] = {
    "/predict/m": [{"x": [1.0, 2.0, 3.0]}, {"data": [1, 2, 3]}, {"x": "AACAPwAAAEAAAEBA"}],
    "/v1/models/m:predict": [{"instances": [[1.0, 2.0, 3.0]]}, {"instances": [{"x": [1, 2, 3]}] * 2}, {"inputs": {"x": [[1, 2, 3]]}}],
    "/v2/models/m/infer": [
        {"id": "1", "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]}]},
        {
            "inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [[1, 2, 3], [4, 5, 6]], "parameters": {"a": 1}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
            "parameters": {"binary_data_output": False, "timeout": 5_000_000, "priority": 2},
        },
    ],
}  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside `value`."""
    found = [path]
    if isinstance(value, dict):
        found += [place for key, inner in value.items() for place in places(inner, (*path, key))]
    elif isinstance(value, list):
        found += [place for i, inner in enumerate(value) for place in places(inner, (*path, i))]
    return found


@st.composite
def mutated(draw: st.DrawFn, path: str) -> Any:
    """A valid request with one to three of its values replaced, removed, doubled or moved."""
    value = json.loads(json.dumps(draw(st.sampled_from(VALID[path]))))
    for _ in range(draw(st.integers(1, 3))):
        ways = [place for place in places(value) if place]
        if not ways:
            return draw(TREES)
        *way, last = draw(st.sampled_from(ways))
        parent = value
        for step in way:
            parent = parent[step]
        kind = draw(st.sampled_from(["replace", "remove", "double", "wrap"]))
        if kind == "replace":
            parent[last] = draw(TREES)
        elif kind == "remove":
            del parent[last]
        elif kind == "wrap":
            parent[last] = [parent[last]]
        elif isinstance(parent, list):
            parent.append(parent[last])
        else:
            parent[draw(KEYS)] = parent[last]
    return value


def without_nulls(request: Any) -> Any:
    """Some clients send null for what is optional and not there; the specification does not know it."""
    optional = ("id", "parameters", "outputs")
    kept = {key: value for key, value in request.items() if value is not None or key not in optional}
    for key in ("inputs", "outputs"):
        if key in kept:
            kept[key] = [{k: v for k, v in one.items() if v is not None or k != "parameters"} for one in kept[key]]
    return kept


def check(path: str, answer: Any) -> None:
    """Whatever was asked: an answer of the protocol, or a 4xx with a short reason."""
    assert answer.complete
    if answer.status == 200:
        if path.endswith("/infer"):
            length = int(answer.headers.get("inference-header-content-length", len(answer.body)))
            VALIDATE["inference_response"](json.loads(answer.body[:length]))
        else:
            assert isinstance(answer.json, dict)
        return
    assert 400 <= answer.status < 500 or answer.status == 501, (answer.status, answer.body)
    VALIDATE["error_response"](answer.json)
    assert len(answer.body) < 2500


def _packed(values: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def some_server(make_server: Any, **limits: Any) -> Any:
    server = make_server(**limits)
    server.serve()
    return server


@pytest.mark.parametrize("path", VALID)
def test_any_json_gets_an_answer_of_the_protocol(make_server: Any, path: str) -> None:
    client = some_server(make_server).connect()

    @fuzz(150)
    @given(TREES)
    def run(value: Any) -> None:
        check(path, client.ask(path, value))
        client.transport.out.clear()

    run()


@pytest.mark.parametrize("path", VALID)
def test_a_request_with_some_values_exchanged_gets_an_answer_of_the_protocol(make_server: Any, path: str) -> None:
    client = some_server(make_server).connect()

    @fuzz(250)
    @given(mutated(path))
    def run(value: Any) -> None:
        answer = client.ask(path, value)
        client.transport.out.clear()
        check(path, answer)
        if path.endswith("/infer") and answer.status == 200:
            VALIDATE["inference_request"](without_nulls(value))

    run()


@pytest.mark.parametrize("path", VALID)
def test_damaged_bytes_of_a_body_get_an_answer_of_the_protocol(make_server: Any, path: str) -> None:
    client = some_server(make_server).connect()
    bodies = [json.dumps(body).encode() for body in VALID[path]]

    @fuzz(250)
    @given(
        st.sampled_from(bodies), st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=4)), min_size=1, max_size=3)
    )
    def run(body: bytes, damage: list[tuple[int, bytes]]) -> None:
        for where, what in damage:
            where %= len(body) + 1
            body = body[:where] + what + body[where + 1 :]
        check(path, client.ask(path, body))
        client.transport.out.clear()

    run()


@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BOOL", "INT64", "BF16", "FP16"])
def test_any_binary_body_gets_an_answer_of_the_protocol(make_server: Any, datatype: str) -> None:
    server = make_server()
    x, y = (TensorSpec(n, datatype, (-1,)) for n in "xy")
    server.serve(model=EchoModel(Signature((x,), (y,))))
    client = server.connect()
    sizes = st.one_of(st.integers(-2, 40), LEAVES)

    @fuzz(150)
    @given(
        st.lists(st.integers(-1, 6), max_size=3),
        sizes,
        st.one_of(st.binary(max_size=40), st.lists(st.binary(max_size=3)).map(_packed)),
        st.one_of(st.just(None), st.integers(-3, 3), st.integers(0, 300)),
    )  # fmt: skip
    def run(shape: list[int], size: Any, raw: bytes, length: int | None) -> None:
        if length is None:
            size = len(raw)
        head = json.dumps(
            {
                "inputs": [
                    {"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        told = len(head) + (length or 0) if length is None or length < 4 else length
        answer = client.ask("/v2/models/m/infer", head + raw, f"Inference-Header-Content-Length: {told}\r\n")
        client.transport.out.clear()
        check("/infer", answer)

    run()


# ---- HTTP


def conversation(rng: random.Random) -> bytes:
    """Some requests in a row: plain, chunked, with upgrades, with expectations, bad ones at times."""
    parts = []
    for _ in range(rng.randint(1, 6)):
        body = json.dumps({"x": [rng.randint(0, 9), 2, 3]}).encode()
        kind = rng.choice(["plain", "plain", "chunked", "get", "upgrade", "close", "other", "1.0"])
        head = b"POST /predict/m HTTP/1.1\r\nHost: a\r\n"
        if kind == "chunked":
            cut = rng.randint(1, len(body) - 1)
            chunks = b"".join(b"%x;e=1\r\n%b\r\n" % (len(c), c) for c in (body[:cut], body[cut:]))
            parts.append(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nX-Request-Id: t\r\n\r\n")
        elif kind == "get":
            parts.append(b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n")
        elif kind == "other":
            parts.append(b"POST /predict/n HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
        else:
            extra = {"upgrade": b"Connection: Upgrade\r\nUpgrade: h2c\r\n", "close": b"Connection: close\r\n"}.get(
                kind, b""
            )
            if kind == "1.0":
                head = head.replace(b"HTTP/1.1", b"HTTP/1.0")
            parts.append(head + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return b"".join(parts)


def outcome(server: Any, pieces: list[bytes]) -> list[tuple[int, bytes]]:
    """What a client reads; its own clock and ids left out."""
    client = server.connect()
    client.send(*pieces)
    answers = client.answers
    server.clients.remove(client)
    if not client.transport.closed:
        client.hang_up()
    return [(a.status, a.body) for a in answers]


def split(data: bytes, rng: random.Random) -> list[bytes]:
    cuts = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(rng.randint(0, 8)))})
    return [data[a:b] for a, b in itertools.pairwise(cuts)]


def test_the_same_bytes_give_the_same_answers_wherever_they_are_cut(make_server: Any) -> None:
    server = some_server(make_server)

    @fuzz(200)
    @given(st.integers(0, 2**32))
    def run(seed: int) -> None:
        rng = random.Random(seed)
        data = conversation(rng)
        whole = outcome(server, [data])
        assert outcome(server, split(data, rng)) == whole
        if seed % 8 == 0:
            assert outcome(server, [data[i : i + 1] for i in range(len(data))]) == whole

    run()


def test_damaged_requests_get_well_formed_answers_that_do_not_depend_on_the_cuts(make_server: Any) -> None:
    server = some_server(make_server)

    @fuzz(400)
    @given(st.integers(0, 2**32))
    def run(seed: int) -> None:
        rng = random.Random(seed)
        data = bytearray(conversation(rng))
        for _ in range(rng.randint(1, 4)):
            where = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[where] = rng.choice(b"\r\n\0 :;0aZ\xff\t,")
            elif kind == 1:
                del data[where : where + rng.randint(1, 5)]
            elif kind == 2:
                data[where:where] = rng.choice(
                    [b"\r\n", b"\n", b"\r", b" ", b"\0", b"0", b"Content-Length: 3\r\n", b"\r\n\r\n"]
                )
            else:
                data[where:where] = data[where : where + 20]
            if not data:
                data += b"x"
        whole = outcome(server, [bytes(data)])
        for status, _ in whole:
            assert status < 500 or status in (501, 505)
        assert outcome(server, split(bytes(data), rng)) == whole

    run()


def test_any_bytes_get_well_formed_answers(make_server: Any) -> None:
    server = some_server(make_server)

    @fuzz(200)
    @given(st.lists(st.binary(max_size=60), max_size=4))
    def run(pieces: list[bytes]) -> None:
        for status, _ in outcome(server, pieces):
            assert status in (200, 400, 404, 501, 505)

    run()
