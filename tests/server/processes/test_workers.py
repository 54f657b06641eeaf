"""Several workers behind one port: who answers, what a crash costs, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pelton.server.workers.supervisor import FAILED_STARTS, PAUSE_LONGEST, STEADY_SECONDS, Restarts

MIB = 1024 * 1024

pytestmark = pytest.mark.timeout(180)  # four processes or more start for a test: a busy machine takes its time


@pytest.fixture
def pair(home: Any) -> Any:
    """Two workers: "twice" in both, "gate" in one."""
    home.add_twice("twice")
    home.add_class("gate")
    return home.serve(workers=2).wait_ready()


def owner_of(server: Any, model: str) -> int:
    """The worker's process that runs the model's process."""
    for pid, command in server.family().items():
        if "python_worker" in command and command.split()[-1] == model:
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    raise AssertionError(f"nobody runs {model}: {server.family()}")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_model_that_lives_in_one_worker_answers_whichever_worker_is_asked(home: Any, until: Any, pair: Any) -> None:
    home.open_gate()
    answers = [pair.ask("gate", 1000 + i)[:2] for i in range(40)]
    assert answers == [(200, {"y": [2.0 * (1000 + i)]}) for i in range(40)]
    assert len(pair.workers()) == 2


def test_answers_and_errors_of_another_worker_come_back_as_they_were_made(home: Any, pair: Any) -> None:
    for _ in range(8):  # both workers are asked
        status, told, headers = pair.ask("gate", "no number")  # type: ignore[arg-type]
        assert status == 400
        assert "'x'" in told["error"]
        assert headers["content-type"] == "application/json"
        status, told, _ = pair.get("/v2/models/gate")
        assert (status, told["name"], told["inputs"][0]["name"]) == (200, "gate", "x")
        assert pair.get("/v2/models/gate/ready")[0] == 200
        assert pair.get("/v2/models/gate/versions/beef")[0] == 404
        assert pair.get("/v2/models/gate", "HEAD")[0] in (200, 405)


def test_what_siblings_ask_each_other_is_not_for_clients(pair: Any) -> None:
    assert pair.get("/internal/snapshot")[0] == 404


def test_answers_never_reach_another_caller(home: Any, pair: Any) -> None:
    home.open_gate()
    wrong: list[Any] = []

    def caller(start: int) -> None:
        call = pair.call("gate", start)
        for n in range(start, start + 25):
            status, told, _ = call.answer()
            if (status, told) != (200, {"y": [2.0 * n]}):
                wrong.append((n, status, told))
            call.send("POST", "/predict/gate", b'{"x": [%d]}' % (n + 1), {"pelton-timeout-ms": "60000"})
        call.answer()

    threads = [threading.Thread(target=caller, args=(10_000 * i,)) for i in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_caller_that_leaves_is_taken_out_of_the_queue_of_another_worker(home: Any, until: Any) -> None:
    home.add_class("gate")
    pair = home.serve(workers=2, slots=1).wait_ready()
    running = pair.call("gate", 1000)
    until(lambda: home.began(1000), "one is running")
    waiting = [pair.call("gate", 2000 + i) for i in range(12)]
    until(lambda: _in_flight(pair) == 13, "all are queued")
    for call in waiting:
        call.hang_up()
    until(lambda: _in_flight(pair) == 1, "those who left are taken out")
    home.open_gate()
    assert running.answer()[:2] == (200, {"y": [2000.0]})
    assert not any(home.began(2000 + i) for i in range(12))


def _in_flight(server: Any) -> int:
    return int(server.get("/models")[1]["server"]["in_flight"])


def test_a_killed_worker_costs_its_own_calls_only_and_comes_back(home: Any, until: Any) -> None:
    home.add_twice("twice")
    home.add_class("gate")
    home.add_class("gate2")
    server = home.serve(workers=2).wait_ready()
    owners = {name: owner_of(server, name) for name in ("gate", "gate2")}
    assert set(owners.values()) == set(server.workers())
    lost = [server.call("gate", 1000 + i) for i in range(6)]
    kept = [server.call("gate2", 2000 + i) for i in range(6)]
    until(lambda: any(home.began(1000 + i) for i in range(6)) and any(home.began(2000 + i) for i in range(6)), "busy")
    until(lambda: _in_flight(server) == 12, "all were taken")
    os.kill(owners["gate"], signal.SIGKILL)
    outcomes = Counter(_outcome(call) for call in lost)
    assert outcomes["reset"] + outcomes["503"] == 6  # asked directly, or through the other worker
    until(lambda: server.ready() is False or len(server.workers()) == 2, "noticed")
    until(lambda: server.ready() and len(server.workers()) == 2, "it is back")
    home.open_gate()
    outcomes = Counter(_outcome(call) for call in kept)
    assert outcomes["200"] + outcomes["reset"] == 6  # a connection that the killed worker held is gone
    assert outcomes["200"] >= 1
    assert server.ask("gate", 3000)[:2] == (200, {"y": [6000.0]})
    assert not [pid for pid in server.family() if not alive(pid)], "no zombies"
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0
    assert server.left_over() == []


def _outcome(call: Any) -> str:
    try:
        status, told, headers = call.answer()
    except ConnectionError:
        return "reset"
    if status == 503:
        assert "is started again" in told["error"]
        assert int(headers["retry-after"]) >= 1
    return str(status)


def test_connections_of_the_other_worker_go_on_while_one_is_killed(home: Any, until: Any) -> None:
    home.add_twice("twice")
    server = home.serve(workers=2).wait_ready()
    calls = [server.call("twice", i) for i in range(32)]
    assert [call.answer()[0] for call in calls] == [200] * 32
    victim = server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    outcomes: Counter[str] = Counter()
    for n, call in enumerate(calls):
        try:
            call.send("POST", "/predict/twice", b'{"x": [%d]}' % n)
            outcomes[str(call.answer()[1]["y"] == [2.0 * n])] += 1
        except ConnectionError:
            outcomes["reset"] += 1
    assert outcomes["False"] == 0
    assert outcomes["True"] >= 4  # the survivor's
    assert outcomes["reset"] >= 4  # the victim's
    assert [server.ask("twice", n)[1] for n in range(20)] == [{"y": [2.0 * n]} for n in range(20)]
    until(lambda: server.ready() and victim not in server.workers() and len(server.workers()) == 2, "it is back")


def test_a_killed_supervisor_leaves_no_process_and_accepted_calls_are_answered(
    home: Any, until: Any, pair: Any
) -> None:
    call = pair.call("gate", 1000)
    until(lambda: home.began(1000), "the call is running")
    pair.signal(signal.SIGKILL)
    until(pair.refuses, "the port is closed")
    home.open_gate()
    assert _outcome(call) in ("200", "503")  # 503: asked through the worker that did not hold the model
    until(lambda: not pair.family(), "no process is left")
    assert pair.left_over() == []


def test_metrics_and_statistics_are_those_of_all_workers(home: Any, until: Any, pair: Any) -> None:
    home.open_gate()
    for n in range(30):
        assert pair.ask("twice", n)[0] == 200
        assert pair.ask("gate", n)[0] == 200
    for _ in range(6):
        stats = {one["name"]: one["inference_count"] for one in pair.get("/v2/models/stats")[1]["model_stats"]}
        assert stats["twice"] == 30
        gate = pair.get("/v2/models/gate/stats")[1]["model_stats"][0]
        assert gate["inference_count"] == 30


def test_load_and_unload_reach_every_worker(home: Any, until: Any, pair: Any) -> None:
    home.add_twice("twice", times=3)
    home.add_class("late")
    home.open_gate()
    assert _post(pair, "/v2/repository/models/twice/load") == 200
    assert _post(pair, "/v2/repository/models/late/load") == 200
    for n in range(12):
        assert pair.ask("twice", n)[1] == {"y": [3.0 * n]}
        assert pair.ask("late", n)[1] == {"y": [2.0 * n]}
    for worker in pair.workers():
        os.kill(worker, signal.SIGKILL)
    until(lambda: pair.ready() and len(pair.workers()) == 2, "both are back")
    assert {pair.ask("twice", 1)[1]["y"][0] for _ in range(12)} == {3.0}, "with the version that was loaded last"
    assert _post(pair, "/v2/repository/models/late/unload") == 200
    assert {pair.ask("late", 1)[0] for _ in range(12)} <= {404, 503}
    assert _post(pair, "/v2/repository/models/nobody/load") == 404
    assert _post(pair, "/v2/repository/models/nobody/unload") == 404
    assert pair.ready()


def _post(server: Any, target: str) -> int:
    call = server.call("twice", 1)
    assert call.answer()[0] == 200
    return int(call.send("POST", target).answer()[0])


def test_a_model_above_the_threshold_is_loaded_once(home: Any) -> None:
    home.add_twice("small")
    home.add_twice("big", padding=2 * MIB)
    server = home.serve(workers=2, replicate_below=1).wait_ready()
    assert [server.ask("big", n)[1] for n in range(12)] == [{"y": [2.0 * n]} for n in range(12)]
    assert server.text().count("model small:") == 2
    assert server.text().count("model big:") == 1


# In a process of its own: a supervisor takes the signals of the process that it runs in.
HOPELESS = """
import socket, sys
from pathlib import Path
from pelton.registry import Registry
from pelton.server.workers.supervisor import Supervisor
from pelton.settings import Settings
from pelton.types import ModelRef

registry = Registry(Path(sys.argv[1]))
worker = (sys.executable, "-c", "raise SystemExit(3)")
settings = Settings(home=sys.argv[1], workers=2)
sock = socket.create_server(("127.0.0.1", 0))
sys.exit(Supervisor(settings, registry, [registry.resolve(ModelRef("twice"))], sock, worker).run())
"""


def test_a_worker_that_never_starts_ends_the_server_with_a_message(home: Any) -> None:
    home.add_twice("twice")
    done = subprocess.run([sys.executable, "-c", HOPELESS, str(home.registry.home)], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "ended with code 3" in done.stderr
    assert "giving up" in done.stderr


def test_the_first_restart_is_immediate_and_later_ones_wait_longer_up_to_a_bound() -> None:
    restarts = Restarts()
    pauses = [restarts.pause(True, 1.0) for _ in range(12)]
    assert pauses[0] == 0.0
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSE_LONGEST
    assert restarts.pause(True, STEADY_SECONDS) == 0.0


def test_a_worker_that_never_serves_is_given_up() -> None:
    restarts = Restarts()
    assert [restarts.pause(False, 0.1) is None for _ in range(FAILED_STARTS)] == [False] * (FAILED_STARTS - 1) + [True]


def test_failed_starts_count_only_in_a_row() -> None:
    restarts = Restarts()
    for _ in range(FAILED_STARTS * 3):
        assert restarts.pause(False, 0.1) is not None
        assert restarts.pause(True, 0.1) is not None
