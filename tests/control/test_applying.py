from __future__ import annotations

import pytest

from pelton.control import desired
from pelton.deployments import Deployment, Shadow
from pelton.errors import Conflict, InvalidInput, NotFound


def toml(text: str) -> desired.Desired:
    return desired.parse(text, "deploy.toml")


def test_a_file_is_applied_and_a_second_time_changes_nothing(control, add):
    one, two = add("v1"), add("v2")
    churn = add("c1", name="churn")
    control.set_alias("fraud", "champion", one)
    file = toml(f"""
[models.fraud]
alias = "champion"
slow_ms = 50
[models.fraud.shadow]
version = "{two[:12]}"
share = 0.25
segment = "country"
[models.churn]
version = "{churn[:8]}"
""")
    applied = control.apply(file, "friday", actor="ann@desk")
    assert [(step.name, step.action) for step in applied.steps] == [("fraud", "deploy"), ("churn", "deploy")]
    assert control.deployment("fraud") == Deployment(
        "fraud", 1, one, shadow=Shadow(two, 0.25, 0.01, "country"), slow_ms=50.0
    )
    assert control.history("churn").changes[0].why == "friday"
    again = control.apply(file)
    assert [step.action for step in again.steps] == ["nothing", "nothing"]
    assert control.deployments.revisions() == {"fraud": 1, "churn": 1}


def test_a_dry_run_says_what_differs_and_changes_nothing(control, add):
    one, two = add("v1"), add("v2")
    control.deploy(f"fraud:{one}")
    plan = control.apply(toml(f'[models.fraud]\nversion = "{two}"\nslow_ms = 5'), dry_run=True)
    assert not plan.done
    [step] = plan.steps
    assert step.lines == [f"version: {one[:12]} -> {two[:12]}", "slow_ms: 0 -> 5"]
    assert control.deployment("fraud").version == one


def test_applying_keeps_the_version_before_to_go_back_to(control, add):
    one, two = add("v1"), add("v2")
    control.deploy(f"fraud:{one}")
    control.apply(toml(f'[models.fraud]\nversion = "{two}"'))
    assert control.rollback("fraud").deployment.version == one


def test_models_that_the_file_does_not_name_are_left_alone(control, add):
    add("v1")
    control.deploy("fraud")
    add("c1", name="churn")
    control.apply(toml("[models.churn]\nserve = false"))
    assert control.deployment("fraud").revision == 1


def test_a_shadow_that_the_file_does_not_name_is_left_and_an_empty_one_ends_it(control, add):
    one, two = add("v1"), add("v2")
    control.deploy(f"fraud:{one}")
    control.shadow("fraud", two)
    control.apply(toml(f'[models.fraud]\nversion = "{one}"\nslow_ms = 1'))
    assert control.deployment("fraud").shadow == Shadow(two)
    control.apply(toml(f'[models.fraud]\nversion = "{one}"\nslow_ms = 1\n[models.fraud.shadow]'))
    assert control.deployment("fraud").shadow is None


def test_serve_false_takes_a_model_out_of_service(control, add):
    version = add("v1")
    control.deploy("fraud")
    control.apply(toml("[models.fraud]\nserve = false"))
    assert control.deployment("fraud") == Deployment("fraud", 2, "", version)
    assert control.history("fraud").changes[0].action == "undeploy"


def test_an_open_rollout_blocks_a_change_of_its_model_and_nothing_is_changed(control, add):
    one, two, three = add("v1"), add("v2"), add("v3")
    churn = add("c1", name="churn")
    control.deploy(f"fraud:{one}")
    control.start_rollout(f"fraud:{two}")
    file = toml(f'[models.churn]\nversion = "{churn}"\n[models.fraud]\nversion = "{three}"')
    with pytest.raises(Conflict, match="rollout is open for fraud"):
        control.apply(file)
    assert control.deployments.get("churn") is None
    same = toml(f'[models.fraud]\nversion = "{one}"')
    assert [step.action for step in control.apply(same).steps] == ["nothing"]


def test_a_reference_that_leads_nowhere_is_told_before_anything_changes(control, add):
    churn = add("c1", name="churn")
    add("v1")
    with pytest.raises(NotFound, match="champion"):
        control.apply(toml(f'[models.churn]\nversion = "{churn}"\n[models.fraud]\nalias = "champion"'))
    assert control.deployments.all() == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[model.fraud]\nversion = '1'", r"deploy.toml has the unknown key model; did you mean models\?"),
        ("[models.fraud]\nversoin = '1'", r"unknown key models.fraud.versoin; did you mean models.fraud.version\?"),
        ("[models.fraud]\nversion = '1'\n[models.fraud.shadow]\nshaer = 1", r"models.fraud.shadow.shaer; did you mean models.fraud.shadow.share\?"),
        ("[models.fraud]\nxyzzy = 1\nversion = '1'", "known are version, alias, serve"),
        ("[models.fraud]", "needs a version or an alias"),
        ("[models.fraud]\nversion = '1'\nalias = 'a'", "not both"),
        ("[models.fraud]\nserve = false\nversion = '1'", "serve = false"),
        ("[models.fraud]\nversion = '1'\nslow_ms = -1", "slow_ms"),
        ("[models.fraud]\nversion = '1'\n[models.fraud.shadow]\nversion='2'\nshare = 2", "share"),
        ("[models.fraud]\nversion = '1'\n[models.fraud.shadow]\nversion='2'\ntolerance = nan", "tolerance"),
        ("[models.fraud]\nversion = '1'\n[models.fraud.shadow]\nversion='2'\nalias = 'a'", "not both"),
        ("[models.fraud]\nversion = 1", r"models.*version|str"),
        ("models = 3", "must be tables"),
        ("[models", "deploy.toml: "),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_the_key_and_the_mend(text, told):
    with pytest.raises(InvalidInput, match=told):
        toml(text)


def test_the_version_that_answers_cannot_be_declared_as_its_own_shadow(control, add):
    version = add("v1")
    with pytest.raises(InvalidInput, match="another one"):
        control.apply(toml(f'[models.fraud]\nversion = "{version}"\n[models.fraud.shadow]\nversion = "{version}"'))
