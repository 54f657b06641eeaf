"""Calls are shared with a candidate and copied to a shadow, over the whole path: bytes in, bytes out, models that fake."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from pelton.deployments import Shadow
from pelton.engine import Served
from pelton.packages import Manifest, Package
from pelton.packages import preprocess as pre
from pelton.replicas import Replica
from pelton.rollout import Pairs
from pelton.runtimes.contract import LoadedModel
from pelton.scheduling import LatencyModel
from pelton.server.control import splits
from pelton.server.control.splits import LiveMirror, LiveSplit
from pelton.testing import EchoModel, FaultyModel
from pelton.types import Array, Signature, TensorSpec

X = Signature((TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (3,)),))
CURVE = ((1, 1e-5), (32, 1e-4))
STABLE, CANDIDATE = "a" * 64, "b" * 64


class Shifted(EchoModel):
    """Answers a little more than it was given."""

    def __init__(self, by: float, from_: float = -1e9) -> None:
        super().__init__(X)
        self.by, self.from_ = by, from_

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        x = inputs[0]
        return [np.where(x >= self.from_, x + np.float32(self.by), x)]


class Watching(EchoModel):
    """Notes what had been answered when it ran."""

    def __init__(self, look: Callable[[], object]) -> None:
        super().__init__(X)
        self.seen: list[object] = []
        self._look = look

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        self.seen.append(self._look())
        return super().run(inputs)


@pytest.fixture
def add(server: Any, tmp_path: Any) -> Callable[..., Served]:
    """add(model, version): another version of "m", beside the one that answers."""

    def made(model: LoadedModel, version: str = CANDIDATE, current: bool = False, **manifest: Any) -> Served:
        settings: dict[str, Any] = {"name": "m", "runtime": "onnx", "file": "m.onnx", "signature": model.signature}
        package = Package(tmp_path, Manifest(**settings, **manifest), version)
        served: Served = server.engine.serve(Replica(package, model, server.clock), LatencyModel(CURVE), current)
        return served

    return made


def mirror(server: Any, shadow: Served, share: float = 1.0, **more: Any) -> Pairs:
    """From now on the answering version's calls are copied."""
    pairs = Pairs()
    current = server.engine.directory.find("m", "")

    def make() -> LiveMirror:
        return LiveMirror(server.engine, current, shadow, Shadow(shadow.version, share, **more), pairs)

    current.mirror = server.clients[0].do(make) if server.clients else server.connect().do(make)
    return pairs


def ask(client: Any, *values: float, headers: str = "") -> Any:
    return client.ask("/predict/m", {"x": list(values) or [1.0, 2.0, 3.0]}, headers)


# ---- sharing


def test_calls_are_shared_by_weight_and_records_name_the_revision(server: Any, add: Any) -> None:
    stable, candidate = server.engine.directory.find("m", ""), add(EchoModel(X))
    stable.split = LiveSplit("r", 0.25, 7, stable, candidate)
    client = server.connect()
    answers = Counter(ask(client).headers["pelton-version"] for _ in range(400))
    assert set(answers) == {STABLE[:12], CANDIDATE[:12]}
    assert 60 <= answers[CANDIDATE[:12]] <= 140, "0.25 of 400, five deviations wide"
    records = server.folded()
    assert {record.route for record in records} == {7}
    assert {record.key for record in records} == {0}
    assert Counter(record.version[:12] for record in records) == answers


def test_a_caller_with_a_key_is_treated_alike_and_stays_with_the_candidate_as_it_grows(server: Any, add: Any) -> None:
    stable, candidate = server.engine.directory.find("m", ""), add(EchoModel(X))
    client = server.connect()
    chosen: dict[float, set[str]] = {}
    for weight in (0.1, 0.3, 0.9):
        stable.split = LiveSplit("r", weight, 7, stable, candidate)
        by_key: dict[str, set[str]] = {}
        for key in [f"user{n}" for n in range(60)] * 2:
            by_key.setdefault(key, set()).add(ask(client, headers=f"pelton-key: {key}\r\n").headers["pelton-version"])
        assert all(len(versions) == 1 for versions in by_key.values())
        chosen[weight] = {key for key, versions in by_key.items() if versions == {CANDIDATE[:12]}}
    assert chosen[0.1] <= chosen[0.3] <= chosen[0.9]
    assert 0 < len(chosen[0.3]) < len(chosen[0.9])
    assert len({record.key for record in server.folded()}) == 60


def test_a_caller_that_names_a_version_gets_it_and_is_no_evidence(server: Any, add: Any) -> None:
    stable, candidate = server.engine.directory.find("m", ""), add(EchoModel(X))
    stable.split = LiveSplit("r", 0.5, 7, stable, candidate)
    client = server.connect()
    for version in (STABLE, CANDIDATE[:12]):
        answer = client.ask(f"/predict/m/{version}", {"x": [1.0, 2.0, 3.0]})
        assert (answer.status, answer.headers["pelton-version"]) == (200, version[:12])
    assert [record.route for record in server.folded()] == [0, 0]


def test_a_version_that_is_let_go_keeps_nothing_that_refers_back_to_it(server: Any, add: Any) -> None:
    stable, candidate = server.engine.directory.find("m", ""), add(EchoModel(X))
    stable.split = LiveSplit("r", 0.5, 7, stable, candidate)
    ask(server.connect())
    stable.let_go()
    assert (stable.split, stable.mirror, stable.codecs) == (None, None, {})


# ---- copying


def test_answers_are_compared_and_the_worst_are_kept(server: Any, add: Any) -> None:
    pairs = mirror(server, add(Shifted(0.5, from_=10.0)))
    client = server.connect()
    for n in range(20):
        assert json.loads(ask(client, n, n, n).body) == {"y": [float(n)] * 3}
    server.settle()
    assert (pairs.copied, pairs.pairs, pairs.failed, pairs.skipped) == (20, 20, 0, 0)
    assert pairs.disagreements == 10
    assert pairs.shift_largest == pytest.approx(0.5)
    worst: Any = pairs.worst[0]
    asked = worst.inputs["x"][0]
    assert 10 <= asked < 20
    assert (worst.inputs, worst.deployed) == ({"x": [asked] * 3}, {"y": [asked] * 3})
    assert worst.shadow == {"y": [asked + 0.5] * 3}


def test_a_copy_is_made_after_the_answer_was_sent_and_never_counts_as_a_call(server: Any, add: Any) -> None:
    client = server.connect()
    shadow = Watching(lambda: len(client.transport.out))
    mirror(server, add(shadow))
    ask(client)
    server.settle()
    assert len(shadow.seen) == 1
    assert shadow.seen[0] == len(client.transport.out), "everything had been sent"
    records = {record.version: record for record in server.folded()}
    assert (records[STABLE].protocol, records[CANDIDATE].protocol) == ("native", "shadow")
    assert records[CANDIDATE].route == 0
    assert records[CANDIDATE].request_id == ""


def test_a_shadow_that_fails_is_counted_and_fails_nobody(server: Any, add: Any) -> None:
    pairs = mirror(server, add(FaultyModel({1.0}, X)))
    client = server.connect()
    assert [ask(client, value, 0, 0).status for value in (1.0, 2.0, 1.0)] == [200] * 3
    server.settle()
    assert (pairs.copied, pairs.failed, pairs.pairs) == (3, 2, 1)


def test_a_comparison_that_raises_is_counted_and_fails_nobody(
    server: Any, add: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(splits, "compare", broken)
    pairs = mirror(server, add(EchoModel(X)))
    client = server.connect()
    assert [ask(client).status for _ in range(3)] == [200] * 3
    server.settle()
    assert (pairs.copied, pairs.failed, pairs.pairs) == (3, 3, 0)
    assert len([line for line in caplog.records if line.levelname == "ERROR"]) == 1, "said once"
    monkeypatch.setattr(splits, "PENDING", 1)
    ask(client)
    server.settle()
    assert pairs.skipped == 0, "nothing is taken for pending any more"


def test_calls_that_failed_or_were_left_are_not_copied(server: Any, add: Any) -> None:
    pairs = mirror(server, add(EchoModel(X)))
    client = server.connect()
    assert client.ask("/predict/m", {"x": ["no"]}).status == 400
    other = server.connect()
    body = json.dumps({"x": [1.0, 2.0, 3.0]}).encode()
    other.send(b"POST /predict/m HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    server.settle()
    assert pairs.copied == 1, "the second client's; the first one's call never was one"


def test_only_the_share_is_copied(server: Any, add: Any) -> None:
    pairs = mirror(server, add(EchoModel(X)), share=0.2)
    client = server.connect()
    for _ in range(400):
        ask(client)
    server.settle()
    assert 40 <= pairs.copied <= 125


def test_copies_are_skipped_while_many_are_pending(server: Any, add: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "PENDING", 3)
    pairs = mirror(server, add(EchoModel(X)))
    client = server.connect()
    body = json.dumps({"x": [1.0, 2.0, 3.0]}).encode()
    request = b"POST /predict/m HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    clients = [server.connect() for _ in range(10)]
    client.do(lambda: [one.connection.data_received(request) for one in clients])
    server.settle()
    assert [one.answer.status for one in clients] == [200] * 10
    assert pairs.copied + pairs.skipped == 10
    assert pairs.skipped >= 1
    assert pairs.pairs == pairs.copied


def test_nothing_is_copied_while_the_server_stops(server: Any, add: Any) -> None:
    pairs = mirror(server, add(EchoModel(X)))
    client = server.connect()
    body = json.dumps({"x": [1.0, 2.0, 3.0]}).encode()

    def ask_and_stop() -> None:
        client.connection.data_received(
            b"POST /predict/m HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        server.engine.draining = True

    client.do(ask_and_stop)
    assert client.answer.status == 200
    assert (pairs.copied, pairs.skipped) == (0, 0)


def test_large_answers_are_compared_in_a_thread(server: Any, add: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "COMPARED_HERE", 4)
    pairs = mirror(server, add(Shifted(1.0)))
    ask(server.connect())

    async def compared() -> None:
        import asyncio

        while not pairs.pairs:
            await asyncio.sleep(0.001)

    server.loop.run_until_complete(compared())
    assert (pairs.copied, pairs.pairs, pairs.disagreements) == (1, 1, 1)


def test_a_shadow_with_other_inputs_is_counted_as_failed_without_being_asked(server: Any, add: Any) -> None:
    other = Signature((TensorSpec("z", "FP32", (3,)),), (TensorSpec("y", "FP32", (3,)),))
    model = FaultyModel((), other)
    pairs = mirror(server, add(model))
    assert ask(server.connect()).status == 200
    server.settle()
    assert (pairs.copied, pairs.failed) == (1, 1)
    assert model.batches == []


def test_inputs_go_to_the_shadow_by_name(make_server: Any, add: Any, server: Any) -> None:
    two = Signature(
        (TensorSpec("x", "FP32", (1,)), TensorSpec("z", "FP32", (1,))),
        (TensorSpec("x2", "FP32", (1,)), TensorSpec("z2", "FP32", (1,))),
    )
    turned = Signature((two.inputs[1], two.inputs[0]), (two.outputs[1], two.outputs[0]))
    add(EchoModel(two), "c" * 64, current=True)
    model = FaultyModel((), turned)
    mirror(server, add(model))
    assert server.connect().ask("/predict/m", {"x": [1.0], "z": [9.0]}).status == 200
    server.settle()
    assert model.batches[0].tolist() == [[9.0]], "its first input is z"


def test_disagreements_are_counted_by_the_value_of_a_field(server: Any, add: Any) -> None:
    add(EchoModel(X), "c" * 64, current=True)
    pairs = mirror(server, add(Shifted(1.0, from_=2.0)), segment="x")
    client = server.connect()
    for value in (1, 1, 5):
        ask(client, value, value, value)
    server.settle()
    found = {value: (segment.pairs, segment.disagreements) for value, segment in pairs.segments.items()}
    assert found == {"1.0": (2, 0), "5.0": (1, 1)}


def test_versions_that_prepare_their_fields_otherwise_each_prepare_them(server: Any, add: Any) -> None:
    column = Signature((TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),))
    table = (pre.Table((pre.Column("age"),), "x"),)
    other = (pre.Table((pre.Column("age", default=3.0),), "x"),)
    add(EchoModel(column), "c" * 64, current=True, preprocess=table)
    model = FaultyModel((), column)
    pairs = mirror(server, add(model, preprocess=other), segment="age")
    client = server.connect()
    assert client.ask("/predict/m", {"age": 41}).status == 200
    server.settle()
    assert (pairs.pairs, pairs.disagreements) == (1, 0)
    assert model.batches[0].tolist() == [[41.0]]
    assert list(pairs.segments) == ["41"]
    same = FaultyModel((), column)
    pairs = mirror(server, add(same, "d" * 64, preprocess=table))
    assert client.ask("/predict/m", {"age": 42}).status == 200
    server.settle()
    assert (pairs.pairs, same.batches[0].tolist()) == (1, [[42.0]])
