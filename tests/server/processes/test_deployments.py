"""Real servers follow the desired state: they switch without losing a call, and never to what is not right."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

pytestmark = pytest.mark.timeout(120)

SWAPS = 12


def converged(home: Any, name: str, revision: int, processes: int = 1) -> Any:
    """Whether so many processes report that revision."""
    reports = [status.models.get(name) for status in home.control.deployments.processes().values()]
    return len([report for report in reports if report is not None and report.converged == revision]) == processes


def reported(home: Any, name: str) -> dict[str, str]:
    """What the first process that reports says of the versions of a model."""
    for status in home.control.deployments.processes().values():
        if name in status.models:
            versions: dict[str, str] = status.models[name].versions
            return versions
    return {}


@pytest.mark.parametrize("workers", [1, 2])
def test_versions_are_swapped_under_load_without_a_failed_call(
    home: Any, until: Any, traffic: Any, workers: int
) -> None:
    versions = [home.add_twice("m", times) for times in (2, 3, 4)]
    server = home.serve(workers=workers, keep_warm=0).wait_ready()
    with traffic(server.port, "m") as callers:
        for swap in range(SWAPS):
            wanted = versions[swap % 3]
            changed = home.control.deploy(f"m:{wanted}").deployment
            before = callers.answered(wanted)
            until(lambda: callers.answered(wanted) > before or callers.broken, f"swap {swap}")
            until(lambda: converged(home, "m", changed.revision, workers), f"swap {swap} everywhere")
            assert until(lambda: server.version("m"), "an answer") == wanted[:12]
    assert callers.failed() == 0, (callers.answers, callers.broken)
    assert callers.versions() == {version[:12] for version in versions}
    until(lambda: server.text().count("was released") >= (SWAPS - 1) * workers, "earlier versions are given back")


def test_what_is_deployed_answers_after_a_restart_not_what_is_newest(home: Any, until: Any) -> None:
    old = home.add_twice("m", 2)
    home.add_twice("m", 3)
    home.control.deploy(f"m:{old}")
    server = home.serve().wait_ready()
    assert server.version("m") == old[:12]
    server.process.kill()
    server.exit_code()
    assert home.serve().wait_ready().version("m") == old[:12]


def test_a_version_with_wrong_golden_answers_never_serves_and_the_reason_is_told(
    home: Any, until: Any, traffic: Any
) -> None:
    good, wrong = home.add_twice("m", 2, recorded=2.0), home.add_twice("m", 3, recorded=2.0)
    home.control.deploy(f"m:{good}")
    server = home.serve().wait_ready()
    with traffic(server.port, "m") as callers:
        home.control.deploy(f"m:{wrong}")
        until(lambda: "golden request 0" in reported(home, "m").get(wrong, ""), "the reason in the report")
        assert reported(home, "m")[good] == "serves"
        before = callers.answered(good)
        until(lambda: callers.answered(good) > before, "what served goes on")
    assert (callers.versions(), callers.failed()) == ({good[:12]}, 0)
    assert server.ready()
    assert server.get(f"/v2/models/m/versions/{wrong}/ready")[0] == 404


@pytest.mark.parametrize("how", ["changed", "half", "gone"])
def test_files_that_are_not_those_of_the_version_are_refused(home: Any, until: Any, how: str) -> None:
    good, bad = home.add_twice("m", 2), home.add_twice("m", 3)
    file = home.registry.home / "artifacts" / bad / "files" / "m.onnx"
    whole = file.read_bytes()
    file.chmod(0o644)
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(whole[: len(whole) // 2] if how == "half" else whole[:-1] + bytes([whole[-1] ^ 1]))
    home.control.deploy(f"m:{good}")
    server = home.serve().wait_ready()
    current = home.control.deployments.get("m")
    home.control.deployments.change(replace(current, version=bad, previous=good), current.revision, "me", "deploy")
    until(lambda: "m.onnx" in reported(home, "m").get(bad, ""), "the reason in the report")
    assert server.version("m") == good[:12]
    file.write_bytes(whole)
    later = home.control.deployments.get("m")
    home.control.deployments.change(replace(later, slow_ms=1.0), later.revision, "me", "deploy")
    until(lambda: server.version("m") == bad[:12], "mended files serve once something changes")


def test_a_rollback_answers_from_the_warm_version_within_a_second(home: Any, until: Any) -> None:
    old, new = home.add_twice("m", 2), home.add_twice("m", 3)
    home.control.deploy(f"m:{old}")
    server = home.serve().wait_ready()
    home.control.deploy(f"m:{new}")
    until(lambda: server.version("m") == new[:12], "the new one")
    took = []
    for wanted in (old, new, old):
        begin = time.monotonic()
        home.control.rollback("m", to=wanted[:12])
        until(lambda: server.version("m") == wanted[:12], "the one before")
        took.append(time.monotonic() - begin)
    assert min(took) < 1.0
    assert server.text().count(f"m:{old[:12]} is loaded") == 1, "it stayed in memory"


def test_the_version_before_is_given_back_after_its_time(home: Any, until: Any) -> None:
    old, new = home.add_twice("m", 2), home.add_twice("m", 3)
    home.control.deploy(f"m:{old}")
    server = home.serve(keep_warm=1).wait_ready()
    home.control.deploy(f"m:{new}")
    until(lambda: server.version("m") == new[:12], "the new one")
    until(lambda: reported(home, "m").get(old) == "warm" or f"m:{old[:12]} was released" in server.text(), "warm")
    until(lambda: f"m:{old[:12]} was released" in server.text(), "given back")
    assert server.get(f"/v2/models/m/versions/{old}/ready")[0] == 404


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_is_new_in_the_store_is_served_and_an_undeployed_one_is_not(
    home: Any, until: Any, workers: int
) -> None:
    home.add_twice("m", 2)
    server = home.serve(workers=workers).wait_ready()
    home.add_twice("late", 5)
    home.add_faulty("slow", "a")  # of user code: it lives in one worker
    for name in ("late", "slow"):
        home.control.deploy(name)
    for name in ("late", "slow"):
        until(lambda: all(server.version(name) for _ in range(8)), f"{name} answers, whichever worker is asked")
    home.control.undeploy("late")
    until(lambda: not any(server.version("late") for _ in range(8)), "nobody answers for it")
    assert server.ask("late", 1)[0] in (404, 503)
    assert server.ready()
    home.control.rollback("late")
    until(lambda: all(server.version("late") for _ in range(8)), "it is back")


def test_a_server_that_was_started_for_a_version_or_for_some_models_keeps_to_them(home: Any, until: Any) -> None:
    old, new = home.add_twice("m", 2), home.add_twice("m", 3)
    other = home.add_twice("n", 4)
    server = home.serve(f"m:{old[:12]}", "n").wait_ready()
    home.add_twice("late", 5)
    for ref in (f"m:{new}", "late", f"n:{home.add_twice('n', 6)}"):
        home.control.deploy(ref)
    until(lambda: server.version("n") not in ("", other[:12]), "n follows the store")
    assert server.version("m") == old[:12]
    assert server.ask("late", 1)[0] == 404
    until(lambda: reported(home, "m") == {old: "serves"}, "the report")
    (status,) = home.control.deployments.processes().values()
    assert (status.models["m"].pinned, status.models["n"].pinned) == (True, False)


def test_deployed_models_are_not_taken_out_by_a_request_and_others_still_are(home: Any, until: Any) -> None:
    home.add_twice("m", 2)
    home.add_twice("n", 2)
    server = home.serve().wait_ready()
    home.control.deploy("m")
    until(lambda: converged(home, "m", 1), "deployed")
    post = "/v2/repository/models"
    status, told, _ = server.get(f"{post}/m/unload", "POST")
    assert (status, "undeploy" in told["error"]) == (409, True)
    assert server.get(f"{post}/m/load", "POST")[0] == 200
    assert server.get(f"{post}/n/unload", "POST")[0] == 200
    assert (server.version("m") != "", server.version("n")) == (True, "")
    assert server.get(f"{post}/n/load", "POST")[0] == 200
    assert server.version("n") != ""
    home.control.undeploy("m")
    until(lambda: not server.version("m"), "undeployed")
    assert server.get(f"{post}/m/load", "POST")[0] == 404
    assert server.get(f"{post}/m/unload", "POST")[0] == 200


def test_pages_show_what_serves_whatever_else_is_in_memory(home: Any, until: Any) -> None:
    old, new, shadow = (home.add_twice("m", times) for times in (2, 3, 4))
    home.control.deploy(f"m:{old}")
    server = home.serve().wait_ready()
    home.control.deploy(f"m:{new}")
    home.control.shadow("m", shadow, share=1.0)
    revision = home.control.deployments.get("m").revision
    until(lambda: converged(home, "m", revision), "all of it is in place")
    assert server.version("m") == new[:12]
    assert [row["version"] for row in server.get("/models")[1]["models"]] == [new[:12]]
    assert set(server.get("/v2/models/m")[1]["versions"]) == {old[:12], new[:12], shadow[:12]}
    assert server.get("/v2/models/m")[1]["properties"]["version"] == new
    assert {row["version"] for row in server.get("/v2/models/m/stats")[1]["model_stats"]} >= {new[:12]}
    assert server.get("/openapi.json")[0] == 200
    assert server.get(f"/v2/models/m/versions/{old}/ready")[0] == 200


def test_a_worker_that_is_started_again_serves_what_the_store_says_now(home: Any, until: Any, traffic: Any) -> None:
    old, new = home.add_twice("m", 2), home.add_twice("m", 3)
    home.control.deploy(f"m:{old}")
    server = home.serve(workers=2).wait_ready()
    home.control.deploy(f"m:{new}")
    until(lambda: converged(home, "m", 2, 2), "both workers have it")
    victim = server.workers()[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(server.workers()) == 2 and victim not in server.workers(), "it is started again")
    server.wait_ready()
    until(lambda: converged(home, "m", 2, 3) or converged(home, "m", 2, 2), "it reports")
    assert {server.version("m") for _ in range(20)} == {new[:12]}
    assert f"m:{old[:12]}" not in server.text().partition("is started again")[2], "the stale one was never loaded"


def test_a_clean_end_takes_the_report_away(home: Any, until: Any) -> None:
    home.add_twice("m", 2)
    home.control.deploy("m")
    server = home.serve().wait_ready()
    until(lambda: converged(home, "m", 1), "reported")
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0
    assert home.control.deployments.processes() == {}


def test_a_server_on_sqlite_reports_without_the_database_library(home: Any, until: Any) -> None:
    """It takes a quarter of a second of a core and 20 MB."""
    version = home.add_twice("m", 2)
    server = home.serve().wait_ready()
    until(lambda: reported(home, "m") == {version: "serves"}, "the report of a server without deployments")
    assert "sqlalchemy" not in Path(f"/proc/{server.process.pid}/maps").read_text()
