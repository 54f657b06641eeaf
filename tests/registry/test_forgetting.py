"""What `remove` refuses, and what garbage collection never touches."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pelton.deployments import Deployment, Deployments, ModelStatus, ProcessStatus, Shadow
from pelton.errors import Conflict, NotFound
from pelton.registry import Registry
from pelton.rollout.state import Limits, Rollout
from pelton.types import ModelRef

Added = Callable[..., str]
DAY = 86_400.0


@pytest.fixture
def deployments(registry: Registry, clock) -> Deployments:
    return Deployments(registry.store, clock)


def collected(registry: Registry, older_than: float = DAY, **kept: set[str]) -> set[str]:
    told = {one.version for one in registry.gc(older_than, dry_run=True, **kept)}
    done = {one.version for one in registry.gc(older_than, **kept)}
    assert done == told, "the dry run tells what will be done"
    return done


def test_what_nothing_needs_and_is_old_enough_goes_with_its_files(registry: Registry, added: Added, clock) -> None:
    old = [added(), added()]
    clock.now += DAY
    young, newest, other = added(), added(), added("churn")
    clock.now += 100
    assert {one.version for one in registry.gc(DAY, dry_run=True)} == set(old)
    assert len(registry.versions("fraud")) == 4, "a dry run changes nothing"
    gone = registry.gc(DAY, by="ana")
    assert [(one.name, one.version) for one in gone] == [("fraud", version) for version in old[::-1]]
    assert all(one.size > 0 for one in gone)
    assert [entry.version for entry in registry.versions("fraud")] == [newest, young]
    assert registry.artifacts.versions() == sorted([young, newest, other])
    assert [row["actor"] for row in registry.store.rows("events", action="gc")] == ["ana", "ana"]
    assert registry.gc(DAY) == []


def test_the_newest_of_each_model_stays_however_old(registry: Registry, added: Added, clock) -> None:
    old, newest, only = added(), added(), added("churn")
    clock.now += 1000 * DAY
    assert collected(registry, 0.0) == {old}
    assert registry.resolve(ModelRef("fraud")).version == newest
    assert registry.resolve(ModelRef("churn")).version == only


def test_what_an_alias_names_stays_until_the_alias_moves(registry: Registry, added: Added, clock) -> None:
    first, second, _ = added(), added(), added()
    registry.set_alias("fraud", "champion", first, expect=0)
    registry.set_alias("fraud", "was", second, expect=0)
    registry.remove_alias("fraud", "was", expect=1)
    clock.now += 2 * DAY
    assert collected(registry) == {second}
    registry.set_alias("fraud", "champion", registry.find(ModelRef("fraud")).version, expect=1)
    assert collected(registry) == {first}


def test_every_version_that_a_deployment_names_stays(
    registry: Registry, deployments: Deployments, added: Added, clock
) -> None:
    current, previous, candidate, shadow, unused, _ = (added() for _ in range(6))
    deployment = Deployment("fraud", 0, current, previous, candidate, 0.1, Shadow(shadow))
    deployments.change(deployment, 0, "ana", "deploy")
    clock.now += 2 * DAY
    assert collected(registry) == {unused}


def test_versions_of_an_open_rollout_stay_until_it_is_closed(
    registry: Registry, deployments: Deployments, added: Added, clock
) -> None:
    stable, candidate, _ = added(), added(), added()
    rollout = Rollout("r1", "fraud", stable, candidate, (0.1, 1.0), Limits())
    deployments.change_rollout(rollout, 0, "ana", "rollout")
    clock.now += 2 * DAY
    assert collected(registry) == set()
    closed = msgspec.structs.replace(rollout, status="aborted")
    deployments.change_rollout(closed, 1, "ana", "abort")
    assert collected(registry) == {stable, candidate}


def test_what_a_process_reports_or_the_caller_names_stays(
    registry: Registry, deployments: Deployments, added: Added, clock
) -> None:
    loaded, running, kept, _ = added(), added(), added(), added()
    clock.now += 2 * DAY
    status = ProcessStatus("host", 1, 8080, 0, 0.0, {"fraud": ModelStatus({loaded: "serves"})})
    deployments.report("host-1", status)
    assert collected(registry, running={running}, keep={kept}) == set()
    assert collected(registry, keep={kept}) == {running}
    deployments.forget("host-1")
    assert collected(registry) == {loaded, kept}


def test_ancestors_of_what_stays_stay(registry: Registry, added: Added, clock) -> None:
    grandparent = added()
    parent = added(parent=grandparent)
    aside = added(parent=grandparent)
    child = added("fraud-int8", parent=parent)
    newest = added()
    clock.now += 2 * DAY
    assert collected(registry) == {aside}
    assert [one.version for one in registry.lineage("fraud-int8", child).ancestors] == [parent, grandparent]
    assert registry.find(ModelRef("fraud")).version == newest


def test_files_that_were_added_again_while_collecting_stay(registry: Registry, added: Added, tmp_path: Path) -> None:
    """The entry is back before the files are deleted: another process has added the version again."""
    version = added()
    registry._delete_files([version])
    registry.verify(registry.resolve(ModelRef("fraud")).version)
    assert registry.artifacts.has(version)


# ---- remove


def test_what_is_deployed_is_removed_by_force_only(registry: Registry, deployments: Deployments, added: Added) -> None:
    previous, current, free = added(), added(), added()
    deployments.change(Deployment("fraud", 0, current, previous), 0, "ana", "deploy")
    for ref in (ModelRef("fraud", current), ModelRef("fraud", previous), ModelRef("fraud")):
        with pytest.raises(Conflict, match=r"nothing was removed.*undeploy"):
            registry.remove(ref)
    assert len(registry.versions("fraud")) == 3
    assert registry.remove(ModelRef("fraud", free)) == [free]
    assert set(registry.remove(ModelRef("fraud"), force=True)) == {previous, current}
    assert registry.models() == []


def test_what_is_not_served_any_more_may_be_removed(registry: Registry, deployments: Deployments, added: Added) -> None:
    version = added()
    deployments.change(Deployment("fraud", version=version), 0, "ana", "deploy")
    deployments.change(Deployment("fraud", version="", previous=version), 1, "ana", "undeploy")
    assert registry.remove(ModelRef("fraud")) == [version]


def test_what_has_an_alias_is_removed_by_force_only_and_its_alias_with_it(registry: Registry, added: Added) -> None:
    version = added()
    registry.set_alias("fraud", "champion", version, expect=0)
    for ref in (ModelRef("fraud", version), ModelRef("fraud"), ModelRef.parse("fraud@champion")):
        with pytest.raises(Conflict, match="has the alias champion"):
            registry.remove(ref)
    assert registry.remove(ModelRef.parse("fraud@champion"), force=True, by="ana", why="wrong") == [version]
    assert registry.aliases("fraud") == []
    move = registry.alias_history("fraud")[0]
    assert (move.from_version, move.to_version, move.by, move.why) == (version, "", "ana", "wrong")
    assert [row["actor"] for row in registry.store.rows("events", action="remove")] == ["ana"]


def test_a_removed_version_cannot_be_deployed(registry: Registry, deployments: Deployments, added: Added) -> None:
    version = added()
    added()
    registry.remove(ModelRef("fraud", version))
    with pytest.raises(Conflict, match=rf"fraud:{version[:12]} is not in the registry any more"):
        deployments.change(Deployment("fraud", version=version), 0, "ana", "deploy")
    assert deployments.get("fraud") is None


# ---- all at once

COLLECT = """
import sys
from pathlib import Path
from pelton.registry import Registry
registry = Registry(Path(sys.argv[1]), sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(40):
    registry.gc(0.0)
"""

ADD_AND_DEPLOY = """
import sys
from pathlib import Path
from pelton.deployments import Deployment, Deployments
from pelton.errors import Conflict, NotFound, PackageInvalid
from pelton.registry import Registry
from pelton.types import ModelRef
registry = Registry(Path(sys.argv[1]), sys.argv[2])
deployments = Deployments(registry.store)
registry.models()
print("ready", flush=True)
sys.stdin.readline()
told = done = 0
for turn in range(20):
    version = registry.add(Path(sys.argv[3 + turn % 2]))
    registry.add(Path(sys.argv[3 + (turn + 1) % 2]))  # now the first one is not the newest any more
    try:
        registry.verify(registry.resolve(ModelRef("fraud", version)).version)
        now = deployments.get("fraud") or Deployment("fraud")
        deployments.change(Deployment("fraud", version=version), now.revision, "ana", "deploy")
    except (Conflict, NotFound, PackageInvalid):
        told += 1
        continue
    done += 1
    registry.verify(version)  # what is deployed is whole, whatever is collected
    assert registry.find(ModelRef("fraud", version))
print(done, told)
"""


def test_collecting_while_others_add_and_deploy_never_takes_what_is_deployed(
    registry: Registry, deployments: Deployments, added: Added, tmp_path: Path, store_url: str
) -> None:
    added(), added()
    where = [str(registry.home), store_url]
    folders = [str(tmp_path / "package1"), str(tmp_path / "package2")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    commands = [["-c", COLLECT, *where], ["-c", ADD_AND_DEPLOY, *where, *folders]]
    collector, deployer = (subprocess.Popen([sys.executable, *command], **pipes) for command in commands)
    for process in (collector, deployer):
        assert process.stdout.readline() == "ready\n"
    for process in (collector, deployer):
        process.stdin.write("go\n")
        process.stdin.flush()
    said = deployer.communicate()[0]
    collector.communicate()
    assert (collector.returncode, deployer.returncode) == (0, 0)
    done, told = map(int, said.split())
    assert done + told == 20
    assert done >= 1
    for entry in registry.versions("fraud"):
        registry.verify(entry.version)
    deployment = deployments.get("fraud")
    assert deployment is not None
    registry.verify(registry.resolve(ModelRef("fraud", deployment.version)).version)


def test_forgetting_twice_is_told(registry: Registry, added: Added) -> None:
    version = added()
    registry.remove(ModelRef("fraud", version))
    with pytest.raises(NotFound):
        registry.remove(ModelRef("fraud", version))
