"""One process from start to exit: what signals, busy models, faults at start and late calls do to callers."""

from __future__ import annotations

import signal
import socket
from typing import Any

import pytest

from pelton.errors import SettingInvalid
from pelton.server.lifecycle import tls_context
from pelton.settings import Settings

pytestmark = pytest.mark.timeout(180)

STUCK = """
import pathlib, time

class Model:
    inputs = {"x": "FP32[1]"}
    outputs = {"y": "FP32[1]"}

    def setup(self, folder):
        pathlib.Path(GATE, "setup").touch()
        time.sleep(3600)

    def predict(self, x):
        return x
"""


@pytest.fixture(params=[1, 2], ids=["alone", "two workers"])
def workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_every_call_that_was_accepted_before_or_during_the_grace_is_answered(
    home: Any, until: Any, workers: int
) -> None:
    home.add_class("gate")
    home.add_twice("twice")
    server = home.serve(grace=3, workers=workers).wait_ready()
    calls = [server.call("gate", 1000 + i) for i in range(4)]
    until(lambda: home.began(1000), "one call is running, the others wait")
    server.signal(signal.SIGTERM)
    until(lambda: not server.ready(), "readiness is 503 while calls are still taken", 2.5)
    assert server.ask("twice", 21)[:2] == (200, {"y": [42.0]})
    calls.append(server.call("gate", 2000))
    until(server.refuses, "the port is closed")
    home.open_gate()
    assert [call.answer()[:2] for call in calls] == [(200, {"y": [2.0 * n]}) for n in (1000, 1001, 1002, 1003, 2000)]
    assert server.exit_code() == 0
    assert server.left_over() == []


def test_readiness_says_at_once_that_the_server_stops(home: Any, until: Any, workers: int) -> None:
    home.add_twice("twice")
    server = home.serve(grace=5, workers=workers).wait_ready()
    server.signal(signal.SIGTERM)
    _, told, _ = until(lambda: (found := server.get("/v2/health/ready"))[0] == 503 and found, "503", 4)
    assert "stopping" in told["error"]
    assert server.exit_code() == 0


def test_a_second_signal_ends_the_server_now(home: Any, until: Any, workers: int) -> None:
    home.add_class("gate")
    server = home.serve(grace=3600, stop_timeout=3600, workers=workers).wait_ready()
    call = server.call("gate", 1000)
    until(lambda: home.began(1000), "the call is running")
    server.signal(signal.SIGTERM)
    until(lambda: not server.ready(), "the first signal was heard")
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 1
    with pytest.raises(ConnectionError):
        call.answer()
    until(lambda: not server.family(), "no process is left")


def test_ctrl_c_skips_the_grace(home: Any, until: Any, workers: int) -> None:
    home.add_class("gate")
    server = home.serve(grace=3600, workers=workers).wait_ready()
    call = server.call("gate", 1000)
    until(lambda: home.began(1000), "the call is running")
    server.signal(signal.SIGINT)
    until(server.refuses, "the port is closed")
    home.open_gate()
    assert call.answer()[:2] == (200, {"y": [2000.0]})
    assert server.exit_code() == 0


def test_a_call_that_outlives_the_stop_timeout_is_told_and_makes_the_exit_code_1(
    home: Any, until: Any, workers: int
) -> None:
    home.add_class("gate")
    server = home.serve(stop_timeout=0.5, workers=workers).wait_ready()
    call = server.call("gate", 1000)
    until(lambda: home.began(1000), "the call is running")
    server.signal(signal.SIGTERM)
    assert server.exit_code(20) == 1
    assert "1 calls were not answered within" in server.text()
    status, told, _ = call.answer()
    assert status == 503
    assert "this server is stopping" in told["error"]
    until(lambda: not server.family(), "no process is left")


def test_a_model_that_takes_forever_to_load_does_not_keep_the_server_from_stopping(
    home: Any, until: Any, workers: int
) -> None:
    home.add_class("stuck", STUCK)
    home.add_twice("twice")
    server = home.serve(workers=workers)
    until(lambda: (home.gate / "setup").exists(), "the model is loading")
    until(lambda: _status(server) == 200, "the other model answers meanwhile")
    status, told, _ = server.get("/v2/health/ready")
    assert (status, "'stuck' cannot answer: it is loading" in told["error"]) == (503, True)
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0
    until(lambda: not server.family(), "no process is left")


def _status(server: Any) -> int:
    try:
        return int(server.ask("twice", 1)[0])
    except ConnectionError:
        return 0


def test_a_model_that_fails_to_load_does_not_keep_the_others_from_serving(home: Any, until: Any, workers: int) -> None:
    home.add_class("broken", STUCK.replace("time.sleep(3600)", "raise ValueError('no weights here')"))
    home.add_twice("twice")
    server = home.serve(workers=workers)
    until(lambda: "no weights here" in server.get("/v2/health/ready")[1].get("error", ""), "readiness says why")
    until(lambda: _status(server) == 200, "the other model answers")
    status, told, _ = server.ask("broken", 1)
    assert (status, "no weights here" in told["error"]) == (503, True)


def test_a_port_that_is_taken_is_told_without_a_stack_trace(home: Any, workers: int) -> None:
    home.add_twice("twice")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = home.serve(port=port, workers=workers)
        assert server.exit_code() == 1
    assert f"cannot listen on 127.0.0.1:{port}" in server.text()
    assert "--port" in server.text()
    assert "Traceback" not in server.text()


def test_a_certificate_that_cannot_be_read_is_told_with_its_name() -> None:
    with pytest.raises(SettingInvalid, match=r"missing\.pem"):
        tls_context(Settings(tls_cert="missing.pem"))
