"""What the server and its models are: OIP v2 metadata, and the configuration that Triton's clients ask for."""

from __future__ import annotations

from typing import Any, Final

from pelton import __version__
from pelton.engine import Served
from pelton.transforms import FieldSpec
from pelton.types import TensorSpec

NAME: Final = "pelton"
EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_repository",
    "model_configuration",
    "schedule_policy",
    "statistics",
)
PLATFORMS: Final = {"onnx": "onnx_onnxruntime"}
BACKENDS: Final = {"onnx": "onnxruntime"}
# Kinds of fields as a tensor with one element per row; pictures and sounds are the bytes of their files.
DATATYPE_OF_KIND: Final = {"number": "FP64", "integer": "INT64", "boolean": "BOOL"}


def server_metadata() -> dict[str, Any]:
    """`GET /v2`."""
    return {"name": NAME, "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(served: Served, versions: list[Served]) -> dict[str, Any]:
    """`GET /v2/models/{model}`: the inputs that a caller sends, which for preprocessed models are the fields."""
    replica = served.replica
    return {
        "name": served.name,
        "versions": [one.short_version for one in versions],
        "platform": _platform(served),
        "inputs": [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in inputs(served)],
        "outputs": [_tensor(spec, replica.signature.batched) for spec in replica.signature.outputs],
        "properties": _properties(served),
    }


def model_config(served: Served) -> dict[str, Any]:
    """`GET /v2/models/{model}/config`, as tritonclient and perf_analyzer read it. `dims` are those of one row."""
    replica = served.replica
    manifest = replica.package.manifest
    batched = replica.signature.batched
    return {
        "name": served.name,
        "platform": _platform(served),
        "backend": BACKENDS.get(manifest.runtime, manifest.runtime),
        "max_batch_size": replica.max_rows if batched else 0,
        "input": [
            {"name": name, "data_type": _type(datatype), "format": "FORMAT_NONE", "dims": _dims(shape, batched)}
            for name, datatype, shape in inputs(served)
        ],
        "output": [
            {"name": spec.name, "data_type": _type(spec.datatype), "dims": list(spec.shape) or [1]}
            for spec in replica.signature.outputs
        ],
        "instance_group": [{"name": served.name, "kind": "KIND_CPU", "count": 1}],
        "default_model_filename": manifest.file,
        "dynamic_batching": {},
        "version_policy": {"latest": {"num_versions": 1}},
        "parameters": {name: {"string_value": value} for name, value in _properties(served).items()},
    }


def inputs(served: Served) -> list[tuple[str, str, list[int]]]:
    """(name, datatype, shape with the row dimension) of everything a caller sends."""
    replica = served.replica
    if not replica.package.manifest.preprocess:
        specs = [_tensor(spec, replica.signature.batched) for spec in replica.signature.inputs]
        return [(spec["name"], spec["datatype"], spec["shape"]) for spec in specs]
    return [_field(field) for field in replica.prepare.fields]


def _platform(served: Served) -> str:
    runtime, facts = served.replica.package.manifest.runtime, served.engine_facts
    return PLATFORMS.get(runtime, runtime) if facts is None else f"{runtime}_{facts.engine}"


def _field(field: FieldSpec) -> tuple[str, str, list[int]]:
    if field.kind == "tensor":
        return field.name, field.datatype, [-1, *field.shape]
    return field.name, DATATYPE_OF_KIND.get(field.kind, "BYTES"), [-1]


def _tensor(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": [-1, *spec.shape] if batched else list(spec.shape)}


def _dims(shape: list[int], batched: bool) -> list[int]:
    return (shape[1:] if batched else shape) or [1]


def _type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def _language_properties(served: Served) -> dict[str, str]:
    """Of a language model: what can be asked of it."""
    facts, language = served.engine_facts, served.language
    if facts is None or language is None:
        return {}
    card = language.card
    return {
        "engine": facts.engine,
        "engine.why": facts.why,
        "streams": str(facts.streams),
        "context": str(facts.context),
        "chat": "yes" if language.template is not None else "no",
        "architecture": card.architecture,
        "parameters": str(card.parameters or ""),
        "quantization": card.quantization,
    }


def _properties(served: Served) -> dict[str, str]:
    """What the protocol has no place for, as text."""
    replica = served.replica
    manifest = replica.package.manifest
    facts = {
        "version": served.version,
        "target_ms": f"{served.target * 1e3:g}",
        "description": manifest.description,
        "license": manifest.license,
        "source": manifest.source,
    }
    facts |= _language_properties(served)
    if manifest.preprocess:
        facts["tensors"] = ", ".join(
            f"{spec.name} {spec.datatype}{_tensor(spec, replica.signature.batched)['shape']}"
            for spec in replica.signature.inputs
        )
        for field in replica.prepare.fields:
            facts[f"field.{field.name}"] = f"{field.kind}: {field.description}" if field.description else field.kind
    return {name: value for name, value in facts.items() if value}
