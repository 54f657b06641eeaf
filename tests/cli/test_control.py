"""Commands about versions, deployments and rollouts on the store: what they say, write and refuse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pelton.deployments import Deployments, ModelStatus, ProcessStatus
from pelton.packages import Manifest, save
from pelton.registry import Registry
from pelton.store import Store
from pelton.types import Signature, TensorSpec

Pelton = Callable[..., Any]


class Shop:
    """A home with three versions of a model, the oldest first."""

    def __init__(self, home: Path, sources: Path, pelton: Pelton) -> None:
        self.home = home
        self.registry = Registry(home)
        self.versions = [self._add(sources / name, name) for name in ("v1", "v2", "v3")]
        self._pelton = pelton

    def _add(self, folder: Path, content: str) -> str:
        folder.mkdir(parents=True)
        (folder / "m.onnx").write_text(content)
        signature = Signature((TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (1,)),))
        save(Manifest("fraud", "onnx", "m.onnx", signature), folder)
        return self.registry.add(folder)

    def do(self, *words: str, code: int = 0) -> Any:
        done = self._pelton(*words, "--home", self.home)
        assert done.code == code, done
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self.do(*words, "--json").out)

    def ref(self, number: int) -> str:
        return f"fraud:{self.versions[number][:12]}"

    def report(self, process: str = "p1", **model: Any) -> None:
        """What a running server would tell."""
        store = Store.open(f"sqlite:///{self.home / 'pelton.db'}")
        status = ProcessStatus("host", 7, 8080, 0, 1.0, {"fraud": ModelStatus(**model)})
        Deployments(store).report(process, status)
        store.close()


@pytest.fixture
def shop(home: Path, tmp_path: Path, pelton: Pelton) -> Shop:
    return Shop(home, tmp_path / "packages", pelton)


NO_WAIT = ("--wait", "0")


def test_a_version_is_deployed_shown_and_rolled_back(shop: Shop) -> None:
    done = shop.do("deploy", shop.ref(0), "--why", "first", *NO_WAIT)
    assert done.out == f"{shop.ref(0)} is deployed, revision 1\n"
    shop.do("deploy", shop.ref(1), *NO_WAIT)
    back = shop.do("rollback", "fraud", "--why", "worse", *NO_WAIT)
    assert back.out == f"fraud is back at {shop.versions[0][:12]}, revision 3\n"
    history = shop.do("history", "fraud").out.splitlines()
    assert [line.split()[3] for line in history[1:]] == ["rollback", "deploy", "deploy"]
    assert re.search(r"\S+@\S+  worse$", history[1])
    again = shop.do("rollback", "fraud", *NO_WAIT, code=1)
    assert f"--to {shop.versions[1][:12]}" in again.err


def test_without_a_server_a_change_says_that_nobody_follows_it(shop: Shop) -> None:
    assert "no running server" in shop.do("deploy", "fraud").err


def test_a_change_waits_for_the_processes_and_tells_of_their_failure(shop: Shop) -> None:
    shop.report(converged=1)
    assert "1 process converged" in shop.do("deploy", shop.ref(0)).err
    shop.report(converged=1, versions={shop.versions[1]: "it is not the file that was added"})
    failed = shop.do("deploy", shop.ref(1), code=1)
    assert "it is not the file that was added" in failed.err
    assert "goes on serving" in failed.err
    shop.report(converged=1, versions={shop.versions[2]: "loading"})
    late = shop.do("deploy", shop.ref(2), "--wait", "0.2", code=1)
    assert "not every process" in late.err


def test_an_order_about_another_revision_is_refused(shop: Shop) -> None:
    shop.do("deploy", shop.ref(0), *NO_WAIT)
    for words in (["deploy", shop.ref(1)], ["undeploy", "fraud"], ["rollback", "fraud"], ["shadow", shop.ref(1)]):
        done = shop.do(*words, "--expect", "7", *NO_WAIT, code=1)
        assert "revision 1, not 7" in done.err
    assert shop.json("status")["models"][0]["deployment"]["revision"] == 1


def test_undeploying_is_undone_by_a_rollback(shop: Shop) -> None:
    shop.do("deploy", shop.ref(0), *NO_WAIT)
    assert "not served any more" in shop.do("undeploy", "fraud", *NO_WAIT).out
    assert "not deployed (revision 2)" in shop.do("status").out
    assert shop.json("rollback", "fraud", *NO_WAIT)["deployment"]["version"] == shop.versions[0]


def test_aliases_are_set_listed_and_removed(shop: Shop) -> None:
    done = shop.do("alias", "set", "fraud@champion", shop.versions[0][:8], "--why", "best so far")
    assert done.out == f"fraud@champion is {shop.versions[0][:12]}, revision 1\n"
    shop.do("alias", "set", "fraud@champion", shop.versions[1], "--expect", "1")
    conflict = shop.do("alias", "set", "fraud@champion", shop.versions[2], "--expect", "1", code=1)
    assert "champion" in conflict.err
    assert shop.do("alias", "list", "fraud").out.splitlines()[1].split() == ["champion", shop.versions[1][:12], "2"]
    assert "best so far" in shop.do("history", "fraud@champion").out
    shop.do("deploy", "fraud@champion", *NO_WAIT)
    assert shop.json("status")["models"][0]["deployment"]["version"] == shop.versions[1]
    shop.do("alias", "remove", "fraud@champion")
    assert shop.do("alias", "list", "fraud").out == "fraud has no alias\n"
    assert "NAME@ALIAS" in shop.do("alias", "set", "fraud", "1", code=1).err


def test_models_show_what_matters_or_all(shop: Shop) -> None:
    shop.do("deploy", shop.ref(0), *NO_WAIT)
    few = shop.do("models").out.splitlines()[1:]
    assert [line.split()[1] for line in few] == [shop.versions[2][:12], shop.versions[0][:12]]
    assert few[1].split()[-1] == "deployed"
    assert len(shop.do("models", "fraud").out.splitlines()) == 4
    assert "did you mean" in shop.do("models", "frau", code=1).err


def test_two_versions_are_compared(shop: Shop) -> None:
    out = shop.do("diff", shop.ref(0), shop.ref(1)).out
    assert out.startswith(f"{shop.ref(0)} -> {shop.ref(1)}\nfiles:\n  ~ m.onnx")
    assert "same version" in shop.do("diff", "fraud", shop.ref(2)).out
    assert [change["path"] for change in shop.json("diff", shop.ref(0), shop.ref(1))["files"]] == ["m.onnx"]


def test_a_rollout_is_planned_started_paused_and_aborted(shop: Shop) -> None:
    shop.do("deploy", shop.ref(0), *NO_WAIT)
    plan = shop.do("rollout", shop.ref(1), "--steps", "10,100", "--dry-run")
    assert f"{shop.versions[0][:12]} -> {shop.versions[1][:12]}" in plan.out
    assert "no traffic" in plan.out
    assert shop.json("status")["models"][0]["rollout"] is None
    started = shop.do("rollout", shop.ref(1), "--steps", "10,50,100", "--max-latency", "20", "--yes", *NO_WAIT)
    assert "has started" in started.out
    [model] = shop.json("status")["models"]
    assert (model["deployment"]["weight"], model["deployment"]["slow_ms"]) == (0.1, 20.0)
    assert "running at 10 % (step 1 of 3)" in shop.do("status").out
    assert "hold: 0 of 100 candidate calls" in shop.do("rollout", "status", "fraud").out
    assert "is paused" in shop.do("rollout", "pause", "fraud", "--why", "lunch").out
    assert "is running" in shop.do("rollout", "resume", "fraud").out
    assert "is aborted" in shop.do("rollout", "abort", "fraud", *NO_WAIT).out
    assert "aborted" in shop.do("rollout", "status", "fraud").out
    assert "no rollout" in shop.do("rollout", "promote", "fraud", code=1).err


def test_a_rollout_is_not_started_without_a_yes(shop: Shop, pelton: Pelton) -> None:
    shop.do("deploy", shop.ref(0), *NO_WAIT)
    done = pelton("rollout", shop.ref(1), "--home", shop.home, stdin=b"y\n")
    assert done.code == 1
    assert "--yes" in done.err
    assert shop.json("status")["models"][0]["rollout"] is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rollout", "stop", "fraud"], "pause, resume, abort, promote"),
        (["rollout", "fraud", "--steps", "x", "--yes"], "percents with commas"),
        (["shadow", "fraud"], "--off"),
        (["shadow", "fraud:1", "--off"], "--off"),
        (["apply", "nowhere.toml"], "cannot read nowhere.toml"),
        (["deploy", "fraud:beef"], "no version"),
        (["webhook", "remove", "wh_1"], "no webhook"),
        (["status", "fraud"], "not deployed"),
        (["deploy", "fraud", "--url", "http://127.0.0.1:1"], "is `pelton serve` running there"),
        (["deploy", "fraud", "--url", "ftp://x"], "not the address of a server"),
    ],
)  # fmt: skip
def test_a_wrong_command_says_what_to_do(shop: Shop, words: list[str], told: str) -> None:
    assert told in shop.do(*words, code=1).err


@pytest.mark.parametrize(
    "words",
    [
        ["gc", "--older-than", "soon"],
        ["shadow", "fraud:1", "--share", "x"],
        ["alias"],
        ["rollout"],
        ["webhook", "tell"],
    ],
)
def test_flags_that_cannot_be_read_are_refused_at_once(shop: Shop, words: list[str]) -> None:
    shop.do(*words, code=2)


def test_a_shadow_is_set_and_taken_away(shop: Shop) -> None:
    shop.do("deploy", shop.ref(0), *NO_WAIT)
    shop.do("shadow", shop.ref(1), "--share", "25%", "--segment", "country", *NO_WAIT)
    assert "answers copies of 25 % of the calls" in shop.do("status").out
    shop.do("shadow", "fraud", "--off", *NO_WAIT)
    assert shop.json("status")["models"][0]["deployment"].get("shadow") is None


def test_a_file_is_compared_and_applied(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "deploy.toml"  # the folder that commands run in
    file.write_text(f'[models.fraud]\nversion = "{shop.versions[1][:12]}"\nslow_ms = 20\n')
    shop.do("deploy", shop.ref(0), *NO_WAIT)
    diff = shop.do("apply", "--diff").out
    assert diff.splitlines()[:2] == [
        "fraud: deploy",
        f"    version: {shop.versions[0][:12]} -> {shop.versions[1][:12]}",
    ]
    shop.do("apply", "--why", "friday", *NO_WAIT)
    assert shop.do("apply", *NO_WAIT).out == "nothing to change\n"
    file.write_text("[models.fraud]\nversoin = 'x'\n")
    assert "did you mean models.fraud.version" in shop.do("apply", code=1).err


def test_garbage_is_shown_before_it_is_removed(shop: Shop) -> None:
    shop.do("deploy", shop.ref(0), *NO_WAIT)
    shown = shop.do("gc", "--older-than", "0s", "--dry-run").out.splitlines()
    assert shown[1].split()[1] == shop.versions[1][:12]
    assert shown[-1].startswith("1 version would be removed")
    assert "0 versions removed" in shop.do("gc").out
    assert "1 version removed" in shop.do("gc", "--older-than", "0s").out
    assert len(shop.registry.versions("fraud")) == 2


def test_everything_is_in_the_audit_log(shop: Shop) -> None:
    shop.do("deploy", shop.ref(0), "--why", "a reason", *NO_WAIT)
    lines = shop.do("audit", "fraud", "--action", "deploy").out.splitlines()
    assert len(lines) == 2
    assert "'a reason'" in lines[1]
    page = shop.json("audit", "--limit", "2", "--after", "0")
    assert [event["action"] for event in page["events"]] == ["add", "add"]
    assert page["next"] == page["events"][-1]["id"]


def test_a_webhook_shows_its_secret_once(shop: Shop) -> None:
    added = shop.json("webhook", "add", "https://example.org/hook", "--actions", "deploy,rollback")
    assert added["actions"] == ["deploy", "rollback"]
    listed = shop.do("webhook", "list").out
    assert added["id"] in listed
    assert added["secret"] not in listed
    shop.do("webhook", "remove", added["id"])
    assert shop.do("webhook", "list").out == "no webhooks\n"


def test_a_version_is_added_with_its_lineage(shop: Shop, linear: Path) -> None:
    shop.do("add", str(linear), "--name", "sums")
    shop.do(
        "add", str(linear), "--name", "sums", "--max-rows", "4", "--parent", "sums", "--derivation", "int8",
        "--accepted-on", "x86 AVX2", "--metrics", "accuracy=0.93,auc=0.97",
    )  # fmt: skip
    new, old = shop.registry.versions("sums")
    assert (new.parent, new.derivation, new.accepted_on) == (old.version, "int8", "x86 AVX2")
    assert new.metrics == {"accuracy": 0.93, "auc": 0.97}
    assert "@" in new.by
    assert new.source == str(linear)
    assert "accuracy: none -> 0.93" in shop.do("diff", f"sums:{old.version}", "sums").out
    wrong = shop.do("add", str(linear), "--metrics", "good", code=1)
    assert "NAME=NUMBER" in wrong.err


def test_of_operators_that_set_the_same_alias_at_once_one_wins(
    shop: Shop, process: Callable[..., Any], finish: Callable[..., Any]
) -> None:
    words = ("alias", "set", "fraud@champion")
    running = [
        process(*words, version, "--expect", "0", "--why", "mine", "--home", shop.home) for version in shop.versions
    ]
    ended = [finish(one) for one in running]
    assert sorted(done.code for done in ended) == [0, 1, 1]
    [winner] = [version for version, done in zip(shop.versions, ended, strict=True) if done.code == 0]
    assert shop.registry.alias("fraud", "champion").version == winner
    assert len(shop.registry.alias_history("fraud", "champion")) == 1
    for done in ended:
        assert done.code == 0 or "champion" in done.err


def test_of_operators_that_roll_back_at_once_one_wins(
    shop: Shop, process: Callable[..., Any], finish: Callable[..., Any]
) -> None:
    shop.do("deploy", shop.ref(0), *NO_WAIT)
    shop.do("deploy", shop.ref(1), *NO_WAIT)
    running = [process("rollback", "fraud", *NO_WAIT, "--home", shop.home) for _ in range(3)]
    ended = [finish(one) for one in running]
    assert sorted(done.code for done in ended) == [0, 1, 1]
    assert shop.json("status")["models"][0]["deployment"]["version"] == shop.versions[0]
    for done in ended:
        assert done.code == 0 or "already" in done.err or "was first" in done.err


def test_of_operators_that_start_a_rollout_at_once_one_wins(
    shop: Shop, process: Callable[..., Any], finish: Callable[..., Any]
) -> None:
    shop.do("deploy", shop.ref(0), *NO_WAIT)
    running = [process("rollout", shop.ref(number), "--yes", *NO_WAIT, "--home", shop.home) for number in (1, 2)]
    ended = [finish(one) for one in running]
    assert sorted(done.code for done in ended) == [0, 1]
    [winner] = [number for number, done in enumerate(ended, 1) if done.code == 0]
    [loser] = [done for done in ended if done.code]
    assert any(words in loser.err for words in ("was first", "is open", "is still open"))  # as far as each had come
    deployment = shop.json("status")["models"][0]["deployment"]
    assert (deployment["candidate"], deployment["revision"]) == (shop.versions[winner], 2)


def test_a_rollback_loads_no_heavy_library(shop: Shop) -> None:
    """It must be over within a second, and each of these takes a good part of one to import."""
    shop.do("deploy", shop.ref(0), *NO_WAIT)
    shop.do("deploy", shop.ref(1), *NO_WAIT)
    code = (
        "import sys\n"
        "from pelton.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(sorted({'numpy', 'sqlalchemy', 'asyncio', 'http.client', 'onnxruntime'} & set(sys.modules)))\n"
    )
    words = ["rollback", "fraud", "--home", str(shop.home), *NO_WAIT]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
