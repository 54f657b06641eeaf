"""A package made of declarations alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pelton.packages import Manifest, Package
from pelton.packages.preprocess import Postprocess, Preprocess
from pelton.types import Signature, TensorSpec

Make = Callable[..., Package]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def package(
        inputs: Sequence[TensorSpec] = (TensorSpec("x", "FP32", ()),),
        preprocess: Sequence[Preprocess] = (),
        outputs: Sequence[TensorSpec] = (TensorSpec("y", "FP32", ()),),
        postprocess: Sequence[Postprocess] = (),
        files: dict[str, str] | None = None,
    ) -> Package:
        for name, text in (files or {}).items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        signature = Signature(tuple(inputs), tuple(outputs))
        manifest = Manifest(
            "m", "onnx", "m.onnx", signature, preprocess=tuple(preprocess), postprocess=tuple(postprocess)
        )
        return Package(tmp_path, manifest)

    return package
