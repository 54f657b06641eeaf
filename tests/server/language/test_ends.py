"""How engines, servers and versions of language models come to their end, and what their callers are told."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from echo_api import Api
from echo_model import add
from engine_room import children, ending, metric, second_version

from pelton.control import Control
from pelton.registry import Registry
from pelton.rollout.policy import Limits

CHAT = "/v1/completions"
LONG = {"model": "chat", "prompt": "ab", "max_tokens": 8000, "stream": True, "temperature": 0}
KILL = "\x01"  # prompts with these bytes make the engine misbehave
HANG = "\x02"
SEIZE = "\x03"
FULL = "\x04"
TRAPS = {"kill_token": 1, "hang_token": 2, "seize_token": 3, "memory_token": 4}


def alive(pid: int) -> bool:
    """Whether a process runs, or was not reaped."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def zombies(pid: int) -> list[int]:
    return [child for child in children(pid) if not alive(child)]


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def still(api: Api) -> bool:
    """Whether the engine takes no steps."""
    before = metric(api, "pelton_engine_busy_seconds_total")
    time.sleep(0.1)
    return before == metric(api, "pelton_engine_busy_seconds_total")


class Streams:
    """Streams that were begun and have had their first event."""

    def __init__(self, api: Api, count: int, **more: Any) -> None:
        self.responses = [api.send("POST", CHAT, {**LONG, **more}) for _ in range(count)]
        for response in self.responses:
            assert response.readline().startswith(b"data: ")

    def ends(self) -> list[dict[str, Any]]:
        """The last event of each, which ends the stream as HTTP has it."""
        found = []
        for response in self.responses:
            events = [line for line in response.read().split(b"\n\n") if line]
            found.append(json.loads(events[-1].rpartition(b"data: ")[2]))
        return found

    def finished(self) -> list[bool]:
        """Whether each came to its own end."""
        return [response.read().endswith(b"data: [DONE]\n\n") for response in self.responses]


def told(ends: list[dict[str, Any]]) -> set[str]:
    """The messages of errors in OpenAI's shape."""
    for end in ends:
        assert list(end) == ["error"], end
        assert list(end["error"]) == ["message", "type", "param", "code"]
    return {end["error"]["message"] for end in ends}


# ---- engines


@pytest.mark.parametrize(("how", "words"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSTOP, "no sign of life for 0.5 s")])
def test_streams_of_an_engine_that_is_killed_or_hangs_end_with_an_error_twice(tmp_path, serving, until, how, words):
    add(tmp_path, "chat", chat=False, stall_seconds=0.5, engine_options={"seconds": 0.005})
    with serving(tmp_path, "chat") as api:
        files = open_files(api.pid)
        for number in (1, 2):
            streams = Streams(api, 3)
            (engine,) = children(api.pid)
            os.kill(engine, how)
            (message,) = told(streams.ends())
            assert words in message
            until(lambda: api.get("/v2/health/ready").status == 200, "readiness")
            assert api.ask(CHAT, {**LONG, "stream": False, "max_tokens": 4}).json["choices"][0]["text"] == "abab"
            assert metric(api, "pelton_engine_restarts_total") == number
            assert not alive(engine)
        for name in ("pelton_generations_running", "pelton_generations_waiting", "pelton_kv_cache_usage_ratio"):
            assert metric(api, name) == 0
        assert not zombies(api.pid)
        until(lambda: open_files(api.pid) <= files + 1, "files are closed")


def test_an_engine_without_memory_fails_its_streams_in_words_and_comes_back(tmp_path, serving, until):
    add(tmp_path, "chat", chat=False, engine_options={"seconds": 0.005, **TRAPS})
    with serving(tmp_path, "chat") as api:
        streams = Streams(api, 2)
        reply = api.ask(CHAT, {**LONG, "stream": False, "prompt": FULL})
        assert reply.status == 500
        assert "MemoryError" in reply.error["message"]
        assert all("MemoryError" in message for message in told(streams.ends()))
        until(lambda: api.ask(CHAT, {**LONG, "stream": False, "max_tokens": 1}).status == 200, "its return")


def test_an_engine_that_dies_again_and_again_is_started_with_growing_pauses(tmp_path, serving, until):
    add(tmp_path, "chat", chat=False, engine_options=TRAPS)
    with serving(tmp_path, "chat") as api:
        begins = []
        for _ in range(5):
            assert api.ask(CHAT, {**LONG, "stream": False, "prompt": KILL}).status == 500
            refused = api.ask(CHAT, {**LONG, "stream": False, "max_tokens": 1})
            if refused.status != 200:  # else it is back already
                assert refused.status == 503
                assert refused.error["code"] == "model_not_ready"
                assert int(refused.headers["retry-after"]) >= 1
            begin = time.monotonic()
            until(lambda: api.get("/v2/health/ready").status == 200, "readiness")
            begins.append(time.monotonic() - begin)
        assert begins[-1] > 1.0  # 0.1 s, doubled four times, is 1.6 s
        assert metric(api, "pelton_engine_restarts_total") == 5
        assert not zombies(api.pid)


def test_an_engine_that_is_killed_while_it_loads_again_is_started_once_more(tmp_path, serving, until):
    add(tmp_path, "chat", chat=False, engine_options={"load_seconds": 1.0, **TRAPS})
    with serving(tmp_path, "chat") as api:
        api.ask(CHAT, {**LONG, "stream": False, "prompt": KILL})
        loading = until(lambda: children(api.pid), "another process")
        os.kill(loading[0], signal.SIGKILL)
        assert api.get("/v2/health/ready").status == 503
        until(lambda: api.get("/v2/health/ready").status == 200, "readiness")
        assert api.ask(CHAT, {**LONG, "stream": False, "max_tokens": 2}).status == 200
        assert metric(api, "pelton_engine_restarts_total") == 2
        assert not zombies(api.pid)


@pytest.mark.parametrize(
    "trap", [None, HANG, SEIZE, signal.SIGSTOP], ids=["busy", "hangs", "holds the lock", "stopped"]
)
def test_no_engine_outlives_a_server_that_is_killed(tmp_path, serving, until, trap):
    add(tmp_path, "chat", chat=False, engine_options={"seconds": 0.005, **TRAPS})
    with ending(tmp_path, "chat") as api, contextlib.ExitStack() as ends:
        Streams(api, 2)
        (engine,) = children(api.pid)
        if isinstance(trap, str):
            trapped = ends.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", api.port)))
            trapped.request("POST", CHAT, json.dumps({**LONG, "prompt": trap}))
            until(lambda: still(api), "it hangs")
        elif trap is not None:
            os.kill(engine, trap)
        os.kill(api.pid, signal.SIGKILL)
        until(lambda: not alive(engine), "its end")


# ---- servers


def test_a_server_that_stops_finishes_what_runs(tmp_path, until):
    add(tmp_path, "chat", chat=False, streams=2, engine_options={"seconds": 0.005})
    with ending(tmp_path, "chat", stop_timeout=20) as api:
        streams = Streams(api, 2, max_tokens=100)
        os.kill(api.pid, signal.SIGTERM)
        assert streams.finished() == [True, True]
        until(lambda: not alive(api.pid), "its end")
        assert "ERROR" not in api.log.read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_does_not_end_in_time_is_told_so_and_the_server_ends(tmp_path, serving, until, workers):
    add(tmp_path, "chat", chat=False, streams=2, engine_options={"seconds": 0.005})
    add(tmp_path, "other", chat=False)
    with ending(tmp_path, "chat", "other", stop_timeout=0.5, workers=workers) as api:
        engines = [pid for worker in (children(api.pid) if workers > 1 else [api.pid]) for pid in children(worker)]
        streams = Streams(api, 2)
        begin = time.monotonic()
        os.kill(api.pid, signal.SIGTERM)
        (message,) = told(streams.ends())
        assert "stopping" in message
        until(lambda: not alive(api.pid), "its end")
        assert "draining: 2" in api.log.read_text()  # their records are not lost
        assert time.monotonic() - begin < 10
        assert engines
        until(lambda: not any(map(alive, engines)), "the end of its engines")


def test_a_second_signal_ends_a_server_and_its_engines_at_once(tmp_path, serving, until):
    add(tmp_path, "chat", chat=False, engine_options={"seconds": 0.005, **TRAPS})
    with ending(tmp_path, "chat", grace=300, stop_timeout=300) as api:
        Streams(api, 2)
        (engine,) = children(api.pid)
        os.kill(api.pid, signal.SIGTERM)
        until(lambda: api.get("/v2/health/ready").status == 503, "the first signal was heard")
        os.kill(api.pid, signal.SIGTERM)
        until(lambda: not alive(api.pid), "its end", 5)
        until(lambda: not alive(engine), "the end of its engine", 5)


# ---- versions


def test_a_model_that_is_unloaded_finishes_what_runs_and_gives_its_engine_back(tmp_path, serving, until):
    add(tmp_path, "chat", chat=False, streams=2, engine_options={"seconds": 0.005})
    add(tmp_path, "other", chat=False)
    with serving(tmp_path, "chat", "other") as api:
        engines = set(children(api.pid))
        streams = Streams(api, 2, max_tokens=200)
        assert api.ask("/v2/repository/models/chat/unload", {}).status == 200
        late = api.ask(CHAT, {**LONG, "stream": False})
        assert late.status == 503
        assert "unloaded" in late.error["message"]
        assert streams.finished() == [True, True]
        until(lambda: len(set(children(api.pid)) & engines) == 1, "the end of its engine")
        assert api.get("/v2/health/ready").status == 200
        assert api.ask("/predict/other", {"prompt": "xy"}).status == 200


def test_a_stream_ends_on_the_version_that_it_began_on(tmp_path, serving, until):
    first = add(tmp_path, "chat", chat=False, engine_options={"seconds": 0.005})
    second = second_version(tmp_path, "chat")
    registry = Registry(tmp_path)
    control = Control(registry.store, registry)
    control.deploy(f"chat:{first}")
    with serving(tmp_path, keep_warm=0) as api:
        streams = Streams(api, 2, max_tokens=300)
        assert {response.headers["pelton-version"] for response in streams.responses} == {first[:12]}
        control.deploy(f"chat:{second}")
        until(lambda: answering(api) == second[:12], "the second answers")
        control.rollback("chat")
        until(lambda: answering(api) == first[:12], "the first answers again")
        assert streams.finished() == [True, True]
        until(lambda: len(children(api.pid)) == 1, "one engine is left")


def test_a_candidate_gets_its_share_of_streams_and_finishes_them_when_it_is_taken_back(tmp_path, serving, until):
    first = add(tmp_path, "chat", chat=False, engine_options={"seconds": 0.005})
    second = second_version(tmp_path, "chat")
    registry = Registry(tmp_path)
    control = Control(registry.store, registry)
    control.deploy(f"chat:{first}")
    with serving(tmp_path) as api:
        control.start_rollout(f"chat:{second}", steps=(0.5, 1.0), limits=Limits(min_calls=10**6))
        until(lambda: answering(api) == second[:12], "the candidate answers")
        streams = Streams(api, 8, max_tokens=200)
        assert {response.headers["pelton-version"] for response in streams.responses} == {first[:12], second[:12]}
        control.abort("chat")
        assert streams.finished() == [True] * 8
        until(lambda: len(children(api.pid)) == 1, "the candidate's engine is given back")
        assert answering(api) == first[:12]


def grown(home: Path, version: str, to: int) -> Path:
    """The stored weights of a version, made `to` bytes long without taking any of the disk."""
    file = Registry(home).artifacts.folder(version) / "weights.none"
    file.chmod(0o644)
    os.truncate(file, to)
    return file


def test_a_version_that_has_no_memory_beside_the_one_that_serves_is_refused_in_words(tmp_path, serving, until):
    first = add(tmp_path, "chat", chat=False)
    second = second_version(tmp_path, "chat")
    grown(tmp_path, second, 2**40)
    registry = Registry(tmp_path)
    control = Control(registry.store, registry)
    control.deploy(f"chat:{first}")
    with serving(tmp_path) as api:
        control.deploy(f"chat:{second}")
        told = until(lambda: "GB of memory" in api.log.read_text() and api.log.read_text(), "its refusal")
        assert re.search(r"would need about [\d.]+ GB of memory, [\d.]+ GB can be had: it is not loaded beside", told)
        assert answering(api) == first[:12]
        assert api.get("/v2/health/ready").status == 200


def test_a_version_that_only_waits_for_a_rollback_makes_room(tmp_path, serving, until):
    first = add(tmp_path, "chat", chat=False)
    second, third = second_version(tmp_path, "chat"), second_version(tmp_path, "chat", b"more")
    registry = Registry(tmp_path)
    control = Control(registry.store, registry)
    control.deploy(f"chat:{first}")
    with serving(tmp_path) as api:
        control.deploy(f"chat:{second}")
        until(lambda: answering(api) == second[:12], "the second answers")
        assert len(children(api.pid)) == 2  # the first is kept warm
        grown(tmp_path, third, 2**40)
        control.start_rollout(f"chat:{third}", steps=(0.5, 1.0), limits=Limits(min_calls=10**6))
        until(lambda: len(children(api.pid)) == 1, "the first is given back")
        assert answering(api) == second[:12]


def answering(api: Api) -> str | None:
    return api.ask(CHAT, {"model": "chat", "prompt": "ab", "max_tokens": 1}).headers.get("pelton-version")
