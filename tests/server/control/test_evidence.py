"""Counting what a split's calls show: whose fault, how slow, each caller once."""

from __future__ import annotations

from typing import Any

from pelton.records import Record
from pelton.server.control.evidence import KEPT, MOST_KEYS, WARM_UP, Evidence

SLOW = 0.1


def record(version: str = "b", error: str = "", total: float = 0.01, key: int = 0, **more: Any) -> Record:
    route, model = more.pop("route", 7), more.pop("model", "m")
    return Record(
        model, version, "http", "", 1, 1, more.pop("reason", ""), error, 0.0, 0.0, 0.0, 0.005, total, 0.002, "", "", route,
        key,
    )  # fmt: skip


def opened(*versions: str) -> Evidence:
    """Evidence of model m, revision 7, with candidate b; these versions are past their warm-up."""
    evidence = Evidence()
    evidence.open("m", 6, 0.1, "b", SLOW)
    evidence([record(version, route=6) for version in versions for _ in range(WARM_UP)])
    evidence.open("m", 7, 0.1, "b", SLOW)
    return evidence


def stretch(evidence: Evidence) -> Any:
    return next(stretch for _, stretch in evidence.changed() if stretch.route == 7)


def test_calls_are_counted_for_the_version_that_answered() -> None:
    evidence = opened("a", "b")
    evidence([record("a"), record("a"), record("b")])
    found = stretch(evidence)
    assert (found.weight, found.stable.calls, found.candidate.calls) == (0.1, 2, 1)
    assert (round(found.stable.seconds, 6), round(found.candidate.device, 6)) == (0.02, 0.002)


def test_only_the_version_s_own_faults_are_errors() -> None:
    evidence = opened("b")
    kinds = ["model_failed", "internal", "invalid", "not_found", "unsupported", "cancelled", ""]
    evidence([record(error=kind) for kind in kinds])
    arm = stretch(evidence).candidate
    assert (arm.calls, arm.errors, arm.slow) == (3, 2, 0)


def test_what_came_late_or_was_refused_for_it_is_slow() -> None:
    evidence = opened("b")
    evidence(
        [
            record(total=SLOW),
            record(total=SLOW + 0.001),
            record(error="refused", reason="overloaded"),
            record(error="refused", reason="late"),
            record(error="deadline"),
            record(error="cancelled", total=SLOW + 1),
        ]
    )
    arm = stretch(evidence).candidate
    assert (arm.calls, arm.errors, arm.slow) == (6, 0, 5)


def test_the_first_calls_of_a_version_in_a_process_are_left_out() -> None:
    evidence = opened("a")
    evidence([record("b", "model_failed") for _ in range(WARM_UP)])
    assert [found.candidate.calls for _, found in evidence.changed()] == [] or stretch(evidence).candidate.calls == 0
    evidence([record("b", "model_failed")])
    assert stretch(evidence).candidate.errors == 1


def test_a_caller_with_a_key_counts_once_as_an_error_and_once_as_slow() -> None:
    evidence = opened("b")
    evidence([record(error="model_failed", key=5) for _ in range(9)] + [record(total=1.0, key=5) for _ in range(9)])
    evidence([record(error="model_failed", key=6), record(key=6)])
    arm = stretch(evidence).candidate
    assert (arm.calls, arm.repeats, arm.errors, arm.slow) == (20, 18, 2, 1)


def test_the_number_of_callers_that_are_told_apart_is_bounded() -> None:
    evidence = opened("b")
    evidence([record(key=key) for key in range(1, MOST_KEYS + 11)])
    assert stretch(evidence).candidate.calls == MOST_KEYS
    evidence([record(key=1)])
    assert stretch(evidence).candidate.repeats == 1


def test_calls_that_no_split_routed_count_nowhere() -> None:
    evidence = opened("b")
    evidence([record(route=0), record(route=5), record(model="n")])
    assert [found for _, found in evidence.changed() if found.route == 7] == []


def test_nothing_is_looked_at_without_a_split() -> None:
    class Untouchable(list[Record]):
        def __iter__(self) -> Any:
            raise AssertionError("the records were looked at")

    Evidence()(Untouchable([record()]))


def test_only_what_has_grown_is_told_again() -> None:
    evidence = opened("b")
    evidence([record()])
    ((name, found),) = [one for one in evidence.changed() if one[1].route == 7]
    evidence.written(name, found, evidence.size(name, found))
    assert 7 not in [one.route for _, one in evidence.changed()]
    evidence.pairs("m", 7, 0.1).skipped += 1
    assert 7 in [one.route for _, one in evidence.changed()]


def test_old_stretches_are_forgotten() -> None:
    evidence = opened("b")
    for route in range(8, 8 + 5 * KEPT):
        evidence.open("m", route, 0.1, "b", SLOW)
        evidence([record(route=route, key=3)])
    assert len(evidence.changed()) == KEPT
    evidence([record(route=7), record(route=8 + 5 * KEPT - 3, key=4)])
    assert max(found.candidate.calls for _, found in evidence.changed()) == 1


def test_a_caller_that_fails_all_the_time_is_one_failure_of_a_candidate_through_all_its_stretches() -> None:
    evidence = opened("a", "b")
    for route in (7, 8, 9):
        evidence.open("m", route, 0.1, "b", SLOW)
        evidence([record("a", error="internal", key=5, route=route), record("a", total=SLOW + 1, key=6, route=route)])
    arms = [stretch.stable for _, stretch in evidence.changed() if stretch.route >= 7]
    assert (sum(arm.errors for arm in arms), sum(arm.slow for arm in arms)) == (1, 1)
    evidence.open("m", 10, 0.1, "c", SLOW)  # another candidate: another question
    evidence([record("a", error="internal", key=5, route=10)])
    assert next(stretch for _, stretch in evidence.changed() if stretch.route == 10).stable.errors == 1
