"""What `import pelton` offers in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pelton import settings
from pelton.importers import Options
from pelton.importers.convert import package as convert
from pelton.importers.draft import name_from
from pelton.packages import Package
from pelton.registry import Registry


def package(
    model: Any,
    *,
    example: Any,
    name: str = "",
    p99_ms: float | None = None,
    objective: Literal["latency", "balanced", "cost"] | None = None,
    max_rows: int | None = None,
    home: str | Path | None = None,
) -> Package:
    """Makes a fitted scikit-learn, LightGBM or XGBoost model servable: `pelton serve NAME`.

    `example` holds rows as the model's own `predict` takes them, an array [rows, features] or a pandas DataFrame; the
    model is converted to ONNX and refused (Disagrees) if it does not answer like the original on them. `name` defaults
    to the name of the model's class, `home` to the folder that the command line uses."""
    options = Options(
        name=name or name_from(type(model).__name__.lower()), p99_ms=p99_ms, objective=objective, max_rows=max_rows
    )
    folder = settings.load({"home": str(home) if home is not None else None}).home_path
    return convert(model, example, Registry(folder), options)
