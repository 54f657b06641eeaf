from __future__ import annotations

import pytest

from pelton.control.waiting import SILENT_SECONDS, STALE_SECONDS, wait
from pelton.errors import InvalidInput, NotFound
from pelton.testing import ManualClock


@pytest.fixture
def deployed(control, add) -> str:
    version = add("v1")
    control.deploy("fraud")
    return version


def test_nothing_is_shown_where_there_is_nothing(control):
    status = control.status()
    assert (status.models, status.processes) == ([], 0)
    with pytest.raises(NotFound, match="pelton deploy fraud"):
        control.status("fraud")


def test_rates_are_those_of_all_processes_weighted_by_their_calls(control, deployed, report):
    report("p1", versions={deployed: "serves"}, converged=1, calls_per_second=30.0, errors_share=0.1, slow_share=0.2)
    report("p2", versions={deployed: "serves"}, converged=1, calls_per_second=10.0)
    [model] = control.status().models
    assert model.calls_per_second == 40.0
    assert model.errors_share == pytest.approx(0.075)
    assert model.slow_share == pytest.approx(0.15)
    assert model.converged


def test_a_process_that_cannot_load_the_version_tells_why(control, deployed, report):
    report("p1", versions={deployed: "serves"}, converged=1)
    report("p2", versions={deployed: "golden request 3 was answered otherwise"}, converged=0)
    [model] = control.status("fraud").models
    assert not model.converged
    [problem] = model.problems
    assert "golden request 3" in problem
    assert "process 7" in problem


def test_a_process_on_its_way_has_no_problem(control, deployed, report):
    report("p1", versions={deployed: "loading"}, converged=0)
    [model] = control.status().models
    assert (model.converged, model.problems) == (False, [])


def test_a_pinned_process_is_shown_but_not_waited_for(control, deployed, report):
    report("p1", versions={deployed: "serves"}, converged=1)
    report("p2", versions={"f" * 64: "serves"}, pinned=True)
    [model] = control.status().models
    assert model.converged
    assert len(model.processes) == 2


def test_a_model_that_is_served_without_a_deployment_is_shown(control, add, report):
    version = add("v1")
    report("p1", versions={version: "serves"})
    [model] = control.status().models
    assert (model.name, model.deployment) == ("fraud", None)


def test_history_comes_in_pages(control, deployed):
    for number in range(4):
        control.deploy("fraud", slow_ms=number + 1.0)
    page = control.history("fraud", limit=2)
    assert ([change.revision for change in page.changes], page.next) == ([5, 4], 4)
    page = control.history("fraud", limit=2, before=page.next)
    assert ([change.revision for change in page.changes], page.next) == ([3, 2], 2)
    assert control.history("fraud", limit=2, before=2).next is None
    with pytest.raises(NotFound):
        control.history("churn")
    for limit in (0, 1001):
        with pytest.raises(InvalidInput, match="limit"):
            control.history("fraud", limit=limit)


# ---- waiting


class Scene:
    """Time passes only in `sleep`; `then` says what happens at which second."""

    def __init__(self, control, then):
        self.control = control
        self.clock = ManualClock()
        self.then = sorted(then.items())

    def wait(self, revision: int, timeout: float = 10.0):
        return wait(lambda: self.control.status("fraud"), revision, timeout, self.clock, self._sleep)

    def _sleep(self, seconds: float) -> None:
        now = self.clock.advance(seconds)
        while self.then and self.then[0][0] <= now:
            self.then.pop(0)[1]()


def test_waiting_ends_when_every_process_has_converged(control, deployed, report):
    report("p1", converged=1)
    report("p2", converged=0)
    scene = Scene(control, {1.0: lambda: report("p2", converged=1)})
    waited = scene.wait(1)
    assert (waited.outcome, waited.processes) == ("converged", 2)
    assert waited.seconds == pytest.approx(1.0, abs=0.05)


def test_waiting_ends_with_the_reason_when_a_process_fails(control, deployed, report):
    report("p1", versions={deployed: "loading"}, converged=0)
    scene = Scene(control, {0.5: lambda: report("p1", versions={deployed: "no memory"}, converged=0)})
    waited = scene.wait(1)
    assert waited.outcome == "failed"
    assert "no memory" in waited.problems[0]
    assert waited.seconds < 1.0


def test_an_old_failure_that_a_process_still_tells_does_not_end_the_waiting(control, deployed, report):
    report("p1", versions={deployed: "no memory"}, converged=0)
    scene = Scene(control, {0.3: lambda: report("p1", versions={deployed: "serves"}, converged=1)})
    assert scene.wait(1).outcome == "converged"


def test_a_failure_that_stays_ends_the_waiting(control, deployed, report):
    report("p1", versions={deployed: "no memory"}, converged=0)
    waited = Scene(control, {}).wait(1)
    assert waited.outcome == "failed"
    assert waited.seconds == pytest.approx(STALE_SECONDS, abs=0.1)


def test_waiting_is_bounded(control, deployed, report):
    report("p1", versions={deployed: "loading"}, converged=0)
    waited = Scene(control, {}).wait(1, timeout=3.0)
    assert waited.outcome == "timeout"
    assert waited.seconds == pytest.approx(3.0, abs=0.1)


def test_without_a_server_nobody_is_waited_for_longer_than_a_moment(control, deployed):
    waited = Scene(control, {}).wait(1)
    assert waited.outcome == "nobody"
    assert waited.seconds == pytest.approx(SILENT_SECONDS, abs=0.1)


def test_a_server_whose_first_report_comes_with_the_change_is_waited_for(control, deployed, report):
    assert Scene(control, {0.5: lambda: report("p1", converged=1)}).wait(1).outcome == "converged"


def test_a_later_revision_is_good_enough(control, deployed, report):
    report("p1", converged=5)
    assert Scene(control, {}).wait(1).outcome == "converged"
