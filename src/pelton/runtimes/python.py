"""The runtime for user classes.

    class Model:
        inputs = {"x": "FP32[30]"}           # name: DATATYPE[row shape]; -1 varies; BYTES is text or bytes
        outputs = {"score": "FP32[2]"}
        batch = True                         # predict gets arrays [rows, ...]; False (default): one row at a time

        def setup(self, folder): ...         # optional; the package's folder
        def predict(self, x): ...            # an array; a tuple in the order of outputs; or a dictionary by name

BYTES inputs arrive as object arrays of `bytes` (one row at a time: plain `bytes` for a scalar). With
isolation = "process" arrays of inputs may be written to and kept; with "thread" they belong to the server.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from pelton.errors import ModelFailed, PackageInvalid, Untrusted
from pelton.packages import Package
from pelton.packages.python_source import specs
from pelton.runtimes.contract import LoadedModel, RuntimeOptions
from pelton.runtimes.python_class import UserClass, UserFailed, UserModel, load_class
from pelton.runtimes.python_process import LOG, Limits, ProcessModel, Traces
from pelton.types import Array, Signature

PROCESSES_LIMIT: Final = 256


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options` of pelton.toml.

    `batch`: overrides the class. `isolation`: "process" protects the server from whatever the class does; "thread" runs
    it in the server, without the way to another process and back, and without that protection. `concurrent` (thread
    only): the class may be called by several threads at once. Seconds: `setup_seconds` for import and setup,
    `predict_seconds` for one batch (then its process is ended), `restart_seconds` that a call waits for a new process.
    """

    class_name: str = msgspec.field(name="class", default="Model")
    batch: bool | None = None
    isolation: Literal["process", "thread"] = "process"
    processes: int = 1
    concurrent: bool = False
    setup_seconds: float = 600.0
    predict_seconds: float = 300.0
    restart_seconds: float = 10.0


class ThreadModel:
    """The class in this process. Calls take turns unless `concurrent`."""

    def __init__(self, model: UserModel, name: str, signature: Signature, concurrent: bool) -> None:
        self.signature = signature
        self._model: UserModel | None = model
        self._name = name
        self._log_trace = Traces(name)
        self._turn = None if concurrent else threading.Lock()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        if self._turn is None:
            return self._run(inputs)
        with self._turn:
            return self._run(inputs)

    def _run(self, inputs: Sequence[Array]) -> list[Array]:
        if self._model is None:
            raise ModelFailed(f"model {self._name!r} was unloaded")
        try:
            return self._model.run(inputs)
        except UserFailed as error:
            self._log_trace(error.trace)
            raise ModelFailed(f"model {self._name!r}: {error}") from None
        except ModelFailed as error:
            raise ModelFailed(f"model {self._name!r}: {error}") from None
        except SystemExit as error:
            raise ModelFailed(f"model {self._name!r} called exit({error.code!r})") from None

    def close(self) -> None:
        self._model = None


def load(package: Package, options: RuntimeOptions) -> LoadedModel:
    """Loads the class that the manifest names. Raises Untrusted, and PackageInvalid where it does not start."""
    name = package.name
    if not options.trust:
        raise Untrusted(
            f"model {name!r} runs code of its package ({package.manifest.file}); "
            f"if you trust who wrote it, serve it with: pelton serve --trust {name}"
        )
    own = _options(package)
    package.path(package.manifest.file)  # stays inside the folder
    spec = UserClass(
        name,
        str(package.folder.resolve()),
        package.manifest.file,
        own.class_name,
        package.manifest.signature,
        own.batch,
        alone=own.isolation == "process",
    )
    if own.isolation == "thread":
        user = _load_here(spec)
        _agree(user.declared, spec)
        return ThreadModel(user, name, spec.signature, own.concurrent)
    limits = Limits(own.setup_seconds, own.predict_seconds, own.restart_seconds)
    model = ProcessModel(spec, own.processes, options.threads, limits)
    try:
        _agree(model.declared, spec)
    except PackageInvalid:
        model.close()
        raise
    return model


def _options(package: Package) -> Options:
    where = f"model {package.name!r}: options"
    try:
        own = msgspec.convert(package.manifest.options, Options)
    except msgspec.ValidationError as error:
        raise PackageInvalid(f"{where}: {error}") from None
    if not 1 <= own.processes <= PROCESSES_LIMIT:
        raise PackageInvalid(f"{where}.processes must be 1 to {PROCESSES_LIMIT}, not {own.processes}")
    for key in ("setup_seconds", "predict_seconds", "restart_seconds"):
        if not 0 < getattr(own, key) <= 86400:
            raise PackageInvalid(f"{where}.{key} must be above 0 and at most 86400, not {getattr(own, key)}")
    if own.isolation == "thread" and own.processes != 1:
        raise PackageInvalid(f'{where}: processes = {own.processes} needs isolation = "process"')
    if own.isolation == "process" and own.concurrent:
        raise PackageInvalid(f'{where}: concurrent needs isolation = "thread"; use processes = N here')
    if package.file.suffix != ".py":
        raise PackageInvalid(f"model {package.name!r}: {package.manifest.file!r} is not a Python file (.py)")
    return own


def _load_here(spec: UserClass) -> UserModel:
    try:
        return load_class(spec)
    except UserFailed as error:
        LOG.error("[%s] setup raised\n%s", spec.model, error.trace)
        raise PackageInvalid(f"model {spec.model!r}: {error}") from None


def _agree(declared: dict[str, Any], spec: UserClass) -> None:
    """What the class says of itself must be what pelton.toml says: a changed class with an old manifest is an error."""
    for key, known in (("inputs", spec.signature.inputs), ("outputs", spec.signature.outputs)):
        if key not in declared:
            continue
        found = specs(declared[key], f"model {spec.model!r}: {spec.class_name}.{key}")
        if [(s.name, s.datatype, s.shape) for s in found] != [(s.name, s.datatype, s.shape) for s in known]:
            raise PackageInvalid(
                f"model {spec.model!r}: {spec.class_name}.{key} is {declared[key]!r}, but pelton.toml has "
                + ", ".join(f"{s.name!r} {s.datatype}{list(s.shape)}" for s in known)
            )
