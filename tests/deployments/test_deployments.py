from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec.structs import replace

from pelton.deployments import Deployment, Deployments, ModelStatus, ProcessStatus, Shadow
from pelton.errors import Conflict, PeltonError
from pelton.events import Events
from pelton.rollout.state import Arm, Limits, Pairs, Rollout, Segment, Stretch, Worst
from pelton.store import Store
from pelton.testing import ManualClock

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store.open(store_url)
    yield store
    store.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000_000.0)


@pytest.fixture
def deployments(store: Store, clock: ManualClock) -> Deployments:
    return Deployments(store, clock)


def rollout(**changes: object) -> Rollout:
    made = Rollout("ro_1", "fraud", A, B, (0.1, 1.0), Limits(), started_at=5.0)
    return replace(made, **changes)


def test_what_was_never_deployed_is_none(deployments):
    assert deployments.get("fraud") is None
    assert deployments.all() == {}
    assert deployments.revisions() == {}
    assert deployments.history("fraud") == []


def test_a_change_is_stored_whole_and_counts_the_revision_up(deployments):
    full = Deployment("fraud", 0, A, B, C, 0.25, Shadow(C, 0.5, 0.02, "country"), "ro_1", 20.0)
    written = deployments.change(full, 0, "ann@desk", "deploy", "first")
    assert written == replace(full, revision=1)
    assert deployments.get("fraud") == written
    assert deployments.all() == {"fraud": written}
    assert deployments.change(replace(written, version=B), 1, "ann@desk", "deploy").revision == 2
    assert deployments.revisions() == {"fraud": 2}


@pytest.mark.parametrize("expect", [0, 2, 7])
def test_a_change_of_another_revision_is_refused_and_says_who_was_first(deployments, expect):
    deployments.change(Deployment("fraud", version=A), 0, "ann@desk", "deploy", "friday")
    with pytest.raises(Conflict, match=rf"revision 1, not {expect}: ann@desk was first \(deploy: friday\)"):
        deployments.change(Deployment("fraud", version=B), expect, "bob@desk", "deploy")
    assert deployments.get("fraud").version == A
    assert len(deployments.history("fraud")) == 1


def test_a_refused_change_leaves_no_event(store, deployments):
    deployments.change(Deployment("fraud", version=A), 0, "ann", "deploy")
    with pytest.raises(Conflict):
        deployments.change(Deployment("fraud", version=B), 0, "bob", "deploy")
    assert [event.actor for event in Events(store).page()] == ["ann"]


def test_history_tells_the_newest_first_in_pages(deployments, clock):
    for revision in range(5):
        clock.advance(1.0)
        deployments.change(Deployment("fraud", version=A), revision, "ann", "deploy", f"why {revision}")
        deployments.change(Deployment("churn", version=B), revision, "bob", "deploy")
    changes = deployments.history("fraud", 2)
    assert [(change.revision, change.why) for change in changes] == [(5, "why 4"), (4, "why 3")]
    assert [change.revision for change in deployments.history("fraud", 10, before=4)] == [3, 2, 1]
    assert changes[0].deployment == Deployment("fraud", 5, A)
    assert (changes[0].actor, changes[0].action, changes[0].at) == ("ann", "deploy", clock())


def test_every_change_is_an_event_with_who_and_why(store, deployments, clock):
    deployments.change(Deployment("fraud", version=A, slow_ms=20.0), 0, "ann", "deploy", "friday")
    [event] = Events(store).page()
    assert (event.action, event.name, event.actor, event.at) == ("deploy", "fraud", "ann", clock())
    assert event.details == {"revision": 1, "version": A, "slow_ms": 20.0, "why": "friday"}


def test_of_threads_that_change_the_same_revision_one_wins(deployments):
    deployments.change(Deployment("fraud", version=A), 0, "ann", "deploy")

    def change(number: int) -> str:
        try:
            deployments.change(Deployment("fraud", version=B), 1, f"operator {number}", "deploy")
        except Conflict:
            return "conflict"
        return f"operator {number}"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(change, range(8)))
    [winner] = [outcome for outcome in outcomes if outcome != "conflict"]
    assert [change.actor for change in deployments.history("fraud")] == [winner, "ann"]


RACE = """
import sys
from pelton.deployments import Deployment, Deployments
from pelton.errors import Conflict
from pelton.store import Store

deployments = Deployments(Store.open(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for revision in range(20):
    try:
        deployments.change(Deployment("fraud", version="b" * 64), revision, sys.argv[2], "deploy")
        print("won", flush=True)
    except Conflict:
        print("conflict", flush=True)
"""


def test_of_processes_that_race_for_each_revision_exactly_one_wins_each(store_url, deployments):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, store_url, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in ("ann", "bob")
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    outcomes = [racer.communicate(timeout=50)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    history = deployments.history("fraud")[::-1]
    assert [change.revision for change in history] == list(range(1, len(history) + 1))
    assert sum(outcome.count("won") for outcome in outcomes) == len(history) == 20
    for name, outcome in zip(("ann", "bob"), outcomes, strict=True):
        assert outcome.count("won") == sum(change.actor == name for change in history)


# ---- rollouts


def test_a_rollout_and_its_deployment_start_together(store, deployments):
    stable = deployments.change(Deployment("fraud", version=A), 0, "ann", "deploy")
    begun, changed = deployments.change_rollout(
        rollout(routes=(2,)), 0, "ann", "rollout", "new features",
        replace(stable, candidate=B, weight=0.1, rollout="ro_1"), {"steps": [0.1, 1.0]},
    )  # fmt: skip
    assert begun.revision == 1
    assert changed.revision == 2
    assert deployments.rollout("ro_1") == begun
    assert deployments.open_rollouts() == deployments.rollouts("fraud") == [begun]
    assert deployments.get("fraud") == changed
    event = Events(store).page()[-1]
    assert event.details["rollout"] == "ro_1"
    assert event.details["steps"] == [0.1, 1.0]
    assert event.details["why"] == "new features"


def test_where_the_deployment_has_moved_on_the_rollout_does_not_move_either(store, deployments):
    seen = deployments.change(Deployment("fraud", version=A), 0, "ann", "deploy")
    deployments.change(replace(seen, version=C), 1, "bob", "deploy")
    with pytest.raises(Conflict, match="bob was first"):
        deployments.change_rollout(rollout(), 0, "ann", "rollout", "", replace(seen, candidate=B))
    assert deployments.rollout("ro_1") is None
    assert len(Events(store).page()) == 2


def test_where_the_rollout_has_moved_on_the_deployment_does_not_move_either(deployments):
    seen = deployments.change(Deployment("fraud", version=A), 0, "ann", "deploy")
    begun, _ = deployments.change_rollout(rollout(), 0, "ann", "rollout")
    deployments.change_rollout(replace(begun, status="paused"), 1, "bob", "pause")
    with pytest.raises(Conflict, match="moved on to revision 2"):
        deployments.change_rollout(replace(begun, status="promoted"), 1, "ann", "promote", "", replace(seen, version=B))
    assert deployments.get("fraud") == seen
    assert deployments.rollout("ro_1").status == "paused"


def test_a_model_has_one_open_rollout_at_most(deployments):
    begun, _ = deployments.change_rollout(rollout(), 0, "ann", "rollout")
    with pytest.raises(Conflict, match="ro_1 of 'fraud' is still open"):
        deployments.change_rollout(rollout(id="ro_2"), 0, "bob", "rollout")
    deployments.change_rollout(rollout(id="ro_3", name="churn"), 0, "bob", "rollout")
    deployments.change_rollout(replace(begun, status="aborted"), 1, "ann", "abort")
    deployments.change_rollout(rollout(id="ro_2", started_at=6.0), 0, "bob", "rollout")
    assert [one.id for one in deployments.rollouts("fraud")] == ["ro_2", "ro_1"]
    assert {one.id for one in deployments.open_rollouts()} == {"ro_2", "ro_3"}


# ---- reports and evidence


def test_processes_that_fall_silent_are_not_shown(deployments, clock):
    status = ProcessStatus("host", 7, 8080, 0, 1.0, {"fraud": ModelStatus({A: "serves"}, 3, 12.5, 0.1, 0.2)})
    deployments.report("one", status)
    clock.advance(10.0)
    deployments.report("two", replace(status, pid=8))
    assert deployments.processes() == {"one": status, "two": replace(status, pid=8)}
    clock.advance(6.0)
    assert set(deployments.processes()) == {"two"}
    assert set(deployments.processes(max_age=60.0)) == {"one", "two"}


def test_a_report_replaces_the_one_before_and_a_process_that_ends_is_forgotten(deployments):
    deployments.report("one", ProcessStatus("host", 7, 8080, 0, 1.0))
    deployments.report("one", ProcessStatus("host", 7, 8080, 0, 1.0, {"fraud": ModelStatus(converged=1)}))
    assert deployments.processes()["one"].models["fraud"].converged == 1
    deployments.forget("one")
    assert deployments.processes() == {}


def test_reports_of_processes_that_died_long_ago_are_cleared(deployments, store, clock):
    deployments.report("dead", ProcessStatus("host", 7, 8080, 0, 1.0))
    clock.advance(3601.0)
    deployments.report("new", ProcessStatus("host", 8, 8080, 0, 1.0))
    assert [row["id"] for row in store.rows("processes")] == ["new"]


def test_evidence_of_processes_adds_up_by_route(deployments):
    one = Stretch(4, 0.1, Arm(calls=90, errors=1, slow=2, seconds=9.0), Arm(calls=10, errors=3, device=0.5))
    two = Stretch(4, 0.1, Arm(calls=80, slow=1, seconds=8.0), Arm(calls=20, errors=1, device=1.0))
    one.pairs = Pairs(pairs=5, disagreements=1, segments={"de": Segment(5, 1)})
    worst = Worst(0.7, {"x": 1}, {"y": 2}, {"y": 3})
    two.pairs = Pairs(pairs=3, disagreements=2, segments={"de": Segment(2, 2)}, worst=[worst])
    deployments.put_evidence("fraud", "p1", Stretch(4, 0.1, Arm(calls=1)))
    deployments.put_evidence("fraud", "p1", one)
    deployments.put_evidence("fraud", "p2", two)
    deployments.put_evidence("fraud", "p1", Stretch(6, 0.25, Arm(calls=7)))
    deployments.put_evidence("churn", "p1", Stretch(4, 0.1, Arm(calls=1000)))
    first, second = deployments.evidence("fraud", [6, 4, 5])
    assert (first.route, first.weight, second.route, second.stable.calls) == (4, 0.1, 6, 7)
    assert first.stable == Arm(calls=170, errors=1, slow=3, seconds=17.0)
    assert first.candidate == Arm(calls=30, errors=4, device=1.5)
    assert (first.pairs.pairs, first.pairs.disagreements) == (8, 3)
    assert first.pairs.segments == {"de": Segment(7, 3)}
    assert first.pairs.worst == [worst]
    assert deployments.evidence("fraud", []) == []


def test_state_that_a_newer_version_wrote_is_told_of(deployments, store):
    from sqlalchemy import update

    from pelton.store.tables import deployments as table

    deployments.change(Deployment("fraud", version=A), 0, "ann", "deploy")
    with store.write() as connection:
        connection.execute(update(table).values(spec='{"name": "fraud", "version": "x", "mirror": true}'))
    with pytest.raises(PeltonError, match=r"cannot read .*mirror.* Upgrade"):
        deployments.get("fraud")
