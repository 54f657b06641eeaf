"""The admin API of real servers: what it changes, what it refuses, and commands that go through it."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pelton.control import Control
from pelton.control.orders import OPERATIONS
from pelton.server.pages.admin import RUNNING, WAITING

JSON = {"content-type": "application/json"}

pytestmark = pytest.mark.timeout(180)


def ask(
    port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, host: str = "127.0.0.1"
):
    """(status, JSON, headers)."""
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = {**(JSON if method != "GET" else {}), **(headers or {})}
        connection.request(method, f"/admin/v1{path}", sent, given)
        response = connection.getresponse()
        data = response.read()
        return response.status, json.loads(data) if data else None, {k.lower(): v for k, v in response.getheaders()}
    finally:
        connection.close()


@pytest.fixture
def versions(home) -> list[str]:
    """Two versions of a model, the newest first."""
    home.add_twice("twice", 2)
    home.add_twice("twice", 3)
    return [entry.version for entry in home.registry.versions("twice")]


@pytest.fixture
def server(home, versions, until):
    """A server that the store knows of."""
    server = home.serve().wait_ready()
    until(lambda: ask(server.port, "GET", "/status")[1]["processes"], "the first report")
    return server


@pytest.fixture
def port(home, versions) -> int:
    return home.serve().wait_ready().port


def serves(server, factor: float) -> bool:
    status, told, _ = server.ask("twice", 1.0)
    assert status == 200
    return told["y"] == [factor]


def test_a_model_is_deployed_looked_at_and_rolled_back(server, versions, until):
    new, old = versions
    status, told, headers = ask(server.port, "POST", f"/models/twice:{old[:12]}/deploy", {"why": "older"})
    assert (status, told["changed"], told["deployment"]["version"]) == (200, True, old)
    assert headers["etag"] == '"1"'
    until(lambda: serves(server, 2.0), "the older version answers")
    status, told, headers = ask(server.port, "GET", "/models/twice/deployment")
    assert (told["version"], told["previous"], headers["etag"]) == (old, new, '"1"')
    until(lambda: ask(server.port, "GET", "/status?name=twice")[1]["models"][0]["converged"], "the report")
    status, told, _ = ask(server.port, "POST", "/models/twice/rollback", {"why": "newer again"})
    assert (status, told["deployment"]["version"]) == (200, new)
    until(lambda: serves(server, 3.0), "the newer version answers")
    [second, first] = ask(server.port, "GET", "/models/twice/history")[1]["changes"]
    assert (first["why"], second["why"], second["action"]) == ("older", "newer again", "rollback")
    assert first["actor"] == "by this machine"


def test_a_change_of_another_revision_conflicts_by_if_match_and_by_expect(port, versions):
    path = f"/models/twice:{versions[1]}/deploy"
    assert ask(port, "POST", path, {}, {"if-match": '"0"'})[0] == 200
    for body, headers in (({}, {"if-match": '"0"'}), ({"expect": 0}, {})):
        status, told, _ = ask(port, "POST", path, body, headers)
        assert status == 409
        assert "revision 1, not 0" in told["error"]
    assert ask(port, "POST", path, {"slow_ms": 5}, {"if-match": 'W/"1"'})[0] == 200
    assert ask(port, "POST", path, {"expect": 2}, {"if-match": '"3"'})[0] == 400
    assert ask(port, "POST", path, {}, {"if-match": "soon"})[0] == 400
    assert ask(port, "POST", path, {}, {"if-match": "*"})[0] == 200


def test_of_many_that_deploy_over_http_from_one_revision_one_wins(port, versions):
    def deploy(number: int) -> int:
        return ask(port, "POST", f"/models/twice:{versions[1]}/deploy", {"expect": 0, "why": str(number)})[0]

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(deploy, range(8)))
    assert statuses == [200] + [409] * 7


WRONG = [
    ("POST", "/models/nothing/deploy", {}, 404, "there is no model 'nothing'"),
    ("POST", "/models/twice:beef/deploy", {}, 404, "no version"),
    ("GET", "/models/twice/deployment", None, 404, "never deployed"),
    ("POST", "/models/twice/rollback", {}, 404, "never deployed"),
    ("POST", "/models/twice/rollout/pause", {}, 404, "no rollout"),
    ("POST", "/models/twice/deploy", {"wyh": "x"}, 400, "did you mean 'why'"),
    ("POST", "/models/twice/deploy", {"why": 3}, 400, "why"),
    ("POST", "/models/twice/deploy", {"ref": "other"}, 400, "stands in the path"),
    ("POST", "/models/twice/deploy", b"{", 400, "not valid JSON"),
    ("POST", "/models/twice/deploy", b"[]", 400, "JSON object"),
    ("POST", "/models/twice/deploy", b"{" + b" " * 1_100_000 + b"}", 413, "bytes"),
    ("POST", "/models/twice/deploy?why=x", {}, 400, "JSON body"),
    ("GET", "/models/twice/history?limit=many", None, 400, "limit"),
    ("GET", "/models/twice/history?limit=0", None, 400, "limit"),
    ("GET", "/models/twice/history?limits=3", None, 400, "did you mean 'limit'"),
    ("PUT", "/models/twice/shadow", {"share": 2}, 404, "pelton deploy"),
    ("POST", "/apply", {"desired": {"models": {"twice": {"versoin": "1"}}}}, 400, "did you mean models.twice.version"),
    ("POST", "/apply", {}, 400, "desired"),
    ("POST", "/gc", {"older_than": -1}, 400, "age"),
    ("DELETE", "/webhooks/wh_1", None, 404, "no webhook"),
    ("PUT", "/models/twice/aliases/champion", {"version": "beef"}, 404, "no version"),
    ("PUT", "/models/twice/aliases/champion", {"version": ""}, 400, "version"),
    ("DELETE", "/models/twice/aliases/champion", None, 404, "no alias"),
    ("GET", "/nowhere", None, 404, "nothing at"),
    ("DELETE", "/status", None, 405, "not taken"),
]  # fmt: skip


def test_wrong_requests_are_told_what_is_wrong(port):
    for method, path, body, status, told in WRONG:
        found = ask(port, method, path, body)
        assert found[0] == status, (method, path, body, found)
        assert list(found[1]) == ["error"]
        assert told in found[1]["error"], (method, path, body, found)


def test_changes_need_the_content_type_that_no_form_can_send(port):
    for given in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        status, told, _ = ask(port, "POST", "/models/twice/deploy", b"{}", {"content-type": given})
        assert (status, "Content-Type" in told["error"]) == (400, True)
    assert ask(port, "POST", "/models/twice/deploy", {}, {"content-type": "application/json; charset=utf-8"})[0] == 200


def test_a_browser_of_another_site_and_a_foreign_host_are_kept_out(port):
    assert ask(port, "GET", "/status")[0] == 200
    assert ask(port, "GET", "/status", headers={"origin": "https://evil.example"})[0] == 403
    assert ask(port, "GET", "/status", headers={"host": "evil.example"})[0] == 403
    assert ask(port, "POST", "/models/twice/deploy", {}, {"sec-fetch-site": "cross-site"})[0] == 403


def test_without_a_token_other_addresses_of_the_machine_are_kept_out(home, versions):
    address = outside_address()
    server = home.serve(host="0.0.0.0").wait_ready()
    assert ask(server.port, "GET", "/status")[0] == 200
    status, told, _ = ask(server.port, "GET", "/status", host=address)
    assert status == 403
    assert "admin_token" in told["error"]


def outside_address() -> str:
    """An address of this machine that is not its loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no other address")
        return str(probe.getsockname()[0])


def test_with_a_token_nobody_gets_in_without_it(home, versions):
    server = home.serve(admin_token="s3cret").wait_ready()
    status, told, headers = ask(server.port, "GET", "/status")
    assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="pelton"')
    assert "s3cret" not in json.dumps(told)
    for operation in OPERATIONS:
        assert ask(server.port, operation.verb, operation.path, b"{}")[0] == 401, operation.method
    assert ask(server.port, "GET", "/status", headers={"authorization": "Bearer wrong"})[0] == 401
    given = {"authorization": "Bearer s3cret", "pelton-actor": "ann@desk"}
    assert ask(server.port, "POST", "/models/twice/deploy", {}, given)[0] == 200
    [change] = ask(server.port, "GET", "/models/twice/history", headers=given)[1]["changes"]
    assert change["actor"] == "ann@desk (by token)"
    assert server.ask("twice", 1.0)[0] == 200


def test_the_api_works_with_several_workers(home, versions, until):
    server = home.serve(workers=2).wait_ready()
    assert ask(server.port, "POST", f"/models/twice:{versions[1]}/deploy", {})[0] == 200
    state = lambda: ask(server.port, "GET", "/status")[1]["models"][0]  # noqa: E731
    until(lambda: len(state()["processes"]) == 2 and state()["converged"], "both workers converge")
    assert all(serves(server, 2.0) for _ in range(10))


def test_inference_goes_on_while_the_store_is_busy(home, versions):
    """Orders wait for a lock in threads; the loop answers calls."""
    server = home.serve().wait_ready()
    assert ask(server.port, "GET", "/status")[0] == 200
    with home.registry.store.write():
        waiting = threading.Thread(target=ask, args=(server.port, "POST", "/models/twice/deploy", {}))
        waiting.start()
        for _ in range(20):
            assert server.ask("twice", 1.0)[0] == 200
        assert waiting.is_alive()
    waiting.join(30)
    assert not waiting.is_alive()
    assert Control(home.registry.store, home.registry).deployment("twice").revision == 1


def test_more_orders_than_may_wait_are_refused_with_a_time_to_come_back(home, versions, until):
    server = home.serve().wait_ready()
    statuses: list[int] = []

    def deploy() -> None:
        statuses.append(ask(server.port, "POST", "/models/twice/deploy", {})[0])

    with home.registry.store.write():
        crowd = [threading.Thread(target=deploy) for _ in range(RUNNING + WAITING + 4)]
        for one in crowd:
            one.start()
        until(lambda: statuses.count(429) >= 4, "the last ones are refused")
        status, told, headers = ask(server.port, "GET", "/status")
        assert (status, headers["retry-after"]) == (429, "1")
        assert "try again" in told["error"]
        assert server.ask("twice", 1.0)[0] == 200
    for one in crowd:
        one.join(60)
    assert (
        statuses.count(200) + statuses.count(409) == RUNNING + WAITING
    )  # those that ran together were of one revision
    assert ask(server.port, "GET", "/status")[0] == 200


def pelton(*words: str, home=None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pelton", *words]
    if home is not None:
        command += ["--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_commands_say_the_same_on_the_store_and_through_a_server(home, versions, until):
    server = home.serve().wait_ready()
    url = f"http://127.0.0.1:{server.port}"
    done = pelton("deploy", f"twice:{versions[1][:8]}", "--why", "older", "--url", url)
    assert done.returncode == 0, done.stderr
    assert "1 process converged" in done.stderr
    for words in (["models", "twice"], ["history", "twice"], ["status", "twice", "--json"], ["audit", "--json"]):
        until(
            lambda words=words: _same(pelton(*words, home=home.registry.home), pelton(*words, "--url", url)),
            f"{words} says the same",
        )


def _same(here: subprocess.CompletedProcess[str], there: subprocess.CompletedProcess[str]) -> bool:
    assert (here.returncode, there.returncode) == (0, 0), here.stderr + there.stderr
    assert here.stdout
    changing = ('"at":', '"calls_per_second":', '"processes":')  # a status tells of its moment
    if any(mark in here.stdout for mark in changing):
        return bool(_steady(json.loads(here.stdout)) == _steady(json.loads(there.stdout)))
    return here.stdout == there.stdout


def _steady(told: dict[str, Any]) -> Any:
    if "models" not in told:
        return told
    return [(model["name"], model["deployment"], model["converged"]) for model in told["models"]]


def test_a_command_without_the_token_of_the_server_says_so(home, versions):
    server = home.serve(admin_token="s3cret").wait_ready()
    url = f"http://127.0.0.1:{server.port}"
    refused = pelton("status", "--url", url)
    assert refused.returncode == 1
    assert "PELTON_ADMIN_TOKEN" in refused.stderr
    assert pelton("status", "--url", url, "--token", "s3cret").returncode == 0


def test_answers_are_those_that_the_openapi_document_promises(server, versions):
    jsonschema = pytest.importorskip("jsonschema")
    document = server.get("/openapi.json")[1]
    tried = set()

    def check(method: str, template: str, path: str, body: Any = None) -> None:
        promised = document["paths"][f"/admin/v1{template}"][method.lower()]
        if body is not None:
            given = {
                **promised["requestBody"]["content"]["application/json"]["schema"],
                "components": document["components"],
            }
            jsonschema.Draft202012Validator(given).validate(body)
        status, told, _ = ask(server.port, method, path, body)
        assert status == 200, (path, told)
        schema = promised["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(told)
        tried.add((method, template))

    new, old = versions
    check("PUT", "/models/{name}/aliases/{alias}", "/models/twice/aliases/champion", {"version": old, "why": "x"})
    check("POST", "/models/{ref}/deploy", "/models/twice@champion/deploy", {"why": "first", "slow_ms": 50})
    check("PUT", "/models/{name}/shadow", "/models/twice/shadow", {"version": new[:12], "share": 0.5})
    check("PUT", "/models/{name}/shadow", "/models/twice/shadow", {})
    check(
        "POST",
        "/models/{ref}/rollout",
        f"/models/twice:{new}/rollout",
        {"steps": [0.1, 1.0], "limits": {"alpha": 0.01}},
    )
    for get in ("/status", "/models", "/events", "/webhooks"):
        check("GET", get, get)
    for get in ("deployment", "history", "rollouts", "aliases"):
        check("GET", f"/models/{{name}}/{get}", f"/models/twice/{get}")
    check("GET", "/models/{name}/aliases/{alias}/history", "/models/twice/aliases/champion/history")
    check("GET", "/diff", f"/diff?a=twice:{old}&b=twice:{new}")
    for move in ("pause", "resume", "promote"):
        check("POST", f"/models/{{name}}/rollout/{move}", f"/models/twice/rollout/{move}", {"why": "by hand"})
    check("POST", "/models/{name}/rollback", "/models/twice/rollback", {})
    check("POST", "/models/{ref}/rollout", f"/models/twice:{new}/rollout", {"dry_run": True})
    check("POST", "/models/{ref}/rollout", f"/models/twice:{new}/rollout", {})
    check("POST", "/models/{name}/rollout/abort", "/models/twice/rollout/abort", {})
    check("DELETE", "/models/{name}/aliases/{alias}", "/models/twice/aliases/champion", {"why": "done"})
    check("POST", "/models/{name}/undeploy", "/models/twice/undeploy", {})
    check("POST", "/apply", "/apply", {"desired": {"models": {"twice": {"version": new}}}, "dry_run": True})
    check("POST", "/gc", "/gc", {"dry_run": True})
    check("POST", "/webhooks", "/webhooks", {"url": "https://example.org/hook"})
    made = ask(server.port, "GET", "/webhooks")[1]["webhooks"][0]["id"]
    check("DELETE", "/webhooks/{webhook}", f"/webhooks/{made}", {})
    assert tried == {(operation.verb, operation.path) for operation in OPERATIONS}
