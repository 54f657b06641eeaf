from __future__ import annotations

import json
import pickle

import lightgbm
import numpy as np
import pytest
import xgboost
import yaml
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from pelton.errors import SourceInvalid, Untrusted
from pelton.importers import Options, add
from pelton.runtimes import contract

pytestmark = pytest.mark.filterwarnings("ignore")

X, Y = load_iris(return_X_y=True)


@pytest.fixture
def logged(tmp_path):
    """A folder as MLflow writes it."""

    def write(flavors, **more):
        folder = tmp_path / "my model"
        folder.mkdir(exist_ok=True)
        told = {"artifact_path": "model", "flavors": {**flavors, "python_function": {"loader_module": "m"}}, **more}
        signature = json.dumps([{"type": "double", "name": f"column number {i}"} for i in range(20)])
        (folder / "MLmodel").write_text(yaml.safe_dump({**told, "signature": {"inputs": signature}}))
        return folder

    return write


def test_an_onnx_model_is_read(logged, registry, linear):
    folder = logged({"onnx": {"data": "model.onnx", "onnx_version": "1.17"}})
    (folder / "model.onnx").write_bytes(linear.read_bytes())
    assert add(str(folder), registry, Options()).name == "my-model"


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_boosters_are_read_in_their_own_format(logged, registry, library):
    if library == "lightgbm":
        folder = logged({"lightgbm": {"data": "model.lgb", "model_class": "lightgbm.basic.Booster"}})
        model = lightgbm.LGBMClassifier(n_estimators=10, n_jobs=1, verbose=-1).fit(X, Y)
        model.booster_.save_model(folder / "model.lgb")
    else:
        folder = logged({"xgboost": {"data": "model.ubj", "model_format": "ubj"}})
        model = xgboost.XGBClassifier(n_estimators=10, n_jobs=1).fit(X, Y)
        model.save_model(folder / "model.ubj")
    package = add(str(folder), registry, Options())
    got = contract.load(package, contract.RuntimeOptions()).run([X.astype(np.float32)])[0]
    np.testing.assert_allclose(got, model.predict_proba(X), rtol=1e-3, atol=1e-5)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran')",))


def test_a_pickle_is_not_opened_without_trust(logged, registry):
    folder = logged({"sklearn": {"pickled_model": "model.pkl", "serialization_format": "cloudpickle"}})
    (folder / "model.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(Untrusted, match="--trust"):
        add(str(folder), registry, Options())


def test_a_trusted_pickle_is_converted_with_its_input_example(logged, registry):
    info = {"artifact_path": "input_example.json", "type": "dataframe", "pandas_orient": "split"}
    folder = logged({"sklearn": {"pickled_model": "model.pkl"}}, saved_input_example_info=info)
    (folder / "model.pkl").write_bytes(pickle.dumps(LogisticRegression(max_iter=1000).fit(X, Y)))
    with pytest.raises(SourceInvalid, match=r"input_example\.json"):
        add(str(folder), registry, Options(trust=True))
    names = ["a", "b", "c", "d"]
    (folder / "input_example.json").write_text(json.dumps({"columns": names, "data": X[:9].tolist()}))
    package = add(str(folder), registry, Options(trust=True))
    assert package.manifest.runtime == "onnx"
    assert [column.name for column in package.manifest.preprocess[0].columns] == names
    (folder / "input_example.json").write_text(json.dumps({"inputs": X[:9].tolist()}))
    assert not add(str(folder), registry, Options(trust=True, name="plain")).manifest.preprocess


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no YAML"),
        ("- a", "no mapping"),
        ("flavors: 3", "no flavors"),
        ("flavors: {spark: {}}", "spark"),
        ("flavors: {onnx: {data: ../x.onnx}}", "outside"),
        ("flavors: {onnx: {data: /etc/passwd}}", "outside"),
        ("flavors: {onnx: {data: none.onnx}}", "not there"),
        ("flavors: !!python/object/apply:os.system ['exit 1']", "no YAML"),
    ],
)
def test_an_unusable_mlmodel_is_told(logged, registry, text, message):
    folder = logged({})
    (folder / "MLmodel").write_text(text)
    with pytest.raises(SourceInvalid, match=message):
        add(str(folder), registry, Options())
