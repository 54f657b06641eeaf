"""What is known of a version beside its files, where it comes from, and how two differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pelton.errors import InvalidInput, NotFound
from pelton.packages import Batching, Manifest, Slo, save
from pelton.registry import Registry
from pelton.types import ModelRef, Signature, TensorSpec

Added = Callable[..., str]


def test_an_entry_tells_who_added_it_from_where_and_how_good_it_is(registry: Registry, added: Added) -> None:
    version = added(by="ana@desk", source="hf:me/fraud", metrics={"auc": 0.9, "rows": 1000})
    entry = registry.find(ModelRef("fraud"))
    assert (entry.by, entry.source, entry.metrics) == ("ana@desk", "hf:me/fraud", {"auc": 0.9, "rows": 1000})
    files = registry.artifacts.folder(version)
    assert entry.size == sum(path.stat().st_size for path in files.iterdir()) > 0


def test_adding_again_adds_to_what_is_known(registry: Registry, added: Added, tmp_path: Path) -> None:
    added(by="ana", source="here", metrics={"auc": 0.9})
    before = registry.find(ModelRef("fraud"))
    registry.add(tmp_path / "package1", accepted_on="AVX-512", metrics={"auc": 0.91})
    after = registry.find(ModelRef("fraud"))
    assert after == msgspec.structs.replace(before, accepted_on="AVX-512", metrics={"auc": 0.91})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "high", None])
def test_a_metric_is_a_finite_number(registry: Registry, added: Added, value: object) -> None:
    with pytest.raises(InvalidInput, match="'auc'"):
        added(metrics={"auc": value})
    assert registry.models() == []


def test_lineage_goes_up_to_the_first_and_down_to_the_children(registry: Registry, added: Added) -> None:
    first = added()
    small = added(parent=first, derivation="distilled")
    tiny = added("fraud-int8", parent=small, derivation="int8", accepted_on="AVX-512 VNNI")
    other = added(parent=small, derivation="q4_0")
    told = registry.lineage("fraud", small[:12])
    assert told.entry.version == small
    assert [entry.version for entry in told.ancestors] == [first]
    assert {entry.version for entry in told.children} == {tiny, other}
    leaf = registry.lineage("fraud-int8", tiny)
    assert [(entry.version, entry.derivation) for entry in leaf.ancestors] == [(small, "distilled"), (first, "")]
    assert (leaf.entry.derivation, leaf.entry.accepted_on, leaf.children) == ("int8", "AVX-512 VNNI", ())


def test_a_parent_must_be_there_and_may_not_derive_from_its_child(
    registry: Registry, added: Added, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="parent"):
        added(parent="a" * 64)
    assert registry.models() == []
    first = added()
    second = added(parent=first)
    with pytest.raises(InvalidInput, match="derives from it"):
        registry.add(tmp_path / "package2", parent=second)
    with pytest.raises(InvalidInput, match="derives from it"):
        registry.add(tmp_path / "package3", parent=registry.add(tmp_path / "package3"))
    assert registry.lineage("fraud", first).ancestors == ()


def test_a_removed_ancestor_ends_the_line(registry: Registry, added: Added) -> None:
    first = added()
    second = added(parent=first)
    third = added(parent=second)
    registry.remove(ModelRef("fraud", second))
    told = registry.lineage("fraud", third)
    assert (told.entry.parent, told.ancestors) == (second, ())


def version(registry: Registry, folder: Path, manifest: Manifest, metrics: dict[str, float], **files: str) -> str:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    save(manifest, folder)
    return registry.add(folder, metrics=metrics)


def test_a_diff_names_files_signature_manifest_and_metrics(registry: Registry, tmp_path: Path) -> None:
    x, y, z = (TensorSpec(name, "FP32", (3,)) for name in "xyz")
    old = Manifest("fraud", "onnx", "model", Signature((x,), (y,)), slo=Slo(20.0))
    wider = TensorSpec("x", "FP32", (4,))
    new = Manifest("fraud", "onnx", "model", Signature((z, wider), (y,)), slo=Slo(50.0), batching=Batching("cost"))
    a = version(registry, tmp_path / "a", old, {"auc": 0.9, "f1": 0.5}, model="one", same="s", gone="g")
    b = version(registry, tmp_path / "b", new, {"auc": 0.92, "rows": 10.0}, model="other", same="s", fresh="ff")
    diff = registry.diff(ModelRef("fraud", a[:12]), ModelRef("fraud"))
    assert (diff.a, diff.b, diff.same) == (f"fraud:{a}", f"fraud:{b}", False)
    files = {change.path: change for change in diff.files}
    assert sorted(files) == ["fresh", "gone", "model", "pelton.toml"]
    assert files["gone"].after is None
    assert files["fresh"].before is None
    assert files["fresh"].after.size == 2
    assert (files["model"].before.size, files["model"].after.size) == (3, 5)
    assert files["model"].before.sha256 != files["model"].after.sha256
    signature = {change.path: (change.before, change.after) for change in diff.signature}
    assert signature["inputs.x.shape"] == ((3,), (4,))
    assert signature["inputs.z.datatype"] == (None, "FP32")
    assert not [path for path in signature if path.startswith("outputs")]
    manifest = {change.path: (change.before, change.after) for change in diff.manifest}
    assert manifest == {"slo.p99_ms": (20.0, 50.0), "batching.objective": (None, "cost")}
    assert diff.metrics == {"auc": (0.9, 0.92), "f1": (0.5, None), "rows": (None, 10.0)}
    msgspec.json.encode(diff)


def test_a_version_does_not_differ_from_itself(registry: Registry, added: Added) -> None:
    added()
    diff = registry.diff(ModelRef("fraud"), ModelRef("fraud"))
    assert diff.same
    assert (diff.files, diff.signature, diff.manifest, diff.metrics) == ((), (), (), {})
