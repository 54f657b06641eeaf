"""A loaded model of tensors: what its lane runs, batch by batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pelton.errors import InvalidInput, ModelFailed, PeltonError
from pelton.packages import Package, golden
from pelton.replicas import lengths
from pelton.runtimes.contract import LoadedModel, RuntimeOptions
from pelton.runtimes.contract import load as load_runtime
from pelton.scheduling import LatencyModel
from pelton.scheduling.scheduler import ANY
from pelton.transforms import Finish, Prepare, compile_finish, compile_prepare
from pelton.types import Array, Batch, Call, Fields, Outcome, Signature, TensorSpec

log = logging.getLogger(__name__)

DEFAULT_TARGET = 0.2  # seconds, where the package states none
PROFILE_SECONDS = 0.25  # spent on measuring S(b) while a model loads
SAMPLE_BYTES = 16 * 1024 * 1024
ALONE_FAILED = 4  # calls that fail one by one, none answered, before the model itself is suspected
PROFILE_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class Replica:
    """One loaded version. `run` is what its lane calls, on the loop or in a thread."""

    def __init__(self, package: Package, model: LoadedModel, clock: Callable[[], float]) -> None:
        self.package = package
        self.name = package.name
        self.version = package.version
        self.signature: Signature = package.manifest.signature
        self.prepare: Prepare = compile_prepare(package)
        self.finish: Finish = compile_finish(package)
        self.max_rows = package.manifest.batching.max_rows if self.signature.batched else 1
        self.loaded_at = 0.0
        self._model = model
        self._clock = clock
        self.varies = any(not spec.fixed and spec.pad is None for spec in self.signature.inputs)
        self._padded = any(spec.pad is not None for spec in self.signature.inputs)
        self.ragged = lengths.ragged(self.signature)  # the input whose width is that of the call's longest row
        self.parallel: int = getattr(model, "parallel", ANY)  # batches that the model works on at the same time
        self._trimmed = self.ragged is not None and any(not spec.fixed for spec in self.signature.outputs)

    def run(self, batch: Batch) -> list[Outcome]:
        """One outcome per call. A call whose rows make the model raise fails alone."""
        begin = self._clock()
        try:
            outcomes = self._run_together(batch.calls)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the boundary of a batch: user models raise anything
            outcomes = self._bisect(batch.calls, self._failure(error))
        batch.run_seconds = self._clock() - begin
        return outcomes

    def close(self) -> None:
        self._model.close()

    def ask(self, fields: Fields) -> list[dict[str, Any]]:
        """Answers outside of any server: one value per instance in every field -> one object per instance."""
        prepared = self.prepare(fields)
        inputs = prepared.inputs if self.signature.batched else [array[0] for array in prepared.inputs]
        rows = len(prepared.inputs[0])
        step = max(1, self.max_rows)
        parts = [
            self._checked(
                [array[i : i + step] for array in inputs] if self.signature.batched else inputs, min(step, rows - i)
            )
            for i in range(0, rows, step)
        ]
        outputs = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]
        return self.finish(outputs, prepared.counts)

    def profile(self) -> LatencyModel:
        """Measures S(b), growing the batch until the time for it is used up; the rest is learned from load.

        On recorded rows where the package has some, else on random numbers: a tree is twice as fast on zeros.

        Raises ModelFailed when the model cannot answer one row, and then nothing should serve it.
        """
        if self.ragged is not None:
            return lengths.profile(self.package, self._recorded(), self._checked, self._clock, PROFILE_SECONDS)
        points: list[tuple[int, float]] = []
        samples = self._samples()
        end = self._clock() + PROFILE_SECONDS
        for rows in PROFILE_SIZES:
            if (
                (rows > 1 and not self.signature.batched)
                or rows > self.max_rows
                or (points and self._clock() + 2 * points[-1][1] > end)
            ):
                break
            self._checked(_rows(samples, 0, rows, self.signature.batched), rows)
            seconds = []
            for turn in range(1, 11):
                inputs = _rows(samples, turn * rows, rows, self.signature.batched)
                begin = self._clock()
                self._checked(inputs, rows)
                seconds.append(self._clock() - begin)
                if sum(seconds) > PROFILE_SECONDS / 16 and len(seconds) >= 2:
                    break
            points.append((rows, sorted(seconds)[len(seconds) // 2]))
        return LatencyModel(points)

    def check_golden(self) -> int:
        """Asks the recorded requests; returns how many. Raises Disagrees when an answer is another one."""
        return golden.check(self.package, self._model.run)

    def _samples(self) -> list[Array]:
        """Many different rows to measure on, one array per input. Recorded rows tell how real numbers are spread."""
        random = np.random.default_rng(0)
        recorded = self._recorded()
        return [
            _sample(spec, self.signature.batched, recorded.get(spec.name), random) for spec in self.signature.inputs
        ]

    def _recorded(self) -> dict[str, Array]:
        """The inputs of the golden requests whose shapes allow to join them."""
        if self.package.manifest.golden is None:
            return {}
        requests = golden.read(self.package.path(self.package.manifest.golden.file))
        if not requests or not self.signature.batched:
            return requests[0].inputs if requests else {}
        first = requests[0].inputs
        same = [r.inputs for r in requests if all(r.inputs[n].shape[1:] == a.shape[1:] for n, a in first.items())]
        return {name: np.concatenate([one[name] for one in same]) for name in first}

    def _bisect(self, calls: Sequence[Call], failure: PeltonError) -> list[Outcome]:
        """The model raised `failure` for these calls together: halves them until the guilty stand alone.

        A model that fails for everyone would be run twice per call. So once several calls failed one by one and none
        was answered, the last call is asked; when it fails as well, so do all that were not asked.
        """
        outcomes: list[Outcome] = [failure] * len(calls)
        groups = [] if len(calls) == 1 else _halves(0, len(calls))
        alone, answered, asked = 0, False, False
        while groups:
            start, stop = groups.pop()
            if alone >= ALONE_FAILED and not answered and not asked:
                groups.append((start, stop))
                start, stop = len(calls) - 1, len(calls)
                asked = True
            try:
                outcomes[start:stop] = self._run_together(calls[start:stop])
                answered = True
            except (Exception, SystemExit) as error:  # noqa: BLE001 - as in `run`
                failure = self._failure(error)
                outcomes[start:stop] = [failure] * (stop - start)
                if stop - start > 1:
                    groups += _halves(start, stop)
                else:
                    alone += 1
            if asked and not answered:
                break
        failed = sum([isinstance(outcome, PeltonError) for outcome in outcomes])
        log.warning("model %s: %d of %d calls of a batch failed: %s", self.name, failed, len(calls), failure)
        return outcomes

    def _failure(self, error: BaseException) -> PeltonError:
        """What the callers are told of what the model raised."""
        if isinstance(error, PeltonError):
            return error
        if isinstance(error, MemoryError):
            return ModelFailed(f"model {self.name!r}: out of memory")
        return ModelFailed(f"model {self.name!r} failed: {type(error).__name__}: {str(error)[:500]}")

    def _run_together(self, calls: Sequence[Call]) -> list[Outcome]:
        if len(calls) == 1:
            return [self._checked(calls[0].inputs, calls[0].rows)]
        rows = sum([call.rows for call in calls])
        outputs = self._checked(self._joined(calls), rows)
        if self._trimmed:
            return self._without_filling(_split(outputs, calls), calls)
        if rows == len(calls):
            if len(outputs) == 1:
                return [[row] for row in outputs[0][:, None]]
            return [list(row) for row in zip(*(output[:, None] for output in outputs), strict=True)]
        return _split(outputs, calls)

    def _without_filling(self, outcomes: list[Outcome], calls: Sequence[Call]) -> list[Outcome]:
        """Outputs with a row for each token: what was filled up for the company is cut off again."""
        place = self.ragged or 0
        longest = max([call.inputs[place].shape[1] for call in calls])
        cut: list[Outcome] = []
        for outcome, call in zip(outcomes, calls, strict=True):
            own = call.inputs[place].shape[1]
            cut.append(
                [
                    output[:, :own] if spec.shape[:1] == (-1,) and output.shape[1] == longest else output
                    for spec, output in zip(self.signature.outputs, outcome, strict=True)
                ]
                if isinstance(outcome, list) and own < longest
                else outcome
            )
        return cut

    def _joined(self, calls: Sequence[Call]) -> list[Array]:
        count = len(self.signature.inputs)
        if not self._padded:
            return [np.concatenate([call.inputs[i] for call in calls]) for i in range(count)]
        return [join_padded([call.inputs[i] for call in calls], spec) for i, spec in enumerate(self.signature.inputs)]

    def _checked(self, inputs: Sequence[Array], rows: int) -> list[Array]:
        """The model's answer, with one row per row asked."""
        outputs = self._model.run(inputs)
        specs = self.signature.outputs
        if not isinstance(outputs, list) or len(outputs) != len(specs):
            given = len(outputs) if isinstance(outputs, (list, tuple)) else type(outputs).__name__
            raise ModelFailed(f"model {self.name!r}: expected a list of {len(specs)} outputs, got {given}")
        if self.signature.batched:
            for spec, output in zip(specs, outputs, strict=True):
                if output.shape[:1] != (rows,):
                    raise ModelFailed(
                        f"model {self.name!r}: output {spec.name!r} has the shape {output.shape} for {rows} rows"
                    )
        return outputs


def _split(outputs: Sequence[Array], calls: Sequence[Call]) -> list[Outcome]:
    """Each call's own rows."""
    outcomes: list[Outcome] = []
    start = 0
    for call in calls:
        stop = start + call.rows
        outcomes.append([output[start:stop] for output in outputs])
        start = stop
    return outcomes


def _halves(start: int, stop: int) -> list[tuple[int, int]]:
    """Both halves of a range, the first one last: it is taken first."""
    middle = (start + stop) // 2
    return [(middle, stop), (start, middle)]


def load(package: Package, options: RuntimeOptions, clock: Callable[[], float]) -> Replica:
    """Loads a package into memory; slow, meant for a thread. Raises PackageInvalid, Untrusted, ExtraMissing."""
    return Replica(package, load_runtime(package, options), clock)


def target_seconds(package: Package, latency: LatencyModel) -> float:
    """The latency target: what the package states, or 200 ms, or 4 times one row where the model is slower than that.

    A stated target that one row alone cannot meet is widened to 1.5 times that row: refusing everything helps nobody.
    """
    alone = latency.predict(1)
    stated = package.manifest.slo.p99_ms
    if stated is None:
        return max(DEFAULT_TARGET, 4.0 * alone)
    target = stated / 1e3
    if target < 1.5 * alone:
        log.warning(
            "model %s: one row alone takes %.1f ms, so the stated target of %.1f ms cannot hold",
            package.name,
            alone * 1e3,
            stated,
        )
        return 1.5 * alone
    return target


def bucket(signature: Signature, inputs: Sequence[Array]) -> object:
    """What must be equal for two calls to share a batch: shapes of the rows, where they may vary and are not padded."""
    key = [
        array.shape[1:]
        for spec, array in zip(signature.inputs, inputs, strict=True)
        if not spec.fixed and spec.pad is None
    ]
    return tuple(key) if key else None


def join_padded(arrays: Sequence[Array], spec: TensorSpec) -> Array:
    """Rows of different shapes, filled up to the longest in every dimension with the input's pad value."""
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) == 1 or spec.pad is None:
        return np.concatenate(arrays)
    if len({len(shape) for shape in shapes}) != 1:
        raise InvalidInput(f"input {spec.name!r}: rows with different numbers of dimensions")
    longest = tuple(max(dims) for dims in zip(*shapes, strict=True))
    joined = np.full((sum(len(array) for array in arrays), *longest), spec.pad, arrays[0].dtype)
    start = 0
    for array in arrays:
        place = (slice(start, start + len(array)), *(slice(dim) for dim in array.shape[1:]))
        joined[place] = array
        start += len(array)
    return joined


def _rows(samples: Sequence[Array], start: int, rows: int, batched: bool) -> list[Array]:
    """Other rows each time: a processor learns the branches of rows that it sees again, and a tree looks 3 times faster."""
    if not batched:
        return list(samples)
    return [sample.take(range(start, start + rows), axis=0, mode="wrap") for sample in samples]


def _sample(spec: TensorSpec, batched: bool, recorded: Array | None, random: np.random.Generator) -> Array:
    """Rows to measure on: numbers spread as the recorded ones are; other types as recorded, or zeros."""
    if recorded is not None and (spec.type.kind != "float" or not batched or not spec.type.code):
        return recorded
    if recorded is not None:
        shape, mean, spread = recorded.shape[1:], np.nanmean(recorded, axis=0), np.nanstd(recorded, axis=0)
    else:
        shape, mean, spread = tuple(16 if dim == -1 else dim for dim in spec.shape), np.float64(0), np.float64(1)
    size = max(1, int(np.prod(shape)) * max(1, spec.type.size))
    rows = min(1024, max(1, SAMPLE_BYTES // size))
    full = (rows, *shape) if batched else shape
    if spec.datatype == "BYTES":
        return np.full(full, b"", object)
    if spec.type.kind != "float" or not spec.type.code:
        return np.zeros(full, spec.type.dtype)
    sample: Array = np.nan_to_num(mean + spread * random.standard_normal(full)).astype(spec.type.dtype)
    return sample
