"""A fitted scikit-learn, LightGBM or XGBoost model -> ONNX -> a package; refused where the two do not agree.

The only file that imports skl2onnx and onnxmltools (extra "convert"). The libraries of the models themselves are not
imported: whoever has such a model has imported its library.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from pelton.errors import Disagrees, ExtraMissing, InvalidInput, PackageInvalid, SourceInvalid
from pelton.importers import onnx_graph
from pelton.importers.draft import GOLDEN_ROWS, Options, Rows, draft, finish
from pelton.importers.onnx import FILE
from pelton.importers.tables import Frame, frame_of
from pelton.packages import Manifest, Package, golden
from pelton.packages.preprocess import Labels, Postprocess, Value
from pelton.registry import Registry
from pelton.runtimes.onnx import OnnxModel, inspect, open_session
from pelton.types import Array, Signature

ROW_LIMIT: Final = 5_000  # example rows that are compared
OPSET: Final = {"": 17, "ai.onnx.ml": 3}
_BOOSTER_OPSET: Final = 15  # the highest that onnxmltools writes
_NAN_COLUMNS: Final = 64  # of a wide table so many columns are tried with NaN


class Fitted(msgspec.Struct, frozen=True):
    """What an import needs of a model: its kind, its classes (none: a regressor), and how it answers.

    `answer`: a frame -> probabilities [rows, classes], or predictions [rows, outputs]."""

    model: Any
    library: str
    classes: tuple[str, ...]
    answer: Callable[[Frame], Array]


def package(model: Any, example: Any, registry: Registry, options: Options) -> Package:
    """Adds a fitted model. `example`: rows as the model's own `predict` takes them, an array [rows, features] or a
    pandas DataFrame; the more, the better the comparison. `options.name` is needed.

    A DataFrame gives a table: named, typed columns, categories with their values. A classifier answers with
    probabilities and the names of its classes. NaN is accepted where the original accepts it and both agree on it.
    Raises SourceInvalid (no such model, or unusable rows), Disagrees (the first row and both values), ExtraMissing."""
    if not options.name:
        raise InvalidInput("give the model a name: package(model, example=X, name='churn')")
    return package_frame(describe(model), frame_of(example, needs_columns=_reads_columns(model)), registry, options)


def package_frame(fitted: Fitted, frame: Frame, registry: Registry, options: Options) -> Package:
    """The same for rows that are a frame already."""
    with draft() as folder:
        proto = convert(fitted, frame)
        (folder / FILE).write_bytes(proto.SerializeToString())
        signature = _signature(folder / FILE, frame)
        with closing(OnnxModel(open_session(folder / FILE, threads=1), signature)) as converted:
            agree(fitted, converted, frame)
            nan = _reads_nan(fitted, converted, frame)
        inputs = tuple(
            msgspec.structs.replace(spec, nan=nan and spec.type.kind == "float") for spec in signature.inputs
        )
        manifest = Manifest(
            options.name,
            "onnx",
            FILE,
            msgspec.structs.replace(signature, inputs=inputs),
            source=f"{type(fitted.model).__module__}.{type(fitted.model).__qualname__}",
            preprocess=frame.blocks,
            postprocess=_postprocess(signature, fitted.classes),
            example=frame.example(),
        )
        return finish(folder, manifest, frame.head(GOLDEN_ROWS).rows, registry, options)


def describe(model: Any) -> Fitted:
    """Which library a model belongs to and how it answers. Raises SourceInvalid where it is none of the three."""
    library = type(model).__module__.partition(".")[0]
    if type(model).__name__ == "Booster" and library in ("lightgbm", "xgboost"):
        return _booster(model, library)
    if library not in ("sklearn", "lightgbm", "xgboost"):
        raise SourceInvalid(
            f"{type(model).__module__}.{type(model).__qualname__} is no scikit-learn, LightGBM or XGBoost model; "
            "export it to ONNX, or serve it as a Python class"
        )
    members = dir(model)
    if "predict" not in members and "predict_proba" not in members:
        raise SourceInvalid(f"{type(model).__name__} has no predict; give a whole pipeline whose last step predicts")
    if "classes_" in members:
        if "predict_proba" not in members:
            raise SourceInvalid(f"{type(model).__name__} gives no probabilities; use probability=True or calibrate it")
        classes = tuple(str(name) for name in np.asarray(model.classes_).tolist())
        return Fitted(model, library, classes, lambda frame: np.asarray(model.predict_proba(frame.original)))
    return Fitted(model, library, (), lambda frame: _column(model.predict(frame.original)))


def _booster(model: Any, library: str) -> Fitted:
    """A model in the library's own format: what it predicts is told by its objective."""
    if library == "lightgbm":
        objective = str(model.params.get("objective", "")) or _line(model.model_to_string(num_iteration=1), "objective")

        def raw(frame: Frame) -> Any:
            return model.predict(frame.original)
    else:
        config = msgspec.json.decode(model.save_config())["learner"]
        objective = config["objective"]["name"]
        matrix = importlib.import_module("xgboost").DMatrix

        def raw(frame: Frame) -> Any:
            return model.predict(matrix(frame.original, feature_names=model.feature_names))

    binary = re.match(r"binary(:logistic)?\b", objective) is not None
    several = re.match(r"multi", objective) is not None
    if not binary and not several:
        return Fitted(model, library, (), lambda frame: _column(raw(frame)))

    def answer(frame: Frame) -> Array:
        scores = np.asarray(raw(frame), np.float64)
        return np.stack([1 - scores, scores], axis=1) if scores.ndim == 1 else scores

    count = 2 if binary else int(_classes_of(model, library))
    return Fitted(model, library, tuple(str(i) for i in range(count)), answer)


def _classes_of(model: Any, library: str) -> int:
    if library == "lightgbm":
        return int(_line(model.model_to_string(num_iteration=1), "num_class"))
    return int(msgspec.json.decode(model.save_config())["learner"]["learner_model_param"]["num_class"])


def _line(text: str, key: str) -> str:
    match = re.search(rf"^{key}=(.*)$", text, re.MULTILINE)
    return match[1] if match else ""


def _column(predictions: Any) -> Array:
    array = np.asarray(predictions)
    return array.reshape(len(array), -1)


def _reads_columns(model: Any) -> bool:
    """Whether a pipeline picks columns by name, so that ONNX needs one input each."""
    steps: Sequence[Any] = [step for _, step in model.steps] if type(model).__name__ == "Pipeline" else [model]
    return any(type(step).__name__ == "ColumnTransformer" for step in steps)


def convert(fitted: Fitted, frame: Frame) -> Any:
    """The ONNX model, with one output, `probabilities` or `prediction`. Raises SourceInvalid where no converter exists."""
    try:
        with _quiet():
            proto = _CONVERTERS[fitted.library](fitted, frame)
    except ImportError as error:
        raise ExtraMissing(f"converting a {fitted.library} model ({error.name} is missing)", "convert") from None
    except Exception as error:  # noqa: BLE001 - converters raise whatever they like
        raise SourceInvalid(
            f"{type(fitted.model).__name__} cannot be converted to ONNX: {_first_line(error)}"
        ) from None
    booster = _lightgbm_of(fitted.model)
    if booster is not None:
        onnx_graph.round_thresholds_down(proto, lightgbm_splits(booster))
    return onnx_graph.keep_one_output(
        proto, 1 if fitted.classes else 0, "probabilities" if fitted.classes else "prediction"
    )


def _lightgbm_of(model: Any) -> Any:
    """The booster of a LightGBM model, also of one that ends a pipeline."""
    last = model.steps[-1][1] if type(model).__name__ == "Pipeline" else model
    if type(last).__module__.partition(".")[0] != "lightgbm":
        return None
    return last if type(last).__name__ == "Booster" else last.booster_


def lightgbm_splits(booster: Any) -> list[tuple[int, float]]:
    """(feature, threshold) of every split of its trees."""
    text = booster.model_to_string()
    features = re.findall(r"^split_feature=(.*)$", text, re.MULTILINE)
    thresholds = re.findall(r"^threshold=(.*)$", text, re.MULTILINE)
    return [
        (int(feature), float(threshold))
        for tree in zip(features, thresholds, strict=True)
        for feature, threshold in zip(tree[0].split(), tree[1].split(), strict=True)
    ]


def _from_sklearn(fitted: Fitted, frame: Frame) -> Any:
    skl2onnx = importlib.import_module("skl2onnx")
    _register_boosters(skl2onnx)
    last = fitted.model.steps[-1][1] if type(fitted.model).__name__ == "Pipeline" else fitted.model
    options = {id(last): {"zipmap": False}} if fitted.classes else None
    types = _types(importlib.import_module("skl2onnx.common.data_types"), frame)
    return skl2onnx.convert_sklearn(fitted.model, initial_types=types, options=options, target_opset=OPSET)


def _from_lightgbm(fitted: Fitted, frame: Frame) -> Any:
    tools = importlib.import_module("onnxmltools")
    types = _types(importlib.import_module("onnxmltools.convert.common.data_types"), frame)
    return tools.convert_lightgbm(fitted.model, initial_types=types, zipmap=False, target_opset=_BOOSTER_OPSET)


def _from_xgboost(fitted: Fitted, frame: Frame) -> Any:
    tools = importlib.import_module("onnxmltools")
    types = _types(importlib.import_module("onnxmltools.convert.common.data_types"), frame)
    return tools.convert_xgboost(_with_plain_names(fitted.model), initial_types=types, target_opset=_BOOSTER_OPSET)


_CONVERTERS: Final[Mapping[str, Callable[[Fitted, Frame], Any]]] = {
    "sklearn": _from_sklearn,
    "lightgbm": _from_lightgbm,
    "xgboost": _from_xgboost,
}


def _with_plain_names(model: Any) -> Any:
    """The converter wants columns called f0, f1, ...; a copy is renamed, the user's model stays as it is."""
    booster = model if type(model).__name__ == "Booster" else model.get_booster()
    if booster.feature_names is None:
        return model
    twin = importlib.import_module("copy").deepcopy(model)
    (twin if twin.__class__.__name__ == "Booster" else twin.get_booster()).feature_names = None
    return twin


def _register_boosters(skl2onnx: Any) -> None:
    """Lets scikit-learn pipelines end in LightGBM or XGBoost models, where those are installed."""
    shapes = importlib.import_module("skl2onnx.common.shape_calculator")
    for library, kinds in (("lightgbm", "LGBM"), ("xgboost", "XGB")):
        try:
            module = importlib.import_module(library)
            place = f"onnxmltools.convert.{library}.operator_converters"
            file = "LightGbm" if library == "lightgbm" else "XGBoost"
            converter = getattr(importlib.import_module(f"{place}.{file}"), f"convert_{library}")
        except ImportError:
            continue
        for role, shape in (
            ("Classifier", shapes.calculate_linear_classifier_output_shapes),
            ("Regressor", shapes.calculate_linear_regressor_output_shapes),
        ):
            kind = getattr(module, f"{kinds}{role}")
            options = {"nocl": [True, False], "zipmap": [True, False, "columns"]} if role == "Classifier" else None
            skl2onnx.update_registered_converter(kind, f"{kinds}{role}", shape, converter, options=options)


def _types(kinds: Any, frame: Frame) -> list[tuple[str, Any]]:
    of = {"FP32": kinds.FloatTensorType, "INT64": kinds.Int64TensorType, "BYTES": kinds.StringTensorType}
    return [(spec.name, of[spec.datatype]([None, *spec.shape])) for spec in frame.specs]


def _signature(file: Path, frame: Frame) -> Signature:
    """The frame's inputs; the one output, whose shape a row tells."""
    session = open_session(file, threads=1)
    found, _ = inspect(session)
    unknown = {spec.name for spec in found.inputs} ^ {spec.name for spec in frame.specs}
    if unknown:
        raise PackageInvalid(f"the converted model and the example differ in the inputs {sorted(unknown)}")
    signature = Signature(frame.specs, found.outputs)
    (row,) = OnnxModel(session, signature).run(_arrays(signature, frame.head(1).rows))
    output = msgspec.structs.replace(found.outputs[0], shape=row.shape[1:])
    return Signature(frame.specs, (output,))


def _arrays(signature: Signature, rows: Rows) -> list[Array]:
    return [rows[spec.name] for spec in signature.inputs]


def agree(fitted: Fitted, converted: OnnxModel, frame: Frame) -> None:
    """Raises Disagrees, naming the row, the class and both values, where the two answer differently.

    Allowed: 0.1 % of the value, plus 1e-5 of the largest answer: float32 against float64."""
    frame = frame.head(ROW_LIMIT)
    with _quiet():
        expected = np.asarray(fitted.answer(frame), np.float64)
    name = converted.signature.outputs[0].name
    (got,) = converted.run(_arrays(converted.signature, frame.rows))
    got = got.reshape(len(got), -1)
    scale = float(np.abs(expected).max(initial=1.0, where=np.isfinite(expected)))
    try:
        golden.compare({name: expected}, {name: got}, rtol=1e-3, atol=1e-5 * scale)
    except Disagrees as error:
        raise Disagrees(
            f"the converted model does not agree with {type(fitted.model).__name__}: {error}. Serve it as a Python class "
            "instead, or train on float32 values"
        ) from None


def _reads_nan(fitted: Fitted, converted: OnnxModel, frame: Frame) -> bool:
    """Whether the original takes NaN in its numeric columns, and the converted model answers the same then."""
    holes = frame.with_holes(_NAN_COLUMNS)
    if holes is None:
        return False
    try:
        agree(fitted, converted, holes)
    except (ValueError, TypeError):  # the original refuses NaN
        return False
    except Disagrees:
        return False
    return True


def _postprocess(signature: Signature, classes: tuple[str, ...]) -> tuple[Postprocess, ...]:
    (output,) = signature.outputs
    if classes:
        return (Labels(output.name, labels=classes, top=min(len(classes), 5)),)
    return (Value(output.name, output.name, index=0),) if output.shape == (1,) else ()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Converters and models warn about their own insides; the comparison is what counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
