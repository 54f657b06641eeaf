"""A folder or repository with a language model -> a package: OpenVINO's graph (for the engine openvino) or safetensors of
the Llama family (for torch), with tokenizer.json and what the configuration files say. A GGUF file in it goes its own way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec

from pelton.errors import SourceInvalid, Unsupported
from pelton.importers import gguf, language_card
from pelton.importers.draft import Options, place
from pelton.importers.language_draft import finish, language_draft, manifest_of, take
from pelton.language import TOKENIZER, Card, Tokenizer
from pelton.packages import Package
from pelton.registry import Registry
from pelton.runtimes.lm.config import ModelUnsupported, config_from_hf

GRAPH: Final = "openvino_model.xml"
INDEX: Final = "model.safetensors.index.json"
_HEADER_LIMIT: Final = 256 * 1024**2
_TAIL: Final = 256 * 1024
_SHARDS: Final = 1_000
_KEPT: Final = ("config.json", "generation_config.json")
_WRITES: Final = ("CausalLM", "LMHeadModel", "ForConditionalGeneration")

Fetch = Callable[[str], Path]
Json = dict[str, Any]


def applies(names: Collection[str]) -> bool:
    """Whether these files are a language model that one of the engines reads."""
    if GRAPH in names or any(_is_gguf(name) for name in names):
        return not any(name.endswith(".onnx") for name in names)
    weights = any(name.endswith(".safetensors") for name in names)
    return "config.json" in names and weights and not any(name.endswith(".onnx") for name in names)


def build(
    source: str, name: str, fetch: Fetch, names: Collection[str], registry: Registry, options: Options
) -> Package:
    """Makes the package. `fetch` gives the path of one of `names`. Raises SourceInvalid, Unsupported, ModelFailed."""
    if GRAPH not in names and (files := [file for file in names if _is_gguf(file)]):
        return gguf.build(fetch(_one(source, files)), name, source, registry, options)
    config = language_card.read_json(fetch("config.json") if "config.json" in names else None)
    _check_writes(source, config)
    if TOKENIZER not in names:
        raise SourceInvalid(
            f"{source} has no {TOKENIZER}: save the model's tokenizer beside it (transformers:"
            " AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)), or add its GGUF file instead"
        )
    vocabulary = fetch(TOKENIZER)
    card = language_card.card_of_folder(
        name, lambda file: fetch(file) if file in names else None, Tokenizer.read(vocabulary)
    )
    with language_draft(registry) as folder:
        place(vocabulary, folder / TOKENIZER)
        for file in _KEPT:
            if file in names:
                place(fetch(file), folder / file)
        file, engine, card = _weights(source, config, fetch, names, folder, card)
        return finish(folder, manifest_of(name, file, source, engine=engine), card, registry, options)


def _weights(
    source: str, config: Json, fetch: Fetch, names: Collection[str], folder: Path, card: Card
) -> tuple[str, str, Card]:
    """Puts the weights into the draft: (what the engine loads, which engine, the card with what they tell)."""
    if GRAPH in names:
        for file in (GRAPH, GRAPH.replace(".xml", ".bin")):
            if file not in names:
                raise SourceInvalid(f"{source} has {GRAPH} but no {file}: both belong together")
            take(fetch(file), folder / file)
        return GRAPH, "openvino", msgspec.structs.replace(card, quantization=_compression(folder / GRAPH))
    try:
        config_from_hf(config)
    except (ModelUnsupported, KeyError, TypeError) as error:
        told = f"config.json lacks {error}" if isinstance(error, KeyError) else str(error)
        raise Unsupported(f"{source}: {told}. Other models are served from their GGUF file") from None
    shards = _shards(source, fetch, names)
    counts: list[int] = []
    for shard in shards:
        path = fetch(shard)
        counts.append(parameters(path))
        take(path, folder / PurePosixPath(shard).name)
    if len(shards) > 1:
        place(fetch(INDEX), folder / INDEX)
    kind = str(config.get("torch_dtype") or config.get("dtype") or "")
    short = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(kind, kind)
    return shards[0], "torch", msgspec.structs.replace(card, quantization=short, parameters=sum(counts))


def _shards(source: str, fetch: Fetch, names: Collection[str]) -> list[str]:
    """The files that hold the weights, as the index tells."""
    if "model.safetensors" in names:
        return ["model.safetensors"]
    if INDEX not in names:
        found = [name for name in names if name.endswith(".safetensors") and "/" not in name]
        if len(found) == 1:
            return found
        raise SourceInvalid(f"{source} has {len(found)} files of safetensors but no {INDEX} that tells what is in them")
    files = language_card.read_json(fetch(INDEX)).get("weight_map")
    shards = sorted({str(file) for file in files.values()}) if isinstance(files, dict) else []
    missing = [file for file in shards if file not in names]
    if not shards or missing or len(shards) > _SHARDS:
        raise SourceInvalid(
            f"{source}: {INDEX} names {missing[0] if missing else 'no files'}; the folder is incomplete"
        )
    return shards


def parameters(path: Path) -> int:
    """Elements of all tensors of a safetensors file, from its header. Raises SourceInvalid."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(_HEADER_LIMIT, path.stat().st_size):
            raise SourceInvalid(f"{path.name}: this is no safetensors file, or it is cut short")
        try:
            header = msgspec.json.decode(file.read(size), type=dict[str, Any])
            shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (msgspec.DecodeError, KeyError, TypeError, IndexError, UnicodeDecodeError):
            raise SourceInvalid(f"{path.name}: this is no safetensors file: its header cannot be read") from None
    if max(ends, default=0) + 8 + size > path.stat().st_size:
        raise SourceInvalid(f"{path.name} is cut short: its header tells of more bytes than there are")
    return sum(_product(shape) for shape in shapes)


def _product(shape: Iterable[int]) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count


def _check_writes(source: str, config: Json) -> None:
    """Refuses models that write no text."""
    known = config.get("architectures")
    if isinstance(known, list) and known and not any(word in str(name) for name in known for word in _WRITES):
        raise Unsupported(
            f"{source}: {known[0]} is an encoder or classifier, which writes no text; export it to ONNX"
            " (`optimum-cli export onnx`) and add that"
        )


def _compression(graph: Path) -> str:
    """How OpenVINO's weights are compressed, which the end of the file tells."""
    with graph.open("rb") as file:
        file.seek(max(0, graph.stat().st_size - _TAIL))
        tail = file.read().decode("utf-8", "replace")
    found = re.search(r"<weight_compression>.*?<mode value=\"([a-zA-Z0-9_]+)\"", tail, re.DOTALL)
    return found[1] if found else ""


def _is_gguf(name: str) -> bool:
    return name.endswith(".gguf") and not PurePosixPath(name).name.startswith("mmproj")


def _one(source: str, files: list[str]) -> str:
    if len(files) > 1:
        raise SourceInvalid(f"{source} has several GGUF files: add one of them ({', '.join(sorted(files))})")
    return files[0]
