"""The plan of one process: what it loads, switches to, keeps and releases, whatever the store says and however loads go."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pelton.deployments import Deployment, Shadow
from pelton.server.control import plan as planning
from pelton.server.control.plan import (
    Begin,
    Keep,
    Load,
    Mirror,
    Mirroring,
    Present,
    Reached,
    Release,
    Scope,
    Share,
    Sharing,
    Switch,
    plan,
    retry_after,
    starting,
    states,
)

READY = Load("ready")
KEEP = 100.0


def serving(version: str, *others: str, **more: object) -> Present:
    return replace(Present(version, dict.fromkeys((version, *others), READY)), **more)  # type: ignore[arg-type]


def deployed(version: str, revision: int = 7, **more: object) -> Deployment:
    return replace(Deployment("m", revision, version), **more)  # type: ignore[arg-type]


def failed(revision: int = 7, at: float = 0.0, failures: int = 1) -> Load:
    return Load("failed", revision, at, failures, "it failed to load: no")


class World:
    """A process that does what the plan says. Loads end when the test says so."""

    def __init__(self) -> None:
        self.have = Present()
        self.now = 0.0
        self.log: list[object] = []

    def settle(self, wanted: Deployment) -> None:
        for _ in range(6):
            actions = plan(wanted, self.have, self.now, KEEP)
            if not actions:
                return
            for action in actions:
                self._do(action)
        raise AssertionError(f"the plan does not end: {actions}")

    def end_loads(self, good: Iterable[str]) -> None:
        for version, load in self.have.loads.items():
            if load.state == "loading":
                ended = READY if version in good else replace(load, state="failed", at=self.now, reason="no")
                self._put(version, replace(ended, failures=0 if version in good else load.failures + 1))

    def _put(self, version: str, load: Load) -> None:
        self.have = replace(self.have, loads={**self.have.loads, version: load})

    def _do(self, action: planning.Action) -> None:
        self.log.append(action)
        have = self.have
        if isinstance(action, Begin):
            assert action.version not in have.loads or have.loads[action.version].state == "failed"
            self._put(action.version, Load("loading", action.revision, self.now, action.failures))
        elif isinstance(action, Switch):
            assert not action.version or have.loads[action.version].state == "ready", "switched to what is not ready"
            self.have = replace(have, current=action.version, sharing=None, mirroring=None)
        elif isinstance(action, Keep):
            self.have = replace(have, warm={action.version: action.until})
        elif isinstance(action, Share):
            assert action.sharing is None or have.loads[action.sharing.candidate].state == "ready"
            self.have = replace(have, sharing=action.sharing)
        elif isinstance(action, Mirror):
            assert action.mirroring is None or have.loads[action.mirroring.shadow.version].state == "ready"
            self.have = replace(have, mirroring=action.mirroring)
        elif isinstance(action, Release):
            used = (
                have.sharing.candidate if have.sharing else "",
                have.mirroring.shadow.version if have.mirroring else "",
            )
            assert action.version not in (have.current, *used), "released what is in use"
            self.have = replace(have, loads={v: load for v, load in have.loads.items() if v != action.version})
        else:
            self.have = replace(have, converged=action.revision)


def test_what_is_deployed_is_loaded_beside_and_only_then_switched_to() -> None:
    have = serving("a")
    assert plan(deployed("b"), have, 0.0, KEEP) == [Begin("b", 7)]
    loading = replace(have, loads={**have.loads, "b": Load("loading", 7)})
    assert plan(deployed("b"), loading, 0.0, KEEP) == []
    both = serving("a", "b")
    assert plan(deployed("b"), both, 0.0, KEEP) == [Switch("b"), Release("a"), Reached(7)]


def test_the_version_before_is_kept_for_a_rollback_and_released_when_its_time_is_over() -> None:
    wanted = deployed("b", previous="a")
    assert plan(wanted, serving("a", "b"), 5.0, KEEP) == [Keep("a", 105.0), Switch("b"), Reached(7)]
    kept = serving("b", "a", warm={"a": 105.0}, converged=7)
    assert plan(wanted, kept, 104.9, KEEP) == []
    assert plan(wanted, kept, 105.0, KEEP) == [Release("a")]
    assert Release("a") in plan(wanted, serving("a", "b"), 5.0, 0.0)


def test_a_rollback_needs_no_load() -> None:
    kept = serving("b", "a", warm={"a": 105.0}, converged=7)
    back = deployed("a", 8, previous="b")
    assert plan(back, kept, 6.0, KEEP) == [Keep("b", 106.0), Switch("a"), Reached(8)]


def test_what_cannot_be_loaded_never_serves_and_what_served_goes_on() -> None:
    have = serving("a")
    broken = replace(have, loads={"a": READY, "b": failed()})
    assert plan(deployed("b"), broken, 1.0, KEEP) == []
    assert states(deployed("b"), broken) == {"a": "serves", "b": "it failed to load: no"}


def test_a_failed_version_is_tried_again_when_the_revision_changes_or_later_and_later() -> None:
    broken = Present("a", {"a": READY, "b": failed(failures=2)})
    assert plan(deployed("b", 8), broken, 0.1, KEEP) == [Begin("b", 8, 2)]
    assert plan(deployed("b"), broken, retry_after(2) - 0.1, KEEP) == []
    assert plan(deployed("b"), broken, retry_after(2), KEEP) == [Begin("b", 7, 2)]
    pauses = [retry_after(n) for n in range(1, 100)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (5.0, 600.0)


def test_a_version_that_is_only_kept_makes_room_for_one_that_has_none() -> None:
    short = replace(failed(), short=True)
    kept = Present("b", {"b": READY, "a": READY, "c": short}, warm={"a": 105.0})
    wanted = deployed("b", previous="a", candidate="c", weight=0.1)
    assert plan(wanted, kept, 1.0, KEEP) == [Release("a")]
    undeployed = Present("", {"a": READY, "c": short}, warm={"a": 105.0})
    assert plan(deployed("c", previous="a"), undeployed, 1.0, KEEP) == [Release("a")]
    for reason in (failed(), Load("loading", 7)):
        assert plan(wanted, replace(kept, loads={**kept.loads, "c": reason}), 1.0, KEEP) == []
    serves = Present("a", {"a": READY, "c": short})
    assert plan(deployed("c", previous="a"), serves, 1.0, KEEP) == []


def test_a_candidate_gets_calls_once_it_is_loaded() -> None:
    wanted = deployed("a", candidate="b", weight=0.1, slow_ms=20.0)
    assert plan(wanted, serving("a", converged=6), 0.0, KEEP) == [Begin("b", 7)]
    sharing = Sharing("b", 0.1, 7, 20.0)
    assert plan(wanted, serving("a", "b"), 0.0, KEEP) == [Share(sharing), Reached(7)]
    steady = serving("a", "b", sharing=sharing, converged=7)
    assert plan(wanted, steady, 0.0, KEEP) == []
    more = replace(wanted, weight=0.5, revision=8)
    assert plan(more, steady, 0.0, KEEP) == [Share(Sharing("b", 0.5, 8, 20.0)), Reached(8)]


def test_a_candidate_is_not_compared_with_a_version_that_should_not_serve() -> None:
    wanted = deployed("c", candidate="b", weight=0.1)
    have = Present("a", {"a": READY, "b": READY, "c": failed()})
    assert plan(wanted, have, 1.0, KEEP) == []


def test_calls_are_taken_from_a_candidate_before_it_is_released() -> None:
    steady = serving("a", "b", sharing=Sharing("b", 0.1, 7), converged=7)
    assert plan(deployed("a", 8), steady, 0.0, KEEP) == [Share(None), Release("b"), Reached(8)]


def test_a_promoted_candidate_switches_at_once_and_keeps_the_one_before() -> None:
    steady = serving("a", "b", sharing=Sharing("b", 0.5, 7), converged=7)
    promoted = deployed("b", 8, previous="a")
    assert plan(promoted, steady, 0.0, KEEP) == [Keep("a", 100.0), Switch("b"), Reached(8)]


def test_a_shadow_is_loaded_and_then_copied_to() -> None:
    shadow = Shadow("s", 0.2)
    wanted = deployed("a", shadow=shadow)
    assert plan(wanted, serving("a"), 0.0, KEEP) == [Begin("s", 7)]
    assert plan(wanted, serving("a", "s"), 0.0, KEEP) == [Mirror(Mirroring(shadow, 7)), Reached(7)]
    mirrored = serving("a", "s", mirroring=Mirroring(shadow, 7), converged=7)
    assert plan(deployed("a", 8), mirrored, 0.0, KEEP) == [Mirror(None), Release("s"), Reached(8)]


def test_an_undeployed_model_serves_nothing_and_stays_warm() -> None:
    gone = deployed("", previous="a")
    assert plan(gone, serving("a"), 0.0, KEEP) == [Keep("a", 100.0), Switch(""), Reached(7)]
    assert plan(deployed("", 1), Present(), 0.0, KEEP) == [Reached(1)]


def test_a_load_in_progress_that_nobody_needs_any_more_is_released_when_it_ends() -> None:
    loading = Present("a", {"a": READY, "b": Load("loading", 7)}, converged=8)
    assert plan(deployed("a", 8), loading, 0.0, KEEP) == []
    assert plan(deployed("a", 8), serving("a", "b", converged=8), 0.0, KEEP) == [Release("b")]


def test_pins_and_what_was_never_deployed_start_without_the_store() -> None:
    desired = {"m": deployed("b"), "p": Deployment("p", 1, "q")}
    scope = Scope(pins={"p": "old"})
    assert starting(scope, desired, {"m": "c", "n": "d", "p": "new"}) == {"n": "d", "p": "old"}
    assert [scope.follows(name) for name in ("m", "n", "p")] == [True, True, False]
    only = Scope(everything=False, names=frozenset({"m"}))
    assert [only.follows(name) for name in ("m", "n")] == [True, False]


@pytest.mark.parametrize(
    ("version", "word"), [("a", "serves"), ("b", "candidate"), ("s", "shadow"), ("w", "warm"), ("l", "loading")]
)
def test_states_say_what_each_version_does(version: str, word: str) -> None:
    wanted = deployed("a", candidate="b", shadow=Shadow("s"), previous="w")
    have = serving("a", "b", "s", "w")
    have = replace(have, loads={**have.loads, "l": Load("loading")})
    assert states(wanted, have)[version] == word


VERSIONS = st.sampled_from("abcd")
MAYBE = st.sampled_from(["", *"abcd"])
SHADOWS = st.one_of(st.none(), VERSIONS.map(Shadow))


@st.composite
def orders(draw: st.DrawFn) -> tuple[Deployment, set[str], float]:
    wanted = Deployment(
        "m", 0, draw(MAYBE), draw(MAYBE), draw(MAYBE), draw(st.sampled_from([0.0, 0.1, 1.0])), draw(SHADOWS)
    )
    return wanted, draw(st.sets(VERSIONS)), draw(st.sampled_from([0.0, 1.0, 50.0, 700.0]))


@given(st.lists(orders(), min_size=1, max_size=12))
def test_whatever_is_ordered_and_however_loads_go_a_served_model_goes_on_and_ends_where_it_should(
    turns: list[tuple[Deployment, set[str], float]],
) -> None:
    world = World()
    for revision, (wanted, good, pause) in enumerate(turns, 1):
        wanted = replace(wanted, revision=revision)
        before = world.have.current
        world.settle(wanted)
        if before and wanted.version:
            assert world.have.current, "what served must go on until the next one is ready"
        world.end_loads(good)
        world.settle(wanted)
        world.now += pause
        world.settle(wanted)
    world.end_loads("abcd")
    world.settle(wanted)
    world.now += 1000.0
    world.settle(wanted)
    world.end_loads("abcd")
    world.settle(wanted)
    world.now += KEEP
    world.settle(wanted)
    assert world.have.current == wanted.version
    assert world.have.converged == wanted.revision
    assert set(world.have.loads) == {*planning.needed(wanted)}, "only what is needed stays in memory"
