from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from pelton.control import Control
from pelton.deployments import Deployment, Shadow
from pelton.errors import Conflict, InvalidInput, NotFound
from pelton.registry import Registry
from pelton.rollout.state import Limits


def test_the_first_deploy_is_revision_one_and_names_who_and_why(control, add):
    version = add("v1")
    done = control.deploy(f"fraud:{version[:8]}", "first", actor="ann@desk")
    assert done.changed
    assert done.deployment == Deployment("fraud", 1, version)
    [change] = control.history("fraud").changes
    assert (change.actor, change.action, change.why) == ("ann@desk", "deploy", "first")


def test_a_deploy_takes_the_newest_a_version_or_an_alias(control, add):
    one, two = add("v1"), add("v2")
    control.set_alias("fraud", "champion", one, expect=0)
    assert control.deploy("fraud").deployment.version == two
    assert control.deploy("fraud@champion").deployment.version == one
    assert control.deploy(f"fraud:{two}").deployment.version == two


def test_an_alias_that_moves_later_does_not_move_the_deployment(control, add):
    one, two = add("v1"), add("v2")
    control.set_alias("fraud", "champion", one)
    control.deploy("fraud@champion")
    control.set_alias("fraud", "champion", two)
    assert control.deployment("fraud").version == one


def test_deploying_what_is_deployed_changes_nothing_and_says_so(control, add):
    add("v1")
    control.deploy("fraud")
    again = control.deploy("fraud", "again")
    assert not again.changed
    assert again.revision == 1
    assert "already" in again.message
    assert len(control.history("fraud").changes) == 1


def test_the_version_before_is_kept_to_go_back_to(control, add):
    one, two, three = add("v1"), add("v2"), add("v3")
    for version in (one, two, three):
        control.deploy(f"fraud:{version}")
    assert control.deployment("fraud").previous == two


def test_what_processes_served_before_the_first_deploy_can_be_gone_back_to(control, add, report):
    one, two = add("v1"), add("v2")
    report("p1", versions={one: "serves"})
    control.deploy(f"fraud:{two}")
    assert control.rollback("fraud").deployment.version == one


def test_a_slow_limit_alone_is_a_change(control, add):
    add("v1")
    control.deploy("fraud")
    assert control.deploy("fraud", slow_ms=20.0).deployment.slow_ms == 20.0
    assert control.deploy("fraud").deployment.slow_ms == 20.0
    with pytest.raises(InvalidInput, match="slow_ms"):
        control.deploy("fraud", slow_ms=-1.0)


def test_what_is_not_in_the_registry_cannot_be_deployed(control, add):
    add("v1")
    with pytest.raises(NotFound, match="fraud"):
        control.deploy("frau")
    with pytest.raises(NotFound, match="no version"):
        control.deploy("fraud:beef")
    with pytest.raises(NotFound, match="alias"):
        control.deploy("fraud@champion")
    assert control.deployments.all() == {}


@pytest.mark.parametrize("order", ["deploy", "undeploy", "rollback", "shadow"])
def test_an_order_about_another_revision_than_the_present_is_refused(control, add, order):
    add("v1")
    control.deploy("fraud")
    with pytest.raises(Conflict, match="revision 1, not 4"):
        getattr(control, order)("fraud", expect=4)
    assert control.deployment("fraud").revision == 1


def test_a_first_deploy_may_expect_that_there_is_none(control, add):
    add("v1")
    assert control.deploy("fraud", expect=0).revision == 1
    with pytest.raises(Conflict):
        control.deploy("fraud", expect=0)


# ---- undeploy


def test_an_undeployed_model_is_brought_back_by_a_rollback(control, add):
    one, two = add("v1"), add("v2")
    control.deploy(f"fraud:{one}")
    control.deploy(f"fraud:{two}")
    gone = control.undeploy("fraud", "fire").deployment
    assert (gone.version, gone.previous) == ("", two)
    assert not control.undeploy("fraud").changed
    assert control.rollback("fraud").deployment.version == two


def test_a_model_that_is_served_without_a_deployment_can_be_undeployed(control, add, report):
    version = add("v1")
    with pytest.raises(NotFound, match="not deployed"):
        control.undeploy("fraud")
    report("p1", versions={version: "serves"})
    assert control.undeploy("fraud").deployment == Deployment("fraud", 1, "", version)


def test_undeploying_aborts_an_open_rollout(control, add):
    one, two = add("v1"), add("v2")
    control.deploy(f"fraud:{one}")
    rollout = control.start_rollout(f"fraud:{two}").rollout
    assert control.undeploy("fraud").deployment == Deployment("fraud", 3, "", one)
    assert control.deployments.rollout(rollout.id).status == "aborted"


# ---- rollback


def test_a_rollback_goes_back_to_the_version_before_and_remembers_the_one_it_left(control, add):
    one, two = add("v1"), add("v2")
    control.deploy(f"fraud:{one}")
    control.deploy(f"fraud:{two}")
    back = control.rollback("fraud", "bad scores", actor="ann@desk").deployment
    assert (back.version, back.previous, back.revision) == (one, two, 3)
    assert control.history("fraud").changes[0].action == "rollback"


def test_a_second_rollback_is_refused_and_names_the_way_on(control, add):
    one, two, three = add("v1"), add("v2"), add("v3")
    for version in (one, two, three):
        control.deploy(f"fraud:{version}")
    control.rollback("fraud", actor="ann@desk")
    with pytest.raises(Conflict, match=f"already, at revision 4 by ann@desk.*--to {three[:12]}"):
        control.rollback("fraud")
    assert control.rollback("fraud", to=three[:12]).deployment.version == three


def test_a_rollback_to_a_named_version_may_reach_further_back(control, add):
    one, two, three = add("v1"), add("v2"), add("v3")
    for version in (one, two, three):
        control.deploy(f"fraud:{version}")
    back = control.rollback("fraud", to=one).deployment
    assert (back.version, back.previous) == (one, three)
    with pytest.raises(Conflict, match="nothing to roll back"):
        control.rollback("fraud", to=one)
    with pytest.raises(NotFound):
        control.rollback("fraud", to="beef")


def test_after_a_new_deploy_a_rollback_works_again(control, add):
    one, two, three = add("v1"), add("v2"), add("v3")
    control.deploy(f"fraud:{one}")
    control.deploy(f"fraud:{two}")
    control.rollback("fraud")
    control.deploy(f"fraud:{three}")
    assert control.rollback("fraud").deployment.version == one


def test_there_is_nothing_to_go_back_to_after_the_first_deploy(control, add):
    with pytest.raises(NotFound, match="never deployed"):
        control.rollback("fraud")
    add("v1")
    control.deploy("fraud")
    with pytest.raises(Conflict, match="--to VERSION"):
        control.rollback("fraud")


def test_a_rollback_during_a_rollout_takes_the_candidate_out_only(control, add):
    zero, one, two = add("v0"), add("v1"), add("v2")
    control.deploy(f"fraud:{zero}")
    control.deploy(f"fraud:{one}")
    rollout = control.start_rollout(f"fraud:{two}", limits=Limits(disagreement=0.1)).rollout
    back = control.rollback("fraud", "errors").deployment
    assert back == Deployment("fraud", 4, one, zero)
    ended = control.deployments.rollout(rollout.id)
    assert (ended.status, ended.reason) == ("aborted", "errors")
    with pytest.raises(Conflict, match="rolled back already"):  # a second press must not go one version further
        control.rollback("fraud")


def test_a_rollback_during_a_rollout_may_name_another_version(control, add):
    zero, one, two = add("v0"), add("v1"), add("v2")
    control.deploy(f"fraud:{one}")
    control.start_rollout(f"fraud:{two}")
    back = control.rollback("fraud", to=zero).deployment
    assert (back.version, back.previous, back.candidate, back.rollout) == (zero, one, "", "")


def test_a_rollback_over_many_changes_of_the_same_version_is_still_refused(control, add):
    one, two = add("v1"), add("v2")
    control.deploy(f"fraud:{one}")
    control.deploy(f"fraud:{two}")
    control.rollback("fraud")
    for number in range(105):  # more than a page of history
        control.deploy(f"fraud:{one}", slow_ms=float(number + 1))
    with pytest.raises(Conflict, match="rolled back already, at revision 3"):
        control.rollback("fraud")


# ---- shadow


def test_a_shadow_is_set_changed_and_taken_away(control, add):
    one, two = add("v1"), add("v2")
    control.deploy(f"fraud:{one}")
    set_ = control.shadow("fraud", two[:10], 0.5, 0.02, "country", "compare").deployment
    assert set_.shadow == Shadow(two, 0.5, 0.02, "country")
    assert not control.shadow("fraud", two, 0.5, 0.02, "country").changed
    assert control.shadow("fraud").deployment.shadow is None


def test_a_shadow_may_be_named_by_an_alias(control, add):
    one, two = add("v1"), add("v2")
    control.set_alias("fraud", "challenger", two)
    control.deploy(f"fraud:{one}")
    assert control.shadow("fraud", "@challenger").deployment.shadow == Shadow(two)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"share": 0.0}, "share"),
        ({"share": 1.5}, "share"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"share": float("nan")}, "share"),
    ],
)
def test_a_shadow_with_impossible_numbers_is_refused(control, add, given, told):
    one, two = add("v1"), add("v2")
    control.deploy(f"fraud:{one}")
    with pytest.raises(InvalidInput, match=told):
        control.shadow("fraud", two, **given)


def test_what_answers_cannot_be_its_own_shadow(control, add):
    one, two = add("v1"), add("v2")
    control.deploy(f"fraud:{one}")
    with pytest.raises(InvalidInput, match="another version"):
        control.shadow("fraud", one)
    control.shadow("fraud", two)
    assert control.deploy(f"fraud:{two}").deployment.shadow is None


def test_a_model_that_is_not_served_has_no_shadow(control, add):
    version = add("v1")
    with pytest.raises(NotFound, match="pelton deploy fraud"):
        control.shadow("fraud", version)


def test_a_shadow_changed_during_a_rollout_keeps_its_evidence_in_the_rollout(control, add):
    one, two, three = add("v1"), add("v2"), add("v3")
    control.deploy(f"fraud:{one}")
    rollout = control.start_rollout(f"fraud:{two}").rollout
    changed = control.shadow("fraud", three).deployment
    assert changed.candidate == two
    assert control.deployments.rollout(rollout.id).routes == (2, changed.revision) == (2, 3)


def test_the_shadow_of_a_rollout_that_compares_answers_is_not_taken_away(control, add):
    one, two, three = add("v1"), add("v2"), add("v3")
    control.deploy(f"fraud:{one}")
    control.start_rollout(f"fraud:{two}", limits=Limits(disagreement=0.1))
    with pytest.raises(Conflict, match="compares answers itself"):
        control.shadow("fraud", three)


def test_of_operators_that_deploy_from_the_same_revision_one_wins(store_url, control, add, tmp_path):
    versions = [add(f"v{number}") for number in range(4)]
    control.deploy(f"fraud:{versions[0]}")

    def deploy(version: str) -> bool:
        other = Control(control.store, Registry(tmp_path / "home", control.store))
        try:
            return other.deploy(f"fraud:{version}", expect=1).changed
        except Conflict:
            return False

    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(deploy, versions[1:]))
    assert sorted(outcomes) == [False, False, True]
    assert control.deployment("fraud").version == versions[1:][outcomes.index(True)]
