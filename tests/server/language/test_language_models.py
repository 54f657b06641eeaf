"""Language models in a real server: beside the OpenAI API they are models as all others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from echo_model import add
from engine_room import children, metric, second_version

from pelton.control import Control
from pelton.registry import Registry


def test_a_row_of_text_goes_through_every_protocol_and_is_recorded(tmp_path, serving, until):
    version = add(tmp_path, "chat", chat=False)
    with serving(tmp_path, "chat") as api:
        expected = ("ab" * 200)[:256]
        assert api.ask("/predict/chat", {"prompt": "ab"}).json == {"text": expected}
        many = api.ask("/v1/models/chat:predict", {"instances": [{"prompt": "ab"}, {"prompt": "cd"}]}).json
        assert [one["text"][:4] for one in many["predictions"]] == ["abab", "cdcd"]
        tensor = {"name": "prompt", "datatype": "BYTES", "shape": [2], "data": ["ab", "xyz"]}
        outputs = api.ask("/v2/models/chat/infer", {"inputs": [tensor]}).json["outputs"]
        assert [text[:6] for text in outputs[0]["data"]] == ["ababab", "xyzxyz"]
        assert api.ask("/predict/chat", {"prompt": "a" * 9000}).status == 413

        assert metric(api, "pelton_output_tokens_total", model="chat", version=version[:12]) == 5 * 256
        assert metric(api, "pelton_input_tokens_total", model="chat") == 2 + 2 + 2 + 2 + 3
        assert metric(api, "gen_ai_server_time_to_first_token_seconds_count", gen_ai_request_model="chat") == 3
        assert metric(api, "gen_ai_client_token_usage_sum", gen_ai_token_type="output") == 5 * 256
        assert metric(api, "gen_ai_client_token_usage_bucket", gen_ai_token_type="input", le="4.0") == 2
        assert metric(api, "pelton_generations_running") == 0
        assert metric(api, "pelton_child_processes_resident_memory_bytes") > 1e6
        busy = metric(api, "pelton_engine_busy_seconds_total")
        assert 0 < metric(api, "pelton_device_seconds_total", model="chat") <= busy

        card = next(model for model in api.get("/models").json["models"] if model["name"] == "chat")
        assert card["language"]["engine"] == "echo"
        assert card["recent"]["tokens"]["output"] == 5 * 256
        assert card["streams"]["places"] == 16
        assert api.get("/v2/models/chat").json["properties"]["engine"] == "echo"
        stats = api.get("/v2/models/chat/stats").json["model_stats"][0]
        assert stats["inference_count"] == 5
        assert api.get("/models/chat/example").json == {"prompt": "Why is the sky blue?"}


def test_the_command_line_asks_a_language_model_without_a_server(tmp_path):
    add(tmp_path, "chat", chat=False)
    told = [sys.executable, "-m", "pelton", "predict", "chat", "prompt=hey ", "--home", str(tmp_path)]
    done = subprocess.run(told, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('{"text": "hey hey hey ')


def test_an_engine_that_is_killed_fails_what_ran_and_comes_back_by_itself(tmp_path, serving, until):
    add(tmp_path, "chat", chat=False, streams=2, engine_options={"seconds": 0.02})
    with serving(tmp_path, "chat") as api:
        answers = []

        def ask(prompt: str) -> None:
            answers.append(api.ask("/predict/chat", {"prompt": prompt}))

        callers = [threading.Thread(target=ask, args=(text,)) for text in ("ab", "cd")]
        for caller in callers:
            caller.start()
        until(lambda: metric(api, "pelton_generations_running") == 2, "both run")
        (engine,) = children(api.pid)
        os.kill(engine, signal.SIGKILL)
        for caller in callers:
            caller.join(30)
        assert [answer.status for answer in answers] == [500, 500]
        assert "killed by" in answers[0].json["error"]
        until(lambda: api.get("/v2/health/ready").status == 200, "it is back")
        until(lambda: api.ask("/predict/chat", {"prompt": "ab"}).status == 200, "it answers")
        assert metric(api, "pelton_engine_restarts_total") == 1
        assert metric(api, "pelton_requests_total", outcome="model_failed") == 2
        assert children(api.pid) != [engine]
    log = (tmp_path / "server.log").read_text()
    assert "is started again" in log


@pytest.mark.parametrize("workers", [1, 2])
def test_versions_are_deployed_and_rolled_back_under_load_without_a_failed_call(tmp_path, serving, until, workers):
    first = add(tmp_path, "chat", chat=False, engine_options={"seconds": 0.001})
    add(tmp_path, "other", chat=False)
    second = second_version(tmp_path, "chat")
    assert first != second
    registry = Registry(tmp_path)
    control = Control(registry.store, registry)
    control.deploy(f"chat:{first}")
    control.deploy("other")
    with serving(tmp_path, workers=workers) as api:
        stop, statuses, versions = threading.Event(), [], set()

        def ask() -> None:
            while not stop.is_set():
                answer = api.ask(
                    "/v1/completions", {"model": "chat", "prompt": "ab", "max_tokens": 20, "temperature": 0}
                )
                statuses.append(answer.status)
                versions.add(answer.headers.get("pelton-version"))
                if answer.status == 200:
                    assert answer.json["choices"][0]["text"] == "ab" * 10

        callers = [threading.Thread(target=ask) for _ in range(3)]
        for caller in callers:
            caller.start()
        try:
            until(lambda: first[:12] in versions, "the first answers")
            control.deploy(f"chat:{second}")
            until(lambda: second[:12] in versions, "the second answers")
            versions.clear()
            control.rollback("chat")
            until(lambda: first[:12] in versions, "the first answers again")
        finally:
            stop.set()
            for caller in callers:
                caller.join(30)
        assert set(statuses) == {200}
        assert len(statuses) > 20
        assert api.ask("/predict/other", {"prompt": "xy"}).json["text"].startswith("xyxy")
        if workers == 2:  # one engine a version, wherever it lives
            assert metric(api, "pelton_engine_streams", model="other") == 16


def test_a_shadow_of_a_language_model_is_refused_with_the_reason(tmp_path):
    first = add(tmp_path, "chat", chat=False)
    second = second_version(tmp_path, "chat")
    registry = Registry(tmp_path)
    control = Control(registry.store, registry)
    control.deploy(f"chat:{first}")
    with pytest.raises(Exception, match="language model"):
        control.shadow("chat", second)


def test_a_hundred_clients_that_are_gone_in_mid_stream_leave_nothing_behind(tmp_path, serving, until):
    add(tmp_path, "chat", chat=False, streams=8, engine_options={"seconds": 0.002})
    with serving(tmp_path, "chat") as api:
        for _ in range(25):
            body = {"model": "chat", "prompt": "ab", "max_tokens": 5000, "stream": True}
            streams = [api.send("POST", "/v1/completions", body) for _ in range(4)]
            for stream in streams:
                assert stream.read(10)
                stream.close()
        until(lambda: metric(api, "pelton_generations_running") == 0, "the engine is idle")
        assert metric(api, "pelton_generations_waiting") == 0
        assert metric(api, "pelton_in_flight") == 0
        assert metric(api, "pelton_requests_total", model="chat", outcome="cancelled") == 100
        assert api.ask("/predict/chat", {"prompt": "ab"}).status == 200
