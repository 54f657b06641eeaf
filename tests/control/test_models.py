from __future__ import annotations

import inspect
from pathlib import Path

import msgspec
import pytest

from pelton.control import Control
from pelton.control.orders import OPERATIONS, Deploy, Status, perform
from pelton.errors import Conflict, InvalidInput, NotFound


def test_models_are_shown_with_aliases_and_roles(control, add):
    versions = {name: add(name) for name in ("v1", "v2", "v3", "v4")}
    control.deploy(f"fraud:{versions['v1']}")
    control.deploy(f"fraud:{versions['v2']}")
    control.shadow("fraud", versions["v3"])
    control.start_rollout(f"fraud:{versions['v4']}")
    control.set_alias("fraud", "champion", versions["v2"])
    control.set_alias("fraud", "safe", versions["v2"])
    [model] = control.models("fraud").models
    assert [(one.entry.version, one.aliases, one.role) for one in model.versions] == [
        (versions["v4"], [], "candidate"),
        (versions["v3"], [], "shadow"),
        (versions["v2"], ["champion", "safe"], "deployed"),
        (versions["v1"], [], "previous"),
    ]
    with pytest.raises(NotFound, match="did you mean"):
        control.models("frau")


def test_an_alias_moves_with_a_history_of_who_and_why(control, add):
    one, two = add("v1"), add("v2")
    control.set_alias("fraud", "champion", one[:8], "first", actor="ann@desk")
    moved = control.set_alias("fraud", "champion", two, "better", evidence={"auc": 0.9}, actor="bob@desk")
    assert (moved.version, moved.revision) == (two, 2)
    first, second = control.alias_history("fraud", "champion").moves[::-1]
    assert (first.to_version, first.by, first.why) == (one, "ann@desk", "first")
    assert (second.from_version, second.to_version, second.evidence) == (one, two, {"auc": 0.9})


def test_an_alias_may_be_pointed_where_another_one_points(control, add):
    one = add("v1")
    control.set_alias("fraud", "challenger", one)
    assert control.set_alias("fraud", "champion", "@challenger").version == one


def test_an_alias_that_was_seen_otherwise_is_not_moved(control, add):
    one, two = add("v1"), add("v2")
    control.set_alias("fraud", "champion", one, expect=0, actor="ann")
    with pytest.raises(Conflict):
        control.set_alias("fraud", "champion", two, expect=0, actor="bob")
    with pytest.raises(Conflict):
        control.remove_alias("fraud", "champion", expect=5)
    assert control.aliases("fraud").aliases[0].version == one


def test_an_alias_that_was_taken_away_can_be_set_again(control, add):
    one = add("v1")
    control.set_alias("fraud", "champion", one)
    assert control.remove_alias("fraud", "champion", "old").aliases == []
    with pytest.raises(NotFound):
        control.remove_alias("fraud", "champion")
    assert control.set_alias("fraud", "champion", one).revision == 3
    assert len(control.alias_history("fraud", "champion").moves) == 3
    with pytest.raises(NotFound, match="never had"):
        control.alias_history("fraud", "other")


def test_versions_are_compared(control, add):
    one, two = add("v1"), add("v2")
    found = control.diff(f"fraud:{one}", f"fraud:{two}")
    assert [change.path for change in found.files] == ["model.onnx"]
    assert control.diff("fraud", f"fraud:{two}").same


def test_garbage_collection_leaves_what_a_deployment_needs(control, add, clock):
    one, two, three, four, five = (add(f"v{number}") for number in range(1, 6))
    control.deploy(f"fraud:{one}")
    control.deploy(f"fraud:{two}")
    control.shadow("fraud", three)
    clock.advance(10.0)
    planned = control.gc(older_than=1.0, dry_run=True)
    assert ([found.version for found in planned.collected], planned.done) == ([four], False)
    assert control.gc(older_than=3600.0).collected == []
    assert [found.version for found in control.gc(older_than=1.0, actor="ann").collected] == [four]
    left = {one.entry.version for one in control.models("fraud").models[0].versions}
    assert left == {one, two, three, five}
    with pytest.raises(InvalidInput):
        control.gc(older_than=-1.0)


def test_everything_stands_in_the_log(control, add):
    one = add("v1")
    control.deploy("fraud", "friday", actor="ann@desk")
    control.set_alias("fraud", "champion", one, actor="bob@desk")
    page = control.audit("fraud")
    assert [event.action for event in page.events] == ["add", "deploy", "alias"]
    assert [event.actor for event in page.events][1:] == ["ann@desk", "bob@desk"]
    assert control.audit("fraud", after=page.next).events == []
    assert [event.action for event in control.audit(action="deploy").events] == ["deploy"]
    assert control.audit("fraud", after=0, limit=1).next == page.events[0].id


def test_webhooks_are_added_shown_without_their_secret_and_removed(control):
    made = control.add_webhook("https://example.org/hook", ("deploy",), actor="ann")
    assert len(made.secret) >= 16
    [shown] = control.webhooks().webhooks
    assert (shown.id, shown.actions) == (made.id, ("deploy",))
    assert shown.secret != made.secret
    assert control.remove_webhook(made.id).webhooks == []


# ---- the table of orders


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.method)
def test_an_order_has_the_fields_and_defaults_of_its_method(operation):
    parameters = dict(inspect.signature(getattr(Control, operation.method)).parameters)
    del parameters["self"]
    assert ("actor" in parameters) == operation.writes
    parameters.pop("actor", None)
    fields = {field.name: field for field in msgspec.structs.fields(operation.order)}
    assert list(fields) == list(parameters)
    for name, field in fields.items():
        default = parameters[name].default
        assert field.default == default or (field.required and default is inspect.Parameter.empty), name
    assert set(operation.in_path) <= {name for name, field in fields.items() if field.required}


def test_paths_are_told_apart():
    assert len({(operation.verb, operation.path) for operation in OPERATIONS}) == len(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.method)
def test_the_type_of_every_answer_can_be_decoded(operation):
    msgspec.json.Decoder(operation.answer_type())
    assert operation.order.__doc__


def test_an_order_is_carried_out_in_the_name_of_its_actor(control, add):
    add("v1")
    perform(control, Deploy("fraud", "why"), "ann@desk")
    assert control.history("fraud").changes[0].actor == "ann@desk"
    assert perform(control, Status("fraud"), "ann@desk").models[0].name == "fraud"


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.method)
def test_every_operation_stands_on_the_page_about_the_api(operation):
    page = Path(__file__).parents[2] / "docs" / "admin-api.md"
    assert f"| `{operation.verb} /admin/v1{operation.path}` |" in page.read_text(encoding="utf-8")
