"""A sentence-transformers folder (modules.json) -> a package that embeds texts.

The transformer is the folder's ONNX file, or is drawn from its weights (`bert`). What comes after it, pooling and
normalization, is taken from modules.json, where the ONNX file does not do it itself. Texts over the model's limit are
refused: an embedding of half a text that passes for one of the whole is worse than none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec

from pelton.errors import SourceInvalid
from pelton.importers import bert, huggingface, onnx
from pelton.importers.draft import Options, draft, finish, place, rows_of_example
from pelton.packages import Package
from pelton.packages.preprocess import Embedding, Text
from pelton.registry import Registry
from pelton.runtimes.pooling import Pooling
from pelton.types import Signature, TensorSpec

MODULES: Final = "modules.json"
WEIGHTS: Final = "model.safetensors"
OUTPUT: Final = "sentence_embedding"
_TOKEN_OUTPUTS: Final = ("last_hidden_state", "token_embeddings")
_MODES: Final = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
_CONFIG_LIMIT: Final = 16 * 1024**2

Json = dict[str, Any]
Fetch = Callable[[str], Path]


class Modules(msgspec.Struct, frozen=True):
    """What modules.json says. `mode`: how tokens become one vector; `dense`: there are layers after that."""

    mode: str
    normalize: bool
    dense: bool
    root: str  # folder of the transformer's files


def applies(names: Collection[str]) -> bool:
    return MODULES in names and any(name.endswith(".onnx") or name == WEIGHTS for name in names)


def build(
    source: str, name: str, fetch: Fetch, names: Collection[str], registry: Registry, options: Options
) -> Package:
    """Makes the package. `fetch` gives the path of one of `names`."""
    modules = _modules(source, fetch, names)
    config = _read(fetch, names, f"{modules.root}config.json", "config.json")
    if "tokenizer.json" not in names:
        raise SourceInvalid(f"{source}: there is no tokenizer.json")
    with draft() as folder:
        _transformer(source, fetch, names, folder, config)
        place(fetch("tokenizer.json"), folder / "tokenizer.json")
        learned = onnx.learn(folder / onnx.FILE, None)
        manifest = onnx.manifest_of(name, source, learned)
        text = _text(fetch, names, config, learned.signature)
        size, pooling = _pooled(source, learned.signature, modules)
        signature = msgspec.structs.replace(
            huggingface.padded(learned.signature, text), outputs=(TensorSpec(OUTPUT, "FP32", (size,)),)
        )
        manifest = msgspec.structs.replace(
            manifest,
            signature=signature,
            description="embeds texts",
            preprocess=(text,),
            postprocess=(Embedding(OUTPUT, normalized=modules.normalize),),
            options={} if pooling is None else {"pooling": msgspec.to_builtins(pooling)},
            example={"text": "The quick brown fox jumps over the lazy dog."},
        )
        rows = rows_of_example(Package(folder, manifest))
        return finish(folder, manifest, rows, registry, options)


def _transformer(source: str, fetch: Fetch, names: Collection[str], folder: Path, config: Json) -> None:
    """The draft's model.onnx: the folder's own, or drawn from the weights."""
    if any(name.endswith(".onnx") for name in names):
        onnx.collect(fetch(huggingface.choose(source, names, "")), folder)
        return
    bert.check(config)
    fetch("config.json")
    bert.write(fetch(WEIGHTS).parent, folder / onnx.FILE)


def _text(fetch: Fetch, names: Collection[str], config: Json, signature: Signature) -> Text:
    text = huggingface.text_block(config, signature)
    limits = [
        config.get("max_position_embeddings"),
        _read(fetch, names, "sentence_bert_config.json").get("max_seq_length"),
    ]
    if config.get("model_type") in huggingface.SHIFTED and isinstance(limits[0], int):
        limits[0] -= 2
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    told = _read(fetch, names, "config_sentence_transformers.json")
    prompts, default = told.get("prompts"), told.get("default_prompt_name")
    prefix = prompts.get(default, "") if isinstance(prompts, dict) and isinstance(default, str) else ""
    return msgspec.structs.replace(
        text, truncate=False, max_tokens=min(known, default=text.max_tokens), prefix=str(prefix or "")
    )


def _pooled(source: str, signature: Signature, modules: Modules) -> tuple[int, Pooling | None]:
    """(numbers of a vector, what is left to do after the file)."""
    outputs = {spec.name: spec for spec in signature.outputs}
    whole = outputs.get(OUTPUT)
    if whole is not None and len(whole.shape) == 1 and whole.shape[0] > 0:
        # to bring a vector to length 1 twice changes nothing
        return whole.shape[0], Pooling(OUTPUT, OUTPUT, "none") if modules.normalize else None
    if modules.dense:
        raise SourceInvalid(f"{source}: {MODULES} has layers after the pooling; export it with all of them to ONNX")
    for name in _TOKEN_OUTPUTS:
        spec = outputs.get(name)
        if spec is not None and len(spec.shape) == 2 and spec.shape[1] > 0:
            mask = any(spec.name == "attention_mask" for spec in signature.inputs)
            if not mask:
                raise SourceInvalid(f"{source}: the ONNX file has no input attention_mask, which pooling needs")
            return spec.shape[1], msgspec.convert(
                {"output": name, "fills": OUTPUT, "mode": modules.mode, "normalize": modules.normalize}, Pooling
            )
    raise SourceInvalid(f"{source}: the ONNX file has none of the outputs {OUTPUT}, {', '.join(_TOKEN_OUTPUTS)}")


def _modules(source: str, fetch: Fetch, names: Collection[str]) -> Modules:
    try:
        listed = msgspec.json.decode(_bytes(fetch(MODULES)), type=list[Json])
    except msgspec.DecodeError as error:
        raise SourceInvalid(f"{MODULES}: {error}") from None
    kinds = [(str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))) for module in listed]
    mode, root = "mean", ""
    for kind, path in kinds:
        if kind == "Transformer":
            root = f"{path}/" if path else ""
        elif kind == "Pooling":
            mode = _mode(source, _read(fetch, names, str(PurePosixPath(path) / "config.json")))
    known = {"Transformer", "Pooling", "Normalize", "Dropout"}
    return Modules(
        mode, any(kind == "Normalize" for kind, _ in kinds), any(kind not in known for kind, _ in kinds), root
    )


def _mode(source: str, config: Json) -> str:
    wanted = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if isinstance(config.get("pooling_mode"), str):  # newer folders name it
        wanted = [key for key in _MODES if _MODES[key] == config["pooling_mode"].removesuffix("token")]
    if len(wanted) != 1 or wanted[0] not in _MODES:
        raise SourceInvalid(
            f"{source}: the pooling {', '.join(wanted) or 'of no kind'} is not done here; export it to ONNX"
        )
    return _MODES[wanted[0]]


def _read(fetch: Fetch, names: Collection[str], *candidates: str) -> Json:
    name = next((name for name in candidates if name in names), None)
    if name is None:
        return {}
    try:
        found = msgspec.json.decode(_bytes(fetch(name)))
    except (msgspec.DecodeError, RecursionError) as error:
        raise SourceInvalid(f"{name}: {error}") from None
    return found if isinstance(found, dict) else {}


def _bytes(path: Path) -> bytes:
    if path.stat().st_size > _CONFIG_LIMIT:
        raise SourceInvalid(f"{path.name} is larger than {_CONFIG_LIMIT} bytes")
    return path.read_bytes()
