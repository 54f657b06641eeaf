"""The routes beside inference, asked in this process."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pelton.errors import InvalidInput
from pelton.records.snapshot import Snapshot
from pelton.registry import Registry
from pelton.types import ModelRef

Visit = Callable[..., Any]


def test_live_and_ready_have_one_body_for_all_clients(visit: Visit) -> None:
    async def test(house: Any) -> None:
        for path in ("/v2/health/live", "/v2/health/ready"):
            answer = await house.ask("GET", path)
            assert (answer.status, answer.json) == (200, {"live": True, "ready": True, "name": "pelton"})
            assert answer.headers["content-type"] == "application/json"

    visit(test, "linear")


def test_readiness_turns_503_when_the_server_stops_and_liveness_does_not(visit: Visit) -> None:
    async def test(house: Any) -> None:
        house.site.stopping = True
        ready = await house.ask("GET", "/v2/health/ready")
        assert ready.status == 503
        assert ready.json == {"error": "the server is stopping", "live": True, "ready": False, "name": "pelton"}
        assert ready.headers["retry-after"] == "1"
        assert (await house.ask("GET", "/v2/health/live")).json["ready"] is False
        for path in ("/v2/models/linear/ready", "/v1/models/linear"):
            answer = await house.ask("GET", path)
            assert (answer.status, answer.json["ready"]) == (503, False)
        assert (await house.ask("GET", "/v2/models/linear")).status == 200

    visit(test, "linear")


class HangingSiblings:
    """Workers of which none answers."""

    def __init__(self) -> None:
        self.asked = 0

    async def snapshots(self) -> dict[int, Snapshot | None]:
        self.asked += 1
        await asyncio.Event().wait()
        raise AssertionError("nobody answers")

    async def change(self, action: str, name: str) -> None:
        raise AssertionError("nobody is told")


def test_liveness_does_not_wait_for_a_worker_that_hangs(visit: Visit) -> None:
    async def test(house: Any) -> None:
        house.site.siblings = siblings = HangingSiblings()
        async with asyncio.timeout(20):
            live = await house.ask("GET", "/v2/health/live")
        assert (live.status, live.json) == (200, {"live": True, "ready": True, "name": "pelton"})
        assert siblings.asked == 0
        ready = asyncio.ensure_future(house.ask("GET", "/v2/health/ready"))
        while not siblings.asked:
            await asyncio.sleep(0)
        assert not ready.done()  # readiness is that of all
        ready.cancel()

    visit(test, "linear")


def test_a_model_that_loads_keeps_the_server_from_being_ready_until_it_serves(visit: Visit, own_home: Path) -> None:
    async def test(house: Any) -> None:
        gate = threading.Event()
        real = house.registry.resolve
        packages = [real(ModelRef("linear"))]
        blocked = [asyncio.get_running_loop().run_in_executor(house.fleet._pool, gate.wait) for _ in range(2)]
        start = asyncio.ensure_future(house.fleet.start(packages))
        await asyncio.sleep(0)
        answer = await house.ask("GET", "/v2/health/ready")
        assert answer.status == 503
        assert "loading" in answer.json["error"]
        index = {one["name"]: one["state"] for one in (await house.ask("POST", "/v2/repository/index")).json}
        assert index == {"linear": "LOADING", "words": "UNAVAILABLE", "people": "UNAVAILABLE", "grey": "UNAVAILABLE"}
        assert (await house.ask("GET", "/v2/models/linear")).status == 503
        gate.set()
        await asyncio.gather(start, *blocked)
        assert (await house.ask("GET", "/v2/health/ready")).status == 200

    visit(test, at=own_home)


def test_a_model_that_fails_to_load_is_told_everywhere(visit: Visit, own_home: Path) -> None:
    async def test(house: Any) -> None:
        package = Registry(own_home).resolve(ModelRef("linear"))
        package.file.chmod(0o644)
        package.file.write_bytes(b"no model")
        await house.fleet.start([package])
        ready = await house.ask("GET", "/v2/health/ready")
        assert ready.status == 503
        assert "linear" in ready.json["error"]
        assert "failed to load" in ready.json["error"]
        assert (await house.ask("GET", "/v2/models/words/ready")).status == 200
        model = await house.ask("GET", "/v1/models/linear")
        assert (model.status, model.json["ready"], model.json["name"]) == (503, False, "linear")
        [shown] = [one for one in (await house.ask("GET", "/models")).json["models"] if one["name"] == "linear"]
        assert shown["state"] == "unavailable"
        assert 'pelton_model_ready{model="linear",version=""} 0.0' in (await house.ask("GET", "/metrics")).body.decode()
        assert (await house.ask("POST", "/v2/repository/models/linear/load")).status == 400

    visit(test, "words", at=own_home)


def test_a_model_that_was_unloaded_on_purpose_leaves_the_server_ready(visit: Visit) -> None:
    async def test(house: Any) -> None:
        body = b'{"parameters": {"unload_dependents": false}}'
        assert (await house.ask("POST", "/v2/repository/models/linear/unload", body)).status == 200
        assert (await house.ask("GET", "/v2/health/ready")).status == 200
        assert (await house.ask("GET", "/v2/models/linear/ready")).status == 503
        ready = await house.ask("POST", "/v2/repository/index", b'{"ready": true}')
        assert [one["name"] for one in ready.json] == ["words"]
        assert (await house.ask("POST", "/v2/repository/models/linear/unload")).status in (404, 503)

    visit(test, "linear", "words")


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v2/repository/index", b"{", 400, "not valid JSON"),
        ("/v2/repository/index", b"[]", 400, "JSON object"),
        ("/v2/repository/index", b'{"ready": 1}', 400, "ready"),
        ("/v2/repository/models/linear/load", b'{"parameters": {"config": "{}"}}', 501, "pelton add"),
        ("/v2/repository/models/linear/load", b'{"parameters": {"file:1/m.onnx": "aGk="}}', 501, "pelton add"),
        ("/v2/repository/models/linear/load", b'{"parameters": {"colour": 1}}', 400, "colour"),
        ("/v2/repository/models/linear/load", b'{"parameters": 3}', 400, "object"),
        ("/v2/repository/models/linear/unload", b'{"parameters": {"unload_dependents": 1}}', 400, "true or false"),
        ("/v2/repository/models/linear/unload", b'{"parameters": {"now": true}}', 400, "unload_dependents only"),
        ("/v2/repository/models/nothing/load", b"", 404, "nothing"),
        ("/v2/repository/models/nothing/unload", b"", 404, "nothing"),
        ("/v2/repository/models/..:x/load", b"", 404, "cannot be a model name"),
        ("/v2/repository/index", b"[" * 100_000, 400, "JSON"),
        ("/v2/repository/index", b" " * 2_000_000, 413, "enough for parameters"),
    ],
)
def test_a_wrong_repository_request_is_refused_with_the_mend(
    visit: Visit, path: str, body: bytes, status: int, says: str
) -> None:
    async def test(house: Any) -> None:
        answer = await house.ask("POST", path, body)
        assert answer.status == status
        assert says in answer.json["error"]
        assert answer.headers["content-type"] == "application/json"
        assert (await house.ask("GET", "/v2/models/linear/ready")).status == 200

    visit(test, "linear")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v2/models/nothing", 404),
        ("GET", "/v2/models/nothing/ready", 404),
        ("GET", "/v2/models/linear/versions/ffff", 404),
        ("GET", "/v2/models/linear/nothing", 404),
        ("POST", "/v2/models/li~near/infer", 404),
        ("POST", "/predict/li~near", 404),
        ("DELETE", "/v2", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/models/linear/infer", 405),
        ("GET", "/v1/models/linear:predict", 405),
        ("GET", "/predict/linear", 405),
        ("GET", "/v2/repository/index", 405),
        ("POST", "/v1/models/linear:explain", 501),
    ],
)
def test_what_is_not_served_is_an_error_that_clients_can_read(
    visit: Visit, method: str, path: str, status: int
) -> None:
    async def test(house: Any) -> None:
        answer = await house.ask(method, path)
        assert answer.status == status
        assert list(answer.json) == ["error"]
        assert answer.headers["content-type"] == "application/json"
        if status == 405:
            assert answer.headers["allow"] in ("POST", "GET, HEAD", "HEAD, GET")

    visit(test, "linear")


class Workers:
    """Other workers, as the site sees them."""

    def __init__(self, others: dict[int, Snapshot | None] | Exception) -> None:
        self.others = others
        self.changes: list[tuple[str, str]] = []

    async def snapshots(self) -> dict[int, Snapshot | None]:
        if isinstance(self.others, Exception):
            raise self.others
        return self.others

    async def change(self, action: str, name: str) -> None:
        self.changes.append((action, name))


def test_a_fault_of_a_page_is_a_500_without_a_stack_trace(visit: Visit) -> None:
    async def test(house: Any) -> None:
        house.site.siblings = Workers(ZeroDivisionError("secret"))
        answer = await house.ask("GET", "/models")
        assert (answer.status, list(answer.json)) == (500, ["error"])
        assert b"secret" not in answer.body
        assert isinstance(house.fault, ZeroDivisionError)  # goes on to the connection, which logs it

    visit(test, "linear")


def test_models_of_other_workers_are_shown_and_counted_too(
    visit: Visit, home: Path, open_house: Callable[..., Any]
) -> None:
    async def test(house: Any) -> None:
        async with open_house(home, "words", "linear") as other:
            other.engine.reject("linear", "native", InvalidInput("no"), other.engine.clock())
            seen = Snapshot.from_bytes(other.site.own().to_bytes())
        house.engine.reject("linear", "native", InvalidInput("no"), house.engine.clock())
        house.site.siblings = Workers({1: seen})
        told = (await house.ask("GET", "/models")).json
        assert [one["name"] for one in told["models"]] == ["linear", "words"]
        assert told["models"][0]["total"]["errors"] == {"invalid": 2}
        assert told["server"]["processes"] == 2
        assert (await house.ask("GET", "/v1/models")).json["models"] == ["linear", "words"]
        index = {one["name"]: one["state"] for one in (await house.ask("POST", "/v2/repository/index")).json}
        assert (index["words"], index["grey"]) == ("READY", "UNAVAILABLE")
        stats = (await house.ask("GET", "/v2/models/stats")).json["model_stats"]
        assert {one["name"]: one["inference_stats"]["fail"]["count"] for one in stats} == {"linear": 2, "words": 0}
        paths = (await house.ask("GET", "/openapi.json")).json["paths"]
        assert {"/predict/words", "/predict/linear"} <= set(paths)

    visit(test, "linear")


def test_a_worker_that_does_not_answer_keeps_the_server_from_being_ready_and_is_no_model(visit: Visit) -> None:
    async def test(house: Any) -> None:
        house.site.siblings = Workers({1: None})
        ready = await house.ask("GET", "/v2/health/ready")
        assert ready.status == 503
        assert "worker 1" in ready.json["error"]
        assert (await house.ask("GET", "/v1/models")).json["models"] == ["linear"]
        names = [one["name"] for one in (await house.ask("POST", "/v2/repository/index")).json]
        assert names == ["grey", "linear", "people", "words"]
        assert [one["name"] for one in (await house.ask("GET", "/models")).json["models"]] == ["linear"]

    visit(test, "linear")


def test_pages_do_not_keep_a_model_that_was_unloaded(visit: Visit) -> None:
    async def test(house: Any) -> None:
        for path in ("/models", "/models/linear/example", "/openapi.json", "/v2/models/linear/config", "/metrics"):
            assert (await house.ask("GET", path)).status == 200
        seen = weakref.ref(house.engine.directory.find("linear", ""))
        await house.ask("POST", "/v2/repository/models/linear/unload")
        await asyncio.gather(*house.fleet._leaving)
        gc.collect()
        assert seen() is None

    visit(test, "linear")


def test_load_and_unload_reach_all_workers(visit: Visit) -> None:
    async def test(house: Any) -> None:
        workers = house.site.siblings = Workers({})
        assert (await house.ask("POST", "/v2/repository/models/words/load")).status == 200
        assert (await house.ask("POST", "/v2/repository/models/words/unload")).status == 200
        assert workers.changes == [("load", "words"), ("unload", "words")]

    visit(test, "linear")


def test_the_root_is_a_sign_of_life_for_programs_and_a_page_for_people(visit: Visit) -> None:
    async def test(house: Any) -> None:
        assert (await house.ask("GET", "/")).json == {"status": "alive"}
        assert (await house.ask("GET", "/", accept="*/*")).json == {"status": "alive"}
        page = await house.ask("GET", "/", accept="text/html,application/xhtml+xml,*/*;q=0.8")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.body.startswith(b"<!doctype html>")
        assert (await house.ask("GET", "/docs")).body == page.body

    visit(test)


def test_the_page_loads_nothing_from_elsewhere_and_its_policy_allows_its_own_script(visit: Visit) -> None:
    async def test(house: Any) -> None:
        page = await house.ask("GET", "/docs")
        assert b"http://" not in page.body
        assert b"https://" not in page.body
        assert b" style=" not in page.body  # the policy would drop them
        assert b" onclick=" not in page.body
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert policy.count("sha256-") == 2

    visit(test)


def test_metadata_of_a_preprocessed_model_shows_its_fields_and_keeps_the_tensors_as_properties(visit: Visit) -> None:
    async def test(house: Any) -> None:
        table = (await house.ask("GET", "/v2/models/people")).json
        assert [(one["name"], one["datatype"], one["shape"]) for one in table["inputs"]] == [
            ("age", "FP64", [-1]), ("children", "INT64", [-1]), ("member", "BOOL", [-1]), ("country", "BYTES", [-1]),
        ]  # fmt: skip
        assert table["properties"]["tensors"] == "row FP32[-1, 4]"
        assert table["platform"] == "onnx_onnxruntime"
        assert table["versions"] == [table["properties"]["version"][:12]]
        picture = (await house.ask("GET", "/v2/models/grey")).json
        assert picture["inputs"] == [{"name": "picture", "datatype": "BYTES", "shape": [-1]}]
        assert all(isinstance(value, str) for value in picture["properties"].values())

    visit(test, "people", "grey")


def test_the_configuration_says_what_load_tools_need(visit: Visit) -> None:
    async def test(house: Any) -> None:
        config = (await house.ask("GET", "/v2/models/linear/config")).json
        assert (config["name"], config["platform"], config["max_batch_size"]) == ("linear", "onnx_onnxruntime", 128)
        assert config["input"][0] == {"name": "x", "data_type": "TYPE_FP32", "format": "FORMAT_NONE", "dims": [3]}
        assert config["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}]
        words = (await house.ask("GET", "/v2/models/words/config")).json
        assert [one["data_type"] for one in words["input"]] == ["TYPE_STRING", "TYPE_INT64"]

    visit(test, "linear", "words")


def test_kserve_v1_lists_all_names_and_tells_of_one(visit: Visit) -> None:
    async def test(house: Any) -> None:
        assert (await house.ask("GET", "/v1/models")).json["models"] == ["linear", "words"]
        told = (await house.ask("GET", "/v1/models/linear")).json
        assert (told["name"], told["ready"]) == ("linear", True)

    visit(test, "words", "linear")


def test_every_example_is_a_call_that_its_model_takes(server: Any) -> None:
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=server.url) as client:
        for name in ("linear", "words", "people", "grey"):
            example = client.get(f"/models/{name}/example")
            assert example.status_code == 200
            assert client.post(f"/predict/{name}", content=example.content).status_code == 200, name


def test_head_is_a_get_without_a_body(server: Any) -> None:
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=server.url) as client:
        for path in ("/", "/v2", "/v2/health/ready", "/v2/models/linear", "/openapi.json"):
            head, get = client.head(path), client.get(path)
            assert head.status_code == get.status_code == 200
            assert head.content == b""
            assert head.headers["content-length"] == str(len(get.content))


def test_the_models_page_has_what_a_form_needs(visit: Visit) -> None:
    async def test(house: Any) -> None:
        told = (await house.ask("GET", "/models")).json
        [people] = told["models"]
        fields = {one["name"]: one for one in people["fields"]}
        assert fields["age"]["most"] == 150
        assert fields["children"]["default"] == 0
        assert not fields["children"]["required"]
        assert fields["country"]["values"] == ["AT", "PT"]
        assert fields["country"]["open"]
        assert people["target_ms"] == 250
        assert people["recent"]["p99_ms"] is None
        assert told["server"]["ready"]

    visit(test, "people")


def test_answers_to_a_state_are_not_kept_by_anyone(visit: Visit) -> None:
    async def test(house: Any) -> None:
        for path in ("/v2/health/ready", "/v2/models/linear", "/models", "/metrics"):
            assert (await house.ask("GET", path)).headers["cache-control"] == "no-store"

    visit(test, "linear")


def test_json_of_the_pages_is_json(visit: Visit) -> None:
    async def test(house: Any) -> None:
        for path in ("/models", "/openapi.json", "/v2/models/stats"):
            msgspec.json.decode((await house.ask("GET", path)).body)

    visit(test, "linear", "words", "people", "grey")


def test_a_snapshot_is_taken_without_loading_the_web_framework() -> None:
    script = "import sys, pelton.server.snapshots; print([m for m in ('starlette', 'prometheus_client') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.strip() == "[]"
