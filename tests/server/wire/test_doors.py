"""Calls that are refused at a door: by the decision for the call before them, as long as it stands and for no other call."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pelton.packages.manifest import Slo
from pelton.scheduling.admission import REFUSED_ALIKE, refused_until
from pelton.server.dispatcher import Dispatcher
from pelton.server.routes import Routes
from pelton.server.wire.connection import Connection
from pelton.server.wire.doors import KEPT, Door, Doors
from pelton.server.wire.inbox import Inbox
from pelton.testing import EchoModel
from pelton.types import Signature, TensorSpec

BODY = json.dumps({"x": [1.0, 2.0, 3.0]}).encode()


def post(path: str, headers: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(BODY)}\r\n{headers}\r\n".encode() + BODY


def statuses(out: bytes | bytearray) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d+) ", out)]


CALL = post("/predict/m")
TARGET = 0.4


class Held(EchoModel):
    """Runs when it is let."""

    def __init__(self) -> None:
        spec = TensorSpec("x", "FP32", (3,))
        super().__init__(Signature((spec,), (TensorSpec("y", "FP32", (3,)),)))
        self.gate = threading.Event()

    def run(self, *args: Any, **named: Any) -> Any:
        assert self.gate.wait(20)
        return super().run(*args, **named)


class Overloaded:
    """A server whose model runs and whose queue is as long as it may be; connections read through an inbox."""

    def __init__(self, server: Any) -> None:
        self.server, self.model, self.rests = server, Held(), 0
        self.served = server.serve(model=self.model, curve=((1, 0.1), (4, 0.1)), slo=Slo(TARGET * 1e3))
        self.later: list[Callable[[], None]] = []
        self.inbox = Inbox(self.later.append, server.clock, lambda: self.dispatch.submit(), self._rest)
        self.dispatch = Dispatcher(
            server.engine, Routes(server.limits), None, server.limits, inbox=self.inbox  # type: ignore[arg-type]
        )  # fmt: skip
        self.wires: list[Any] = []
        self.ask(CALL)  # its head is known from now on
        for _ in range(200):
            if self.ask(CALL):
                return
        raise AssertionError("nothing was refused")

    def _rest(self) -> None:
        self.rests += 1

    def connect(self) -> Connection:
        server, wire = self.server, self.server.connect()
        made = Connection(self.dispatch, server.connections, server.limits, server.clock, server.heads, self.inbox)
        made.connection_made(wire.transport)
        self.wires.append(wire)
        return made

    def turn(self, *reads: tuple[Connection, bytes]) -> None:
        """One turn of the loop, in which all of it was read."""

        async def all_of_it() -> None:
            for connection, data in reads:
                connection.data_received(data)
            while self.later:
                self.later.pop(0)()

        self.server.loop.run_until_complete(all_of_it())
        self.server.turns(2)

    def ask(self, data: bytes) -> list[int]:
        """What a new connection is told at once."""
        self.turn((self.connect(), data))
        return statuses(self.wires[-1].transport.out)


@pytest.fixture
def busy(make_server: Callable[..., Any]) -> Iterator[Overloaded]:
    made = Overloaded(make_server())
    yield made
    made.model.gate.set()
    made.server.settle()


def refused(served: Overloaded) -> int:
    return sum(record.reason == "overloaded" for record in served.server.folded())


def test_a_call_at_a_door_gets_the_whole_refusal_and_is_counted(busy: Overloaded) -> None:
    busy.server.folded()
    before, rests = refused(busy), busy.rests
    connection = busy.connect()
    for _ in range(3):
        busy.turn((connection, CALL))
    out = bytes(busy.wires[-1].transport.out)
    heads = re.split(rb"(?=HTTP/1\.1 )", out)[1:]
    assert statuses(out) == [503] * 3
    for answer in heads:
        head, body = answer.split(b"\r\n\r\n", 1)
        assert b"\r\nretry-after: " in head
        assert b"\r\npelton-reason: overloaded" in head
        assert b"\r\ncontent-length: %d" % len(body) in head
        assert "error" in json.loads(body)
    assert refused(busy) == before + 3
    assert busy.rests == rests + 3
    assert not busy.wires[-1].transport.closed


def test_calls_of_one_turn_are_refused_without_being_dispatched(busy: Overloaded) -> None:
    dispatched: list[bytes] = []
    connections = [busy.connect() for _ in range(5)]
    for connection in connections:
        connection._dispatch = lambda _, request: dispatched.append(request.target)
    busy.turn(*[(connection, CALL) for connection in connections])
    assert dispatched == []
    assert [statuses(wire.transport.out) for wire in busy.wires[-5:]] == [[503]] * 5


@pytest.mark.parametrize("name", ["Pelton-Timeout-Ms", "pelton-timeout-ms"])
def test_a_call_with_its_own_deadline_is_looked_at_in_full(busy: Overloaded, name: str) -> None:
    patient = post("/predict/m", f"{name}: 60000\r\n")
    for _ in range(2):  # the second time its head is known
        assert busy.ask(patient) == []
    assert busy.ask(CALL) == [503]


def test_a_request_id_comes_back_with_a_refusal(busy: Overloaded) -> None:
    for _ in range(2):
        assert busy.ask(post("/predict/m", "X-Request-Id: mine\r\n")) == [503]
        assert b"\r\nx-request-id: mine\r\n" in busy.wires[-1].transport.out


def test_a_call_behind_one_that_waits_for_its_answer_waits_for_its_turn(busy: Overloaded) -> None:
    connection = busy.connect()
    busy.turn((connection, post("/predict/m", "pelton-timeout-ms: 60000\r\n")))
    busy.turn((connection, CALL))
    assert busy.wires[-1].transport.out == b""
    busy.model.gate.set()
    busy.server.settle()
    assert statuses(busy.wires[-1].transport.out)[0] == 200


def test_a_body_in_pieces_and_pipelined_calls_are_read_as_ever(busy: Overloaded) -> None:
    connection = busy.connect()
    for part in (CALL[:-7], CALL[-7:] + CALL + CALL[:9], CALL[9:]):
        busy.turn((connection, part))
    assert statuses(busy.wires[-1].transport.out) == [503] * 3


def test_a_caller_that_leaves_in_the_turn_of_its_call_harms_nobody(busy: Overloaded) -> None:
    connection, other = busy.connect(), busy.connect()
    left, wire = (wire.transport for wire in busy.wires[-2:])
    connection.data_received(CALL)
    other.data_received(CALL)
    left.closed = True
    connection.connection_lost(None)
    busy.turn()
    assert left.out == b""
    assert statuses(wire.out) == [503]


def test_other_targets_do_not_come_to_the_door(busy: Overloaded) -> None:
    other = post("/predict/other")
    for _ in range(2):
        assert busy.ask(other) == [404]


def test_the_door_opens_when_the_queue_has_moved(busy: Overloaded) -> None:
    busy.model.gate.set()
    busy.server.settle()
    busy.server.clock.advance(1.0)
    busy.model.gate.clear()
    assert busy.ask(CALL) == []


class Queue:
    rows = 10


def door(until: float, queue: Queue | None = None) -> Door:
    return Door(until, queue or Queue(), b"busy", lambda _: None)


def test_a_door_is_shut_for_its_time_and_while_no_fewer_rows_wait() -> None:
    doors, queue = Doors(), Queue()
    doors.close(b"/m", door(5.0, queue))
    assert doors.at(b"/n", 4.0) is None
    assert doors.at(b"/m", 5.0) is not None
    queue.rows = 11
    assert doors.at(b"/m", 5.0) is not None
    queue.rows = 9
    assert doors.at(b"/m", 5.0) is None
    queue.rows = 10
    assert doors.at(b"/m", 5.0) is None, "opened once, it stays open"
    doors.close(b"/m", door(5.0))
    assert doors.at(b"/m", 5.1) is None
    assert doors.shut == {}


def test_doors_are_bounded() -> None:
    doors = Doors()
    for i in range(2 * KEPT + 1):
        doors.close(b"/m?%d" % i, door(5.0))
    assert len(doors.shut) <= KEPT


@pytest.mark.parametrize(
    ("finish", "until"),
    [(10.205, 10.005), (10.3, 10.0 + REFUSED_ALIKE), (10.1, 9.9)],
    ids=["soon in time", "long late, looked at again", "in time now"],
)
def test_a_refusal_stands_until_a_call_that_comes_then_would_be_in_time(finish: float, until: float) -> None:
    assert refused_until(10.0, finish, 0.2) == pytest.approx(until)
