"""A Hugging Face repository, or a folder laid out like one -> a package: an ONNX file, with what its configuration says
about pictures (preprocessor_config.json), texts (tokenizer.json) and labels (config.json). Embedding models are for
`sentence`, language models for `language_folder`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec

from pelton.errors import SourceInvalid
from pelton.importers import gguf, language_folder, onnx, onnx_file, sentence
from pelton.importers.draft import Options, draft, finish, place, rows_of_example
from pelton.importers.hub import Address, Hub, Repository
from pelton.packages import Manifest, Package
from pelton.packages.preprocess import Crop, Image, Labels, Postprocess, Preprocess, Resize, Text
from pelton.registry import Registry
from pelton.types import Signature

_PREFERRED: Final = ("model.onnx", "onnx/model.onnx")
_CONFIG: Final = ("config.json", "preprocessor_config.json", "tokenizer.json")
_CONFIG_LIMIT: Final = 16 * 1024**2
_FILTERS: Final[Mapping[int, str]] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_TOKENS: Final = 512
# their positions start after the padding token's
SHIFTED: Final = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"})

Json = dict[str, Any]


def add(source: str, registry: Registry, options: Options) -> Package:
    """Adds a repository (`hf:...`) or a folder. Raises SourceInvalid, ArtifactCorrupt, ExtraMissing (tokenizers)."""
    if not source.startswith("hf:"):
        folder = Path(source)
        names = [str(PurePosixPath(path.relative_to(folder))) for path in folder.rglob("*") if path.is_file()]
        if sentence.applies(names):
            return sentence.build(source, folder.resolve().name, lambda name: folder / name, names, registry, options)
        if language_folder.applies(names):
            own = folder.resolve().name
            return language_folder.build(own, own, lambda name: folder / name, names, registry, options)
        chosen = choose(source, names, "")
        return build(source, folder.resolve().name, chosen, lambda name: folder / name, names, registry, options)
    address = Address.parse(source)
    hub = Hub.from_environment(registry.home / "cache")
    found = hub.repository(address)

    def fetch(name: str) -> Path:
        return hub.fetch(address, found, name)

    if not address.file and sentence.applies(found.files):
        return sentence.build(
            _told(address, found), address.repository.partition("/")[2], fetch, found.files, registry, options
        )
    if address.file.endswith(".gguf"):
        path = fetch(address.file)
        return gguf.build(path, path.stem, _told(address, found), registry, options, found.license)
    if not address.file and language_folder.applies(found.files):
        own = address.repository.partition("/")[2]
        return language_folder.build(_told(address, found), own, fetch, found.files, registry, options)
    chosen = choose(source, found.files, address.file)
    model = fetch(chosen)
    for name in onnx_file.read(model).external:
        fetch(str(PurePosixPath(chosen).parent / name))
    return build(
        _told(address, found), address.repository.partition("/")[2], chosen, fetch, found.files, registry, options
    )


def _told(address: Address, found: Repository) -> str:
    return f"hf:{address.repository}@{found.sha}" + (f" ({found.license})" if found.license else "")


def choose(source: str, names: Iterable[str], wanted: str) -> str:
    """The ONNX file: the one that was asked for, the one of the usual name, or the only one."""
    found = [name for name in names if name.endswith(".onnx")]
    if wanted:
        if wanted not in found:
            raise SourceInvalid(f"{source}: there is no ONNX file {wanted!r}; there are {', '.join(found) or 'none'}")
        return wanted
    for name in _PREFERRED:
        if name in found:
            return name
    if len(found) == 1:
        return found[0]
    if found:
        raise SourceInvalid(
            f"{source} has several ONNX files: add /{found[0]} or another to the source ({', '.join(found)})"
        )
    raise SourceInvalid(f"{source} has no ONNX file; export one with `optimum-cli export onnx`")


def build(
    source: str,
    name: str,
    chosen: str,
    fetch: Callable[[str], Path],
    names: Iterable[str],
    registry: Registry,
    options: Options,
) -> Package:
    """Makes the package. `fetch` gives the path of one of `names`."""
    there = [config for config in _CONFIG if config in set(names)]
    files = {config: fetch(config) for config in there}
    config, pictures = _json(files.get("config.json")), _json(files.get("preprocessor_config.json"))
    with draft() as folder:
        onnx.collect(fetch(chosen), folder)
        image = image_block(pictures)
        learned = onnx.learn(folder / onnx.FILE, options.example, _shapes(image))
        manifest = onnx.manifest_of(name, source, learned)
        signature = learned.signature
        blocks: list[Preprocess] = [image] if image and _has(signature, image.fills) else []
        if "tokenizer.json" in files and _has(signature, "input_ids"):
            place(files["tokenizer.json"], folder / "tokenizer.json")
            text = text_block(config, signature)
            blocks.append(text)
            signature = padded(signature, text)
        manifest = _with(manifest, signature, blocks, labels_block(config, signature))
        rows = learned.rows
        if manifest.example and options.example is None:
            rows = rows_of_example(Package(folder, manifest))
        return finish(folder, manifest, rows, registry, options)


def _with(manifest: Manifest, signature: Signature, blocks: list[Preprocess], labels: Labels | None) -> Manifest:
    after: tuple[Postprocess, ...] = (labels,) if labels else ()
    text_only = [type(block) for block in blocks] == [Text] and len(signature.inputs) == len(_filled(blocks[0]))
    example = {"text": "The quick brown fox jumps over the lazy dog."} if text_only else None
    return msgspec.structs.replace(
        manifest, signature=signature, preprocess=tuple(blocks), postprocess=after, example=example
    )


def _filled(block: Preprocess) -> list[str]:
    assert isinstance(block, Text)
    return [name for name in (block.ids, block.mask, block.types) if name]


def _has(signature: Signature, name: str) -> bool:
    return any(spec.name == name for spec in signature.inputs)


def image_block(config: Json) -> Image | None:
    """preprocessor_config.json -> the same steps (None: it is not about pictures)."""
    if not config or ("image_mean" not in config and "size" not in config):
        return None
    size, crop = config.get("size"), config.get("crop_size")
    resize = _resize(config, size) if config.get("do_resize", True) and size is not None else None
    cut = Crop(*_sides(crop)) if config.get("do_center_crop") and crop is not None else None
    if resize is not None and (share := config.get("crop_pct")) and resize.fit == "shorter" and resize.height < 384:
        # ConvNeXt: the picture is made larger by 1 / crop_pct, then the centre is cut out
        cut = Crop(resize.height, resize.width)
        resize = msgspec.structs.replace(resize, height=int(cut.height / share), width=int(cut.width / share))
    normalize = config.get("do_normalize", True) and "image_mean" in config
    return Image(
        "image",
        "pixel_values",
        resize=resize,
        crop=cut,
        scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        mean=tuple(map(float, config["image_mean"])) if normalize else (0.0,),
        std=tuple(map(float, config["image_std"])) if normalize else (1.0,),
    )


def _resize(config: Json, size: Any) -> Resize:
    height, width = _sides(size)
    shorter = (isinstance(size, int) and bool(config.get("do_center_crop"))) or (
        isinstance(size, dict) and "shortest_edge" in size
    )
    name = _FILTERS.get(config.get("resample", 2))
    if name is None:
        raise SourceInvalid(
            f"preprocessor_config.json: resample is {config.get('resample')!r}; known are {dict(_FILTERS)}"
        )
    return msgspec.convert(
        {"height": height, "width": width, "fit": "shorter" if shorter else "stretch", "interpolation": name}, Resize
    )


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    raise SourceInvalid(f"preprocessor_config.json: the size {size!r} is not understood")


def _shapes(image: Image | None) -> dict[str, tuple[int, ...]]:
    """Exports leave every side of the picture open; the steps tell them."""
    last = None if image is None else image.crop or image.resize
    if image is None or last is None or (image.crop is None and image.resize and image.resize.fit == "shorter"):
        return {}
    return {image.fills: (3, last.height, last.width)}


def text_block(config: Json, signature: Signature) -> Text:
    """Which inputs the tokens go to, and how many the model takes."""
    most = config.get("max_position_embeddings", _TOKENS)
    most = int(most) if isinstance(most, int) and most > 0 else _TOKENS
    if config.get("model_type") in SHIFTED:
        most -= 2
    pad = config.get("pad_token_id")
    return Text(
        "text",
        ids="input_ids",
        mask="attention_mask" if _has(signature, "attention_mask") else "",
        types="token_type_ids" if _has(signature, "token_type_ids") else "",
        max_tokens=min(most, _TOKENS),
        truncate=True,
        pad_id=pad if isinstance(pad, int) and pad >= 0 else 0,
    )


def padded(signature: Signature, text: Text) -> Signature:
    """Rows of different lengths share a batch where a mask hides the padding."""
    if not text.mask:
        return signature
    pads = {text.ids: float(text.pad_id), text.mask: 0.0, text.types: 0.0}
    inputs = tuple(msgspec.structs.replace(spec, pad=pads.get(spec.name, spec.pad)) for spec in signature.inputs)
    return msgspec.structs.replace(signature, inputs=inputs)


def labels_block(config: Json, signature: Signature) -> Labels | None:
    """id2label of a classifier with one answer. Several labels at once, and labels per token, stay scores."""
    names = config.get("id2label")
    if not isinstance(names, dict) or config.get("problem_type") in ("multi_label_classification", "regression"):
        return None
    ordered = tuple(str(names.get(str(i), "")) for i in range(len(names)))
    for spec in signature.outputs:
        if spec.name == "logits" and spec.shape == (len(ordered),) and len(ordered) > 1 and all(ordered):
            return Labels("logits", labels=ordered, top=min(5, len(ordered)), softmax=True)
    return None


def _json(path: Path | None) -> Json:
    if path is None:
        return {}
    try:
        if path.stat().st_size > _CONFIG_LIMIT:
            raise SourceInvalid(f"{path.name} is larger than {_CONFIG_LIMIT} bytes")
        found = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, RecursionError) as error:
        raise SourceInvalid(f"{path.name}: {error}") from None
    if not isinstance(found, dict):
        raise SourceInvalid(f"{path.name} is no JSON object")
    return found
