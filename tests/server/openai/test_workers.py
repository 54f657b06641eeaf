"""With several workers a language model lives in one, and its answers come through whichever the client reached."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator

import pytest
from echo_api import Api, read_events, serving, until, user
from echo_model import add

CHAT = "/v1/chat/completions"
BODY = {"model": "echo", "messages": user("hello"), "temperature": 0}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    home = tmp_path_factory.mktemp("workers")
    add(home)
    add(home, "slow", engine_options={"seconds": 0.02}, streams=1)
    with serving(home, "echo", "slow", workers=2) as api:
        yield api


def held(api: Api) -> list[str]:
    """Workers that answered some connections, by the request ids that they give."""
    return sorted({api.ask(CHAT, {**BODY, "max_tokens": 1}).headers["x-request-id"].split("-")[0] for _ in range(12)})


def test_every_connection_reaches_the_model(api: Api):
    for _ in range(12):
        reply = api.ask(CHAT, BODY)
        assert reply.status == 200, reply.body
        assert reply.json["choices"][0]["message"]["content"] == "user\nhello"
    assert len(held(api)) == 1  # one worker answers all


def test_streams_come_through(api: Api):
    for _ in range(8):
        events = api.events(CHAT, BODY)
        text = "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])
        assert text == "user\nhello"


def test_tokens_come_through_one_by_one(api: Api):
    body = {**BODY, "model": "slow", "max_tokens": 20, "ignore_eos": True, "stream": True}
    for _ in range(4):
        with api.send("POST", CHAT, body) as response:
            lines = [line for line in iter(response.readline, b"") if b'"content":"' in line]
        assert len(lines) >= 15


def test_a_kept_connection_serves_stream_after_stream(api: Api):
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=40)
    for _ in range(6):
        connection.request("POST", CHAT, json.dumps({**BODY, "stream": True}))
        response = connection.getresponse()
        assert read_events(response.read().decode())
        connection.request("GET", "/v1/models")
        assert connection.getresponse().read()
    connection.close()


def test_an_old_client_gets_a_stream_that_ends_with_its_connection(api: Api):
    body = json.dumps({**BODY, "stream": True}).encode()
    for _ in range(6):
        with socket.create_connection(("127.0.0.1", api.port), timeout=40) as sock:
            sock.sendall(b"POST %b HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body)
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert read_events(rest.decode())


def test_a_client_that_leaves_frees_its_place_in_the_other_worker(api: Api):
    body = {**BODY, "model": "slow", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    for _ in range(4):
        with api.send("POST", CHAT, body) as response:
            response.readline()
    assert api.ask(CHAT, {**BODY, "model": "slow", "max_tokens": 1}).status == 200


def test_errors_come_through(api: Api):
    for _ in range(6):
        assert api.ask(CHAT, {**BODY, "n": 0}).error["param"] == "n"
        assert api.ask(CHAT, {**BODY, "model": "nothing"}).error["code"] == "model_not_found"
        assert api.ask(CHAT, b"{").status == 400


def test_kept_responses_are_found_from_everywhere(api: Api):
    made = api.ask("/v1/responses", {"model": "echo", "input": "one"}).json
    for _ in range(8):
        assert api.get(f"/v1/responses/{made['id']}").json["id"] == made["id"]
        told = api.ask("/v1/responses", {"model": "echo", "input": "two", "previous_response_id": made["id"]})
        assert told.status == 200


def test_generate_comes_through(api: Api):
    for _ in range(6):
        body = {"text_input": "abc", "parameters": {"temperature": 0, "max_tokens": 3}}
        assert api.ask("/v2/models/echo/generate", body).json["text_output"] == "abc"
        with api.send("POST", "/v2/models/echo/generate_stream", body) as response:
            assert response.read().count(b"data: ") >= 3


def test_a_worker_that_is_killed_breaks_its_streams_and_comes_back(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("killed")
    add(home, "slow", engine_options={"seconds": 0.02}, streams=4)
    body = {**BODY, "model": "slow", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with serving(home, "slow", workers=2) as api:
        responses = [api.send("POST", CHAT, body) for _ in range(4)]
        for response in responses:
            assert response.readline()
        holder = int(responses[0].headers["x-request-id"].split("-")[0][:-8], 16)  # ids begin with the process's number
        os.kill(holder, signal.SIGKILL)
        for response in responses:
            with pytest.raises((OSError, http.client.HTTPException)):  # the chunks have no end
                response.read()
            response.close()
        until(lambda: api.ask(CHAT, {**BODY, "model": "slow", "max_tokens": 1}).status == 200, "its return")
