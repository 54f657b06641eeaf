"""Aliases move by compare-and-swap only, and every move is kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pelton.errors import Conflict, InvalidInput, NotFound
from pelton.registry import Alias, Registry
from pelton.types import ModelRef

Added = Callable[..., str]


def test_an_alias_names_a_version_until_it_is_moved(registry: Registry, added: Added) -> None:
    first, second = added(), added()
    assert registry.set_alias("fraud", "champion", first, expect=0) == Alias("fraud", "champion", first, 1)
    assert registry.resolve(ModelRef.parse("fraud@champion")).version == first
    assert registry.set_alias("fraud", "champion", second[:12], expect=1) == Alias("fraud", "champion", second, 2)
    assert registry.resolve(ModelRef.parse("fraud@champion")).version == second
    assert registry.alias("fraud", "champion") == Alias("fraud", "champion", second, 2)


def test_an_alias_may_be_expected_at_a_version(registry: Registry, added: Added) -> None:
    first, second = added(), added()
    registry.set_alias("fraud", "champion", first, expect="")
    registry.set_alias("fraud", "champion", second, expect=first)
    with pytest.raises(Conflict):
        registry.set_alias("fraud", "champion", second, expect=first)
    assert registry.alias("fraud", "champion").revision == 2


@pytest.mark.parametrize("expect", [0, 2, "", None, "1" * 64])
def test_an_expectation_that_does_not_hold_is_a_conflict_that_tells_who_was_first(
    registry: Registry, added: Added, expect: int | str | None
) -> None:
    first, second = added(), added()
    registry.set_alias("fraud", "champion", first, expect=0, by="ana@desk", why="it is the first")
    with pytest.raises(Conflict) as caught:
        registry.set_alias("fraud", "champion", second, expect=expect, by="bob")
    for part in (
        "'champion'",
        "'fraud'",
        first[:12],
        "revision 1",
        "ana@desk",
        "2023-11-14 22:13:20 UTC",
        "it is the first",
    ):
        assert part in str(caught.value)
    assert registry.alias("fraud", "champion").version == first
    assert len(registry.alias_history("fraud")) == 1


def test_expecting_an_alias_that_never_was_is_a_conflict(registry: Registry, added: Added) -> None:
    version = added()
    with pytest.raises(Conflict, match="is not set"):
        registry.set_alias("fraud", "champion", version, expect=3)
    assert registry.aliases("fraud") == []


def test_every_move_is_kept_with_who_when_why_and_evidence(registry: Registry, added: Added, clock) -> None:
    first, second = added(), added()
    registry.set_alias("fraud", "champion", first, expect=0, by="ana", why="first")
    registry.set_alias("fraud", "shadow", second, expect=0)
    clock.now += 10
    registry.set_alias("fraud", "champion", second, expect=1, by="bob", why="better", evidence={"auc": [0.9, 0.93]})
    registry.remove_alias("fraud", "champion", expect=2, by="eve", why="retired")
    moves = registry.alias_history("fraud", "champion")
    assert [(m.from_version, m.to_version, m.revision, m.by, m.why) for m in moves] == [
        (second, "", 3, "eve", "retired"),
        (first, second, 2, "bob", "better"),
        ("", first, 1, "ana", "first"),
    ]
    assert moves[1].evidence == {"auc": [0.9, 0.93]}
    assert moves[1].at - moves[2].at == 10
    assert [move.alias for move in registry.alias_history("fraud")] == ["champion", "champion", "shadow", "champion"]


def test_every_move_is_an_event(registry: Registry, added: Added) -> None:
    version = added()
    registry.set_alias("fraud", "champion", version, expect=0, by="ana", why="first")
    event = registry.store.rows("events", action="alias")[0]
    assert (event["name"], event["actor"]) == ("fraud", "ana")
    assert f'"to":"{version}"' in event["details"]


def test_a_removed_alias_is_gone_and_goes_on_counting_when_it_comes_back(registry: Registry, added: Added) -> None:
    version = added()
    registry.set_alias("fraud", "champion", version, expect=0)
    with pytest.raises(Conflict):
        registry.remove_alias("fraud", "champion", expect=7)
    registry.remove_alias("fraud", "champion", expect=version)
    assert registry.aliases("fraud") == []
    with pytest.raises(NotFound, match="no alias 'champion'"):
        registry.resolve(ModelRef.parse("fraud@champion"))
    with pytest.raises(NotFound):
        registry.remove_alias("fraud", "champion", expect=2)
    with pytest.raises(Conflict, match="was taken away"):
        registry.set_alias("fraud", "champion", version, expect=0)
    assert registry.set_alias("fraud", "champion", version, expect="").revision == 3


def test_an_unknown_alias_says_which_there_are(registry: Registry, added: Added) -> None:
    version = added()
    with pytest.raises(NotFound, match="has none yet"):
        registry.resolve(ModelRef.parse("fraud@champion"))
    registry.set_alias("fraud", "live", version, expect=0)
    with pytest.raises(NotFound, match="it has live"):
        registry.resolve(ModelRef.parse("fraud@champion"))


@pytest.mark.parametrize("alias", ["", "a b", "../x", ".x", "x" * 101, "a@b", "a:b"])
def test_an_alias_has_the_signs_of_a_name(registry: Registry, added: Added, alias: str) -> None:
    version = added()
    with pytest.raises(InvalidInput, match="cannot be an alias"):
        registry.set_alias("fraud", alias, version, expect=0)


def test_an_alias_points_at_a_version_of_its_own_model_only(registry: Registry, added: Added) -> None:
    added()
    other = added("churn")
    for model, version in (("fraud", other), ("fraud", "zz"), ("fraud", ""), ("nothing", other), ("../x", other)):
        with pytest.raises(NotFound):
            registry.set_alias(model, "champion", version, expect=0)
    assert registry.aliases("fraud") == []


OPERATOR = """
import sys
from pathlib import Path
from pelton.errors import Conflict
from pelton.registry import Registry
home, url, me, version, turns = sys.argv[1:]
registry = Registry(Path(home), url)
registry.models()
print("ready", flush=True)
sys.stdin.readline()
for turn in range(int(turns)):
    try:
        registry.set_alias("fraud", "champion", version, expect=turn, by=me, why=f"turn {turn}")
        print("won", flush=True)
    except Conflict as error:
        print(error, flush=True)
    sys.stdin.readline()
"""


def test_of_two_operators_that_race_exactly_one_wins_and_the_other_is_told(
    registry: Registry, added: Added, store_url: str
) -> None:
    turns = 10
    versions = {"ana": added(), "bob": added()}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    operators = {
        me: subprocess.Popen(
            [sys.executable, "-c", OPERATOR, str(registry.home), store_url, me, version, str(turns)], **pipes
        )
        for me, version in versions.items()
    }

    def answers() -> dict[str, str]:
        return {me: process.stdout.readline().strip() for me, process in operators.items()}

    def go() -> None:
        for process in operators.values():
            process.stdin.write("go\n")

    assert answers() == {"ana": "ready", "bob": "ready"}
    for turn in range(turns):
        go()
        said = answers()
        [winner] = [me for me, answer in said.items() if answer == "won"]
        [loser] = set(said) - {winner}
        assert f"changed by {winner}" in said[loser]
        assert f"turn {turn}" in said[loser]
        assert registry.alias("fraud", "champion") == Alias("fraud", "champion", versions[winner], turn + 1)
    go()
    for process in operators.values():
        process.communicate()
        assert process.returncode == 0
    assert [move.revision for move in registry.alias_history("fraud")] == list(range(turns, 0, -1))


def test_a_registry_of_a_home_alone_keeps_its_store_there(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    assert not (tmp_path / "home").exists(), "nothing is made before it is needed"
    assert registry.models() == []
    assert (tmp_path / "home" / "pelton.db").is_file()
    registry.close()
