"""What happens to streams when somebody leaves: the client, the engine, or a reader that does not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from echo_api import Api, serving, until, user
from echo_model import add

from pelton.server.openai import stream as streams
from pelton.server.openai.stream import EventStream

CHAT = "/v1/chat/completions"
LONG = {"messages": user("hello"), "max_tokens": 4000, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """ "slow" runs one stream at a time, 50 steps a second; "pair" runs two."""
    home = tmp_path_factory.mktemp("slow")
    add(home, "slow", streams=1, engine_options={"seconds": 0.02})
    add(home, "pair", streams=2, engine_options={"seconds": 0.02})
    with serving(home, "slow", "pair") as api:
        yield api


class Raw:
    """A client that can leave for sure."""

    def __init__(self, api: Api, body: dict[str, Any]) -> None:
        self.sock = socket.create_connection(("127.0.0.1", api.port), timeout=40)
        data = json.dumps(body).encode()
        self.sock.sendall(
            b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % (CHAT.encode(), len(data)) + data
        )

    def read_until(self, text: bytes) -> bytes:
        got = b""
        while text not in got:
            part = self.sock.recv(65536)
            assert part, got
            got += part
        return got

    def leave(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(slow: Api, stream: bool):
    client = Raw(slow, {"model": "slow", "stream": stream, **LONG})  # would take 80 s
    if stream:
        client.read_until(b'"content":"u"')
    client.leave()
    told = slow.ask(CHAT, {"model": "slow", "messages": user("x"), "max_tokens": 1})
    assert told.status == 200


def test_all_choices_of_a_client_that_leaves_end(slow: Api):
    client = Raw(slow, {"model": "pair", "stream": True, "n": 4, **LONG})
    client.read_until(b'"content":"u"')
    client.leave()
    assert slow.ask(CHAT, {"model": "pair", "messages": user("x"), "max_tokens": 1}).status == 200


def test_tokens_arrive_one_by_one(slow: Api):
    body = {"model": "slow", "messages": user("hello"), "max_tokens": 20, "ignore_eos": True, "temperature": 0}
    with slow.send("POST", CHAT, {**body, "stream": True}) as response:
        first = response.readline()
        assert b'"role":"assistant"' in first
        seen = sum(b'"content":"' in line for line in iter(response.readline, b""))
    assert seen >= 15  # no chunk gathers several steps


def children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]


def engine_of(server: int, model: str) -> int:
    def found() -> int:
        for pid in children(server):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"pelton.runtimes.engine_process.child" in command and model.encode() in command:
                return pid
        return 0

    return int(until(found, f"the engine of {model}"))


def test_an_engine_that_is_killed_ends_streams_with_an_error_and_comes_back(slow: Api):
    client = Raw(slow, {"model": "pair", "stream": True, **LONG})
    client.read_until(b'"content":"u"')
    os.kill(engine_of(slow.pid, "pair"), signal.SIGKILL)
    rest = client.read_until(b"0\r\n\r\n").decode()
    client.leave()
    assert "event: error" in rest
    error = json.loads(rest.partition("event: error\ndata: ")[2].partition("\n")[0])["error"]
    assert error["type"] in ("server_error", "service_unavailable")
    assert "[DONE]" not in rest
    until(lambda: slow.ask(CHAT, {"model": "pair", "messages": user("x"), "max_tokens": 1}).status == 200, "its return")


def test_what_cannot_be_in_time_is_refused_with_when_to_come_back(slow: Api):
    client = Raw(slow, {"model": "slow", "stream": True, **LONG})
    client.read_until(b'"content":"u"')
    reply = slow.ask(CHAT, {"model": "slow", **LONG}, pelton_timeout_ms="500")
    assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
    assert int(reply.headers["retry-after"]) >= 1
    with slow.send("POST", CHAT, {"model": "slow", **LONG, "stream": True}, pelton_timeout_ms="500") as response:
        assert response.status == 429
        assert response.headers["content-type"] == "application/json"
        response.read()
    client.leave()


def test_a_deadline_that_passes_is_told(slow: Api):
    reply = slow.ask(CHAT, {"model": "slow", **LONG}, pelton_timeout_ms="500")
    assert (reply.status, reply.error["code"]) in ((504, "deadline_exceeded"), (429, "rate_limit_exceeded"))


def gauge(api: Api, name: str) -> float:
    text = api.get("/metrics").body.decode()
    values = [float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{")]
    assert values, f"{name} is no metric here"
    return sum(values)


def test_a_hundred_clients_that_are_killed_leave_nothing_behind(slow: Api):
    generator = random.Random(7)
    body = {"model": "pair", "stream": True, "messages": user("hello"), "max_tokens": 300, "ignore_eos": True}
    clients: list[Raw] = []
    for number in range(100):
        clients.append(Raw(slow, {**body, "n": 1 + number % 2}))
        while len(clients) > generator.randrange(1, 8):
            client = clients.pop(generator.randrange(len(clients)))
            client.sock.settimeout(generator.random() * 0.05)
            with contextlib.suppress(TimeoutError, BlockingIOError):  # some have read a little, some still wait
                client.sock.recv(200)
            client.leave()
    for client in clients:
        client.leave()
    for name in ("pelton_generations_running", "pelton_generations_waiting"):
        until(lambda name=name: gauge(slow, name) == 0, name)
    assert slow.ask(CHAT, {**body, "stream": False, "max_tokens": 1}).status == 200


# ---- the stream alone


class Work:
    def __init__(self, begin: Callable[[], None]) -> None:
        self.begin = begin
        self.left = 0

    def start(self) -> None:
        self.begin()

    def leave(self) -> None:
        self.left += 1


async def answered(stream: EventStream, send: Any, leaves: bool = False) -> None:
    async def receive() -> Any:
        if leaves:
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        return None

    await asyncio.wait_for(stream({"type": "http"}, receive, send), 20)


def test_a_reader_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "UNREAD_LIMIT", 1000)
    sent: list[Any] = []

    async def test() -> Work:
        stream = EventStream({})
        blocked = asyncio.Event()

        async def send(message: Any) -> None:
            sent.append(message)
            if message["type"] == "http.response.body":
                for _ in range(30):
                    stream.push(b"x" * 100)
                blocked.set()

        stream.work = work = Work(lambda: stream.push(b"first"))
        await answered(stream, send)
        return work

    work = asyncio.run(test())
    assert work.left >= 1
    assert [message.get("body") for message in sent] == [None, b"first"]
    assert sent[-1]["more_body"]  # the answer has no end: the connection is cut


def test_what_is_pushed_together_goes_out_together():
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def test() -> None:
        stream = EventStream({"x": "y"})

        def begin() -> None:
            stream.push(b"a")
            stream.push(b"b")
            stream.close()

        stream.work = Work(begin)
        await answered(stream, send)

    asyncio.run(test())
    assert sent == [
        {"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]},
        {"type": "http.response.body", "body": b"ab", "more_body": False},
    ]


def test_a_client_that_left_before_the_first_token_gets_nothing_and_is_told_off():
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def test() -> Work:
        stream = EventStream({})
        stream.work = work = Work(lambda: None)
        await answered(stream, send, leaves=True)
        return work

    assert asyncio.run(test()).left >= 1
    assert sent == []
