"""What a runtime is: a function that loads a package, and the loaded model that answers batches."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from pelton.errors import PackageInvalid
from pelton.packages import Package
from pelton.types import Array, Signature


class LoadedModel(Protocol):
    """A model in memory. `run` may be called from several threads at once. One that would only make the others wait may
    have an attribute `parallel`: how many batches it works on at the same time."""

    @property
    def signature(self) -> Signature:
        """What the loaded file really takes and gives; must agree with the package's manifest."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """One batch: arrays [rows, ...] in the signature's input order -> arrays [rows, ...] in its output order.

        Raises whatever the model raises. The caller checks the row count of what comes back."""

    def close(self) -> None:
        """Gives memory and processes back. Called once, when no run is in progress."""


class RuntimeOptions(msgspec.Struct, frozen=True):
    """What the server decides for all its models. `threads`: per batch; `trust`: user code and pickles may run;
    `cache`: a folder for files that a runtime derives from a package's (empty: none are kept)."""

    threads: int = 1
    trust: bool = False
    cache: str = ""


Loader = Callable[[Package, RuntimeOptions], LoadedModel]

# name in pelton.toml -> module of this folder, imported only when a package asks for it; each has `load`
RUNTIMES: Final = {
    "onnx": "pelton.runtimes.onnx",
    "python": "pelton.runtimes.python",
    "whisper": "pelton.runtimes.whisper",
}


def load(package: Package, options: RuntimeOptions) -> LoadedModel:
    """Loads a package with the runtime that its manifest names. Raises PackageInvalid, Untrusted, ExtraMissing."""
    module = RUNTIMES.get(package.manifest.runtime)
    if module is None:
        raise PackageInvalid(
            f"model {package.name!r}: unknown runtime {package.manifest.runtime!r}; one of {', '.join(RUNTIMES)}"
        )
    loader: Loader = importlib.import_module(module).load
    return loader(package, options)
