"""No row ever reaches the wrong caller: random calls, sizes, hang-ups and faults, all at once."""

from __future__ import annotations

import asyncio
import json
import random
import struct
from collections import Counter
from typing import Any

import pytest

from pelton.testing import FaultyModel
from pelton.types import Signature, TensorSpec

POISON = 1_000_000_000
SIGNATURE = Signature((TensorSpec("x", "INT64", (2,)),), (TensorSpec("y", "INT64", (2,)),))


class Caller:
    """One connection that asks one thing after the other and keeps what it expects."""

    def __init__(self, server: Any, rng: random.Random) -> None:
        self.client = server.connect()
        self.rng = rng
        self.expected: list[tuple[str, list[list[int]] | None]] = []
        self.left = False

    def ask(self, numbers: Any) -> None:
        rng = self.rng
        rows = [[next(numbers), rng.randint(0, 9)] for _ in range(rng.choice([1, 1, 1, 2, 5, 40]))]
        poisoned = rng.random() < 0.05
        if poisoned:
            rows[rng.randrange(len(rows))][0] = POISON
        form = (
            rng.choice(["native", "v1", "v2", "binary", "bad"])
            if len(rows) == 1
            else rng.choice(["v1", "v2", "binary"])
        )
        self.expected.append((form, None if poisoned or form == "bad" else rows))
        self.client.connection.data_received(request(form, rows))

    def leave(self) -> None:
        self.left = True
        self.client.transport.closed = True
        self.client.connection.connection_lost(None)

    def check(self) -> int:
        """Every answer is its own; all are there unless this caller has left."""
        answers = self.client.answers
        assert len(answers) == len(self.expected) or (self.left and len(answers) < len(self.expected))
        for answer, (form, rows) in zip(answers, self.expected, strict=False):
            assert answer.complete
            if rows is None:
                assert answer.status == (400 if form == "bad" else 500), answer.body
            else:
                assert answer.status == 200, answer.body
                assert read(form, answer) == rows
        return len(answers)


def request(form: str, rows: list[list[int]]) -> bytes:
    flat = [value for row in rows for value in row]
    one: dict[str, Any] = {"name": "x", "shape": [len(rows), 2], "datatype": "INT64"}
    extra = ""
    if form == "native":
        path, body = "/predict/m", json.dumps({"x": rows[0]}).encode()
    elif form == "bad":
        path, body = "/predict/m", json.dumps({"x": [*rows[0], 0]}).encode()
    elif form == "v1":
        path, body = "/v1/models/m:predict", json.dumps({"instances": rows}).encode()
    elif form == "v2":
        path, body = "/v2/models/m/infer", json.dumps({"inputs": [one | {"data": flat}]}).encode()
    else:
        one["parameters"] = {"binary_data_size": 8 * len(flat)}
        head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
        extra = f"Inference-Header-Content-Length: {len(head)}\r\n"
        path, body = "/v2/models/m/infer", head + struct.pack(f"<{len(flat)}q", *flat)
    return f"POST {path} HTTP/1.1\r\nHost: a\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


def read(form: str, answer: Any) -> list[list[int]]:
    if form == "native":
        return [answer.json["y"]]
    if form == "v1":
        return answer.json["predictions"]
    if form == "v2":
        flat = answer.json["outputs"][0]["data"]
    else:
        raw = answer.body[int(answer.headers["inference-header-content-length"]) :]
        flat = list(struct.unpack(f"<{len(raw) // 8}q", raw))
    return [flat[i : i + 2] for i in range(0, len(flat), 2)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("where", ["inline", "thread"])
def test_every_row_comes_back_to_the_one_who_sent_it(make_server: Any, seed: int, where: str) -> None:
    rng = random.Random(seed)
    server = make_server(pipelined=4)
    model = FaultyModel([POISON], SIGNATURE)
    curve = ((1, 1e-5), (16, 1e-4)) if where == "inline" else ((1, 1e-3), (16, 2e-3))
    server.serve(model=model, curve=curve, slo=_hour())
    numbers = iter(range(POISON))
    callers = [Caller(server, rng) for _ in range(24)]
    gone: list[Caller] = []

    async def traffic() -> None:
        for _ in range(400):
            for caller in rng.sample(callers, rng.randint(1, 6)):
                caller.ask(numbers)
            if rng.random() < 0.1:
                leaver = rng.choice(callers)
                leaver.leave()
                callers.remove(leaver)
                gone.append(leaver)
                callers.append(Caller(server, rng))
            if rng.random() < 0.7:
                await asyncio.sleep(0)

    server.loop.run_until_complete(traffic())
    server.settle()
    answered = sum(caller.check() for caller in callers + gone)
    asked = sum(len(caller.expected) for caller in callers + gone)
    assert asked > 1000
    assert len(gone) > 10
    assert any(len(batch) > 1 for batch in model.batches), "nothing ran together, so nothing was proved"

    # One record per call. Waiting requests of a client that left were never calls.
    records = server.folded()
    kinds = Counter(record.error for record in records)
    assert sum(kinds.values()) <= asked
    assert sum(kinds.values()) - kinds["cancelled"] == answered
    assert kinds["cancelled"] <= len(gone)
    assert set(kinds) == {"", "invalid", "model_failed", "cancelled"}
    assert server.engine.in_flight == 0


def _hour() -> Any:
    from pelton.packages.manifest import Slo

    return Slo(3_600_000)


def test_one_poisoned_caller_among_eight_fails_alone(make_server: Any) -> None:
    server = make_server()
    model = FaultyModel([POISON], SIGNATURE)
    server.serve(model=model)
    clients = [server.connect() for _ in range(8)]

    async def together() -> None:
        for i, client in enumerate(clients):
            client.connection.data_received(request("native", [[POISON if i == 3 else i, 0]]))

    server.loop.run_until_complete(together())
    answers = [client.answer for client in clients]
    assert [a.status for a in answers] == [200, 200, 200, 500, 200, 200, 200, 200]
    assert [a.json["y"][0] for a in answers if a.status == 200] == [0, 1, 2, 4, 5, 6, 7]
    assert len(model.batches[0]) == 8


def test_a_caller_that_leaves_its_place_in_the_queue_does_not_run(make_server: Any) -> None:
    server = make_server()
    model = FaultyModel([POISON], SIGNATURE)
    server.serve(model=model)
    clients = [server.connect() for _ in range(4)]

    async def together() -> None:
        for i, client in enumerate(clients):
            client.connection.data_received(request("native", [[i, 0]]))
        clients[1].connection.connection_lost(None)

    server.loop.run_until_complete(together())
    assert [client.answer.json["y"][0] for client in (clients[0], clients[2], clients[3])] == [0, 2, 3]
    assert [row[0] for batch in model.batches for row in batch.tolist()] == [0, 2, 3]
    assert sorted(record.error for record in server.folded()) == ["", "", "", "cancelled"]
