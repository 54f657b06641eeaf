from __future__ import annotations

import warnings

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from pelton.errors import Disagrees, InvalidInput, SourceInvalid
from pelton.importers import Options, add
from pelton.importers.convert import agree, describe, package
from pelton.importers.tables import frame_of
from pelton.runtimes import contract
from pelton.transforms import compile_finish, compile_prepare
from pelton.types import TensorSpec

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

CANCER = load_breast_cancer(as_frame=True)
SMALL = {"n_estimators": 20, "n_jobs": 1}


def fit(model, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(x, y)


def answers(added, rows):
    """What callers get, through the declared steps."""
    model = contract.load(added, contract.RuntimeOptions())
    prepared = compile_prepare(added)({name: [row[name] for row in rows] for name in rows[0]})
    return compile_finish(added)(model.run(prepared.inputs), prepared.counts)


def test_a_lightgbm_classifier_answers_held_out_rows_as_before(registry):
    train, test, labels, truth = train_test_split(CANCER.data, CANCER.target, random_state=0)
    names = np.array(["malignant", "benign"])
    model = fit(lightgbm.LGBMClassifier(**SMALL, verbose=-1), train, names[labels])
    added = package(model, test, registry, Options(name="cancer", p99_ms=5))
    assert [column.name for column in added.manifest.preprocess[0].columns] == list(CANCER.data.columns)
    assert added.manifest.postprocess[0].labels == ("benign", "malignant")
    assert added.manifest.signature.outputs == (TensorSpec("probabilities", "FP32", (2,)),)
    assert added.manifest.signature.inputs[0].nan
    got = answers(added, test.to_dict("records"))
    assert [row["labels"][0]["label"] for row in got] == model.predict(test).tolist()
    expected = model.predict_proba(test).max(axis=1)
    np.testing.assert_allclose([row["labels"][0]["score"] for row in got], expected, rtol=1e-3)
    assert np.mean([row["labels"][0]["label"] == name for row, name in zip(got, names[truth], strict=True)]) > 0.93


def test_missing_values_go_where_the_original_sends_them(registry):
    x = CANCER.data.to_numpy().copy()
    x[::5, ::3] = np.nan
    model = fit(lightgbm.LGBMClassifier(**SMALL, verbose=-1), x, CANCER.target)
    added = package(model, x, registry, Options(name="holes"))
    got = contract.load(added, contract.RuntimeOptions()).run([x.astype(np.float32)])[0]
    np.testing.assert_allclose(got, model.predict_proba(x.astype(np.float32)), rtol=1e-3, atol=1e-5)


def test_categories_travel_by_name(registry):
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": random.normal(40, 10, 400),
            "plan": pd.Categorical(random.choice(["free", "pro", "team"], 400)),
            "calls": random.integers(0, 9, 400),
            "active": random.random(400) > 0.5,
        }
    )
    leaves = (frame["plan"] == "pro") & (frame["age"] > 40)
    model = fit(lightgbm.LGBMClassifier(**SMALL, verbose=-1), frame, np.where(leaves, "leave", "stay"))
    added = package(model, frame, registry, Options(name="churn"))
    columns = added.manifest.preprocess[0].columns
    assert [(column.type, column.values) for column in columns] == [
        ("number", ()),
        ("string", ("free", "pro", "team")),
        ("integer", ()),
        ("boolean", ()),
    ]
    row = {"age": 60.0, "plan": "pro", "calls": 3, "active": True}
    assert answers(added, [row])[0]["labels"][0]["label"] == "leave"
    assert answers(added, [{**row, "plan": "free"}])[0]["labels"][0]["label"] == "stay"
    with pytest.raises(InvalidInput, match="plan"):
        answers(added, [{**row, "plan": "gold"}])


def test_a_pipeline_that_picks_columns_takes_texts(registry):
    frame = pd.DataFrame({"age": np.arange(60.0), "city": ["Ulm", "Bonn", "Kiel"] * 20})
    pick = ColumnTransformer(
        [("n", StandardScaler(), ["age"]), ("c", OneHotEncoder(handle_unknown="ignore"), ["city"])]
    )
    model = fit(Pipeline([("pick", pick), ("model", LogisticRegression())]), frame, frame["city"] == "Ulm")
    added = package(model, frame, registry, Options(name="city"))
    assert [spec.datatype for spec in added.manifest.signature.inputs] == ["FP32", "BYTES"]
    assert answers(added, [{"age": 1.0, "city": "Ulm"}])[0]["labels"][0]["label"] == "True"
    assert answers(added, [{"age": 1.0, "city": "Rome"}])[0]["labels"][0]["label"] == "False"


def test_a_scikit_learn_model_refuses_nan_as_before(registry):
    x, y = load_iris(return_X_y=True)
    model = fit(make_pipeline(StandardScaler(), LogisticRegression()), x, y)
    added = package(model, x, registry, Options(name="iris"))
    assert not added.manifest.signature.inputs[0].nan
    assert added.manifest.signature.outputs[0].shape == (3,)
    assert not added.manifest.preprocess


def test_xgboost_with_named_columns_and_several_classes(registry):
    iris = load_iris(as_frame=True)
    model = fit(xgboost.XGBClassifier(**SMALL), iris.data, iris.target)
    before = model.get_booster().feature_names
    added = package(model, iris.data, registry, Options(name="iris"))
    assert model.get_booster().feature_names == before
    got = contract.load(added, contract.RuntimeOptions()).run([iris.data.to_numpy(np.float32)])[0]
    np.testing.assert_allclose(got, model.predict_proba(iris.data), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_a_regressor_in_its_own_format_is_read(registry, tmp_path, library):
    data = load_diabetes(as_frame=True)
    if library == "lightgbm":
        model = fit(lightgbm.LGBMRegressor(**SMALL, verbose=-1), data.data, data.target)
        model.booster_.save_model(tmp_path / "sugar.txt")
        path = tmp_path / "sugar.txt"
    else:
        model = fit(xgboost.XGBRegressor(**SMALL), data.data, data.target)
        model.save_model(tmp_path / "sugar.ubj")
        path = tmp_path / "sugar.ubj"
    added = add(str(path), registry, Options())
    assert added.name == "sugar"
    got = answers(added, data.data.astype(np.float32).to_dict("records"))
    np.testing.assert_allclose([row["prediction"] for row in got], model.predict(data.data), rtol=2e-3)


def test_a_model_that_answers_otherwise_is_refused(registry):
    x, y = load_iris(return_X_y=True)
    one = fit(LogisticRegression(max_iter=1000), x, y)
    other = fit(LogisticRegression(max_iter=1000, C=0.01), x, y)
    added = package(one, x, registry, Options(name="iris"))
    converted = contract.load(added, contract.RuntimeOptions())
    agree(describe(one), converted, frame_of(x, needs_columns=False))
    with pytest.raises(Disagrees, match=r"does not agree with LogisticRegression: the output 'probabilities' at \["):
        agree(describe(other), converted, frame_of(x, needs_columns=False))


def test_nothing_is_added_where_original_and_conversion_differ(registry):
    x, y = load_diabetes(return_X_y=True)
    model = fit(lightgbm.LGBMRegressor(**SMALL, linear_tree=True, verbose=-1), x, y)  # the converter drops the slopes
    with pytest.raises(Disagrees, match="does not agree with LGBMRegressor"):
        package(model, x, registry, Options(name="sugar"))
    assert registry.models() == []


def test_thresholds_between_two_neighbours_in_float32_stay_exact(registry):
    x = (1e8 + 8 * np.arange(64.0)).reshape(-1, 1)
    model = fit(
        lightgbm.LGBMClassifier(n_estimators=5, min_child_samples=1, min_data_in_bin=1, verbose=-1), x, x[:, 0] % 3
    )
    added = package(model, x, registry, Options(name="exact"))
    got = contract.load(added, contract.RuntimeOptions()).run([x.astype(np.float32)])[0]
    np.testing.assert_allclose(got, model.predict_proba(x), rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (object(), np.ones((3, 2)), "no scikit-learn, LightGBM or XGBoost"),
        (SVC(), np.ones((3, 2)), "probability=True"),
        (StandardScaler(), np.ones((3, 2)), "no predict"),
        (LogisticRegression(), np.ones(3), "rows, features"),
        (LogisticRegression(), [["a"]], "no array of numbers"),
        (LogisticRegression(), pd.DataFrame({"x": []}), "no rows"),
        (LogisticRegression(), pd.DataFrame({"x": [object()]}), "'x'"),
    ],
)
def test_unusable_models_and_examples_are_told(registry, model, example, message):
    if isinstance(model, SVC):
        fit(model, *load_iris(return_X_y=True))
    with pytest.raises(SourceInvalid, match=message):
        package(model, example, registry, Options(name="m"))


def test_a_name_is_needed(registry):
    with pytest.raises(InvalidInput, match="name="):
        package(LogisticRegression(), np.ones((2, 2)), registry, Options())
