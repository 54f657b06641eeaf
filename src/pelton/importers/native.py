"""LightGBM and XGBoost models in their libraries' own formats, which are no pickles, -> ONNX -> a package."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from pelton.errors import ExtraMissing, SourceInvalid
from pelton.importers import convert, examples
from pelton.importers.draft import SEED, Options, name_from
from pelton.importers.tables import MATRIX, frame_of, named
from pelton.packages import Package
from pelton.registry import Registry
from pelton.types import Array, Signature, TensorSpec

FILE_LIMIT: Final = 2 * 1024**3
_ROWS: Final = 256
_MADE_UP: Final = re.compile(r"(Column_\d+|f\d+)")  # what the libraries call columns without names


def add(source: str, registry: Registry, options: Options) -> Package:
    """Adds model.txt (LightGBM) or model.json, model.ubj (XGBoost). Raises SourceInvalid, ExtraMissing, Disagrees.

    Without `options.example` the models are compared on made-up rows around their own thresholds."""
    path = Path(source)
    if path.stat().st_size > FILE_LIMIT:
        raise SourceInvalid(f"{path} is larger than {FILE_LIMIT} bytes")
    return add_booster(open_booster(path), path.stem, registry, options)


def add_booster(booster: Any, name: str, registry: Registry, options: Options) -> Package:
    names = _names(booster)
    if options.example is None:
        rows = _around_thresholds(booster, len(names))
    else:
        specs = (TensorSpec(MATRIX, "FP32", (len(names),), nan=True),)
        rows = examples.read(options.example, Signature(specs, specs))[MATRIX]
    frame = frame_of(rows, needs_columns=False)
    if not all(_MADE_UP.fullmatch(name) for name in names):
        frame = named(frame, names)
    options = msgspec.structs.replace(options, name=options.name or name_from(name))
    return convert.package_frame(convert.describe(booster), frame, registry, options)


def open_booster(path: Path) -> Any:
    """Reads the first bytes to tell whose it is. Raises SourceInvalid."""
    head = path.read_bytes()[:4096]
    library = "lightgbm" if head.startswith(b"tree\n") else "xgboost" if b"learner" in head else ""
    if not library:
        raise SourceInvalid(f"{path} is neither a LightGBM nor an XGBoost model")
    try:
        module = importlib.import_module(library)
    except ImportError:
        raise ExtraMissing(f"reading a {library} model", "convert") from None
    try:
        return module.Booster(model_file=str(path))
    except Exception as error:  # noqa: BLE001 - each library has classes of its own
        raise SourceInvalid(f"{path}: {library} cannot read it: {str(error).splitlines()[0][:300]}") from None


def _names(booster: Any) -> list[str]:
    if type(booster).__module__.startswith("lightgbm"):
        return [str(name) for name in booster.feature_name()]
    return [str(name) for name in booster.feature_names or [f"f{i}" for i in range(booster.num_features())]]


def _around_thresholds(booster: Any, columns: int) -> Array:
    """Rows on both sides of the thresholds that the trees ask about, the same in every run."""
    found: dict[int, set[float]] = {}
    if type(booster).__module__.startswith("lightgbm"):
        pairs = convert.lightgbm_splits(booster)
    else:
        places = {name: i for i, name in enumerate(_names(booster))}
        dump = "\n".join(booster.get_dump())
        pairs = [
            (places[name], float(value))
            for name, value in re.findall(r"\[([^\[\]<]+)<([^\[\]]+)\]", dump)
            if name in places
        ]
    for column, value in pairs:
        if np.isfinite(value):
            found.setdefault(column, set()).add(value)
    random = np.random.default_rng(SEED)
    rows = random.standard_normal((_ROWS, columns))
    for column, values in found.items():
        known = np.sort(np.array(list(values)))
        spread = known.std() or max(abs(known[0]) * 0.1, 1e-3)
        rows[:, column] = random.choice(known, _ROWS) + spread * random.standard_normal(_ROWS)
    return rows
