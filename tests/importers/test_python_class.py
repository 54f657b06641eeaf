from __future__ import annotations

import numpy as np
import pytest

from pelton.errors import ModelFailed, SourceInvalid, Untrusted
from pelton.importers import Options, add
from pelton.packages import golden

CODE = """
import numpy as np
from helper import double
from pathlib import Path

class Model:
    inputs = {"x": "FP32[2]"}
    outputs = {"y": "FP32[2]"}
    batch = True
    files = ["weights/bias.npy"]

    def setup(self, folder):
        self.bias = np.load(Path(folder) / "weights/bias.npy")

    def predict(self, x):
        return {"y": double(x) + self.bias}

class Row:
    inputs = {"x": "FP32[2]"}
    outputs = {"total": "FP32"}

    def predict(self, x):
        return {"total": np.float32(x.sum())}

class Picky:
    inputs = {"text": "BYTES"}
    outputs = {"n": "INT64"}

    def predict(self, text):
        raise ValueError("no JSON")
"""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "src/weights").mkdir(parents=True)
    np.save(tmp_path / "src/weights/bias.npy", np.ones(2, np.float32))
    (tmp_path / "src/helper.py").write_text("import deeper\ndef double(x):\n    return deeper.twice * x\n")
    (tmp_path / "src/deeper.py").write_text("twice = 2\n")
    (tmp_path / "src/unrelated.py").write_text("1 / 0\n")
    path = tmp_path / "src/churn.py"
    path.write_text(CODE)
    return path


def test_code_is_not_taken_without_trust(code, registry):
    with pytest.raises(Untrusted, match="--trust"):
        add(f"{code}:Model", registry, Options())
    assert registry.models() == []


def test_a_class_comes_with_its_modules_and_files(code, registry):
    package = add(f"{code}:Model", registry, Options(trust=True))
    assert package.name == "churn"
    assert package.manifest.runtime == "python"
    assert package.manifest.file == "churn.py"
    assert package.manifest.options == {"class": "Model", "batch": True}
    names = {str(path.relative_to(package.folder)) for path in package.folder.rglob("*") if path.is_file()}
    assert names == {"churn.py", "helper.py", "deeper.py", "weights/bias.npy", "pelton.toml", "golden.json"}
    request = golden.read(package.folder / "golden.json")[0]
    assert request.outputs["y"].tolist() == (request.inputs["x"] * 2 + 1).tolist()


def test_a_class_for_single_rows_is_not_batched(code, registry):
    package = add(f"{code}:Row", registry, Options(trust=True))
    assert package.name == "Row"
    assert package.manifest.batching.max_rows == 1
    assert package.manifest.options["batch"] is False


def test_a_class_that_made_up_rows_do_not_suit_goes_in_without_golden_requests(code, registry, caplog, tmp_path):
    assert add(f"{code}:Picky", registry, Options(trust=True)).manifest.golden is None
    assert "--example" in caplog.text
    (tmp_path / "rows.json").write_text('["a"]')
    with pytest.raises(ModelFailed, match="no JSON"):
        add(f"{code}:Picky", registry, Options(trust=True, example=tmp_path / "rows.json"))


@pytest.mark.parametrize(("source", "message"), [("{}:Nobody", "Nobody"), ("{}x.py:Model", "no file")])
def test_a_source_that_names_no_class_is_refused(code, registry, source, message):
    with pytest.raises(SourceInvalid, match=message):
        add(source.format(code), registry, Options(trust=True))


def test_without_a_name_the_class_called_model_is_taken(code, registry):
    assert add(f"{code}:", registry, Options(trust=True)).manifest.options["class"] == "Model"


@pytest.mark.parametrize("files", ['["../secret"]', '["/etc/passwd"]', '["missing.bin"]', '"weights"', "[1]"])
def test_files_outside_or_missing_are_refused(code, registry, files):
    code.write_text(CODE.replace('["weights/bias.npy"]', files))
    with pytest.raises(SourceInvalid, match="file"):
        add(f"{code}:Model", registry, Options(trust=True))
