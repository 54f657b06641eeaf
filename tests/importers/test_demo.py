"""The models that a stranger sees first: what is shipped loads, reproduces its golden answers, and is small."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from pelton.importers import Options, add, folder
from pelton.packages import golden
from pelton.registry import Registry
from pelton.registry.entries import noted
from pelton.runtimes import contract
from pelton.runtimes.onnx import open_session
from pelton.store import catalog
from pelton.transforms import compile_finish, compile_prepare

DEMO = Path(__file__).resolve().parents[2] / "demo"
ALL = tomllib.loads((DEMO / "recipes.toml").read_text())["model"]
RECIPES = {recipe["folder"]: recipe for recipe in ALL if "folder" in recipe}


@pytest.fixture(scope="module")
def setup():
    spec = importlib.util.spec_from_file_location("demo_setup", DEMO / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ask(package, fields):
    prepared = compile_prepare(package)({name: [value] for name, value in fields.items()})
    model = contract.load(package, contract.RuntimeOptions())
    return compile_finish(package)(model.run(prepared.inputs), prepared.counts)[0]


def test_all_of_the_demo_is_small():
    assert (
        sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file() and "__pycache__" not in path.parts) < 1e6
    )


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if "source" not in recipe])
def test_a_shipped_model_reproduces_its_golden_answers(name, registry):
    package = folder.add(str(DEMO / "models" / name), registry, Options())
    assert package.manifest.slo.p99_ms
    assert package.manifest.example
    assert package.manifest.description
    assert golden.check(package, contract.load(package, contract.RuntimeOptions()).run) > 0


def test_spam_is_told_from_ham(registry):
    package = add(str(DEMO / "models/spam"), registry, Options())
    assert ask(package, package.manifest.example)["labels"][0]["label"] == "spam"
    mail = "Re: [patch] fix the build\n\nHi all, the attached patch moves the header, so that gcc finds it. Thanks, Tom"
    assert ask(package, {"text": mail})["labels"][0]["label"] == "ham"


def test_the_example_page_is_phishing_and_a_harmless_one_is_not(registry):
    package = add(str(DEMO / "models/phishing"), registry, Options())
    example = package.manifest.example
    assert ask(package, example)["labels"][0]["label"] == "phishing"
    harmless = {**dict.fromkeys(example, 1), "ip_in_url": 0}
    assert ask(package, harmless)["labels"][0]["label"] == "legitimate"


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if "source" in recipe])
def test_a_fetched_model_is_pinned_and_described(name):
    recipe = RECIPES[name]
    assert "#sha256=" in recipe["source"]
    assert (DEMO / "examples" / recipe["example"]["file"]).is_file()
    told = tomllib.loads((DEMO / "models" / name / "pelton.toml").read_text())
    assert told["slo"]["p99_ms"]
    assert told["source"] == recipe["source"].partition("#")[0]


def test_an_output_can_be_written_behind_a_model(setup, onnx_file):
    info = helper.make_tensor_value_info
    path = onnx_file(
        [helper.make_node("Neg", ["x"], ["y"])],
        [info("x", TensorProto.FLOAT, ["n", 300, 4])],
        [info("y", TensorProto.FLOAT, ["n", 300, 4])],
    )
    path.write_bytes(path.read_bytes() + setup.peak(of="y", axis=1, output="top", shape=[4]))
    session = open_session(path, threads=1)
    x = np.random.default_rng(0).standard_normal((2, 300, 4)).astype(np.float32)
    (top,) = session.run(["top"], {"x": x})
    np.testing.assert_array_equal(top, (-x).max(axis=1))
    assert session.get_outputs()[1].shape[1:] == [4]


def register(home, *names):
    """Enters models without files into the store of a home."""
    store = Registry(home).store
    with store.write() as connection:
        for name in names:
            catalog.put(connection, noted(name, "0" * 64, [], {"size": 0}, {}))
    store.close()


def test_what_is_there_is_skipped_without_importing_pelton(setup, tmp_path):
    done = {setup.name_of(recipe): setup.digest(recipe) for recipe in ALL}
    (tmp_path / "demo.json").write_text(json.dumps(done))
    register(tmp_path, *done)
    code = "import sys, runpy; sys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "except SystemExit as e: print(e.code, [m for m in ('pelton', 'numpy', 'onnxruntime') if m in sys.modules])"
    command = [sys.executable, "-c", code, str(DEMO / "setup.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "0 []\n"


def test_a_removed_or_changed_model_is_made_again(setup, tmp_path):
    (tmp_path / "demo.json").write_text(json.dumps({"spam": "key", "notes": "key"}))
    register(tmp_path, "spam")
    assert setup.ready(tmp_path) == {"spam": "key"}
    (tmp_path / "demo.json").write_text("{")
    assert setup.ready(tmp_path) == {}


def test_labels_of_the_keys_of_a_piano():
    notes = load_lines("notes/notes.txt")
    assert (len(notes), notes[0], notes[48], notes[-1]) == (88, "A0", "A4", "C8")


def load_lines(name):
    return (DEMO / "models" / name).read_text().splitlines()
