"""Where the graph of a model lies on disk: an OpenVINO folder as it is, or one made of a GGUF file, once.

openvino-genai reads the GGUF file in a process of its own, whose memory goes back when it ends. What it writes is moved
into the cache when it is whole; of two processes at once one converts and the other waits for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import openvino as ov

from pelton.errors import ExtraMissing, ModelFailed, PackageInvalid
from pelton.runtimes.engine_process.order import EngineOrder
from pelton.runtimes.openvino import minima

FORMAT: Final = 1  # of what this file makes: other ones are made anew
GRAPH: Final = "openvino_model.xml"
WEIGHTS: Final = "openvino_model.bin"
MAGIC: Final = b"GGUF"
_CONVERT: Final = (
    "import sys, openvino_genai\nopenvino_genai.LLMPipeline(sys.argv[1], 'CPU', {}, enable_save_ov_model=True)\n"
)
_SHOWN: Final = 600  # characters of the converter's last words that an error repeats


@contextmanager
def graph_file(order: EngineOrder, release: str) -> Iterator[Path]:
    """The model's XML file, beside its weights. Kept in the order's cache; without one, only as long as this lasts."""
    weights = order.path
    if weights.suffix == ".xml":
        if not weights.with_suffix(".bin").exists():
            raise PackageInvalid(
                f"model {order.model!r}: {weights.with_suffix('.bin').name} is missing beside {order.file}"
            )
        yield weights
        return
    _check_gguf(order)
    if order.cache:
        made = Path(order.cache) / f"openvino-{release}.{FORMAT}"
        yield converted(weights, made / (order.version or _identity(weights)))
        return
    with tempfile.TemporaryDirectory(prefix="pelton-openvino-") as folder:
        yield converted(weights, Path(folder) / "graph")


def converted(gguf: Path, folder: Path) -> Path:
    """The XML file in `folder`, which is made if it is not there. Raises ModelFailed, ExtraMissing."""
    done = folder / GRAPH
    if done.exists():
        return done
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.parent / f".{folder.name}.lock"):
        if not done.exists():
            for left in folder.parent.glob(f".{folder.name}.making-*"):
                shutil.rmtree(left, ignore_errors=True)  # of a process that was killed: nobody else holds the lock
            _convert(gguf, folder)
    return done


def _convert(gguf: Path, folder: Path) -> None:
    if importlib.util.find_spec("openvino_genai") is None:
        raise ExtraMissing("reading GGUF files with OpenVINO", "chat")
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}.making-", dir=folder.parent))
    try:
        link = making / "model.gguf"  # the graph is written beside the file that is read
        link.symlink_to(gguf.resolve())
        done = subprocess.run(  # noqa: S603 - this interpreter, and a path
            [sys.executable, "-P", "-c", _CONVERT, str(link)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode or not all((making / name).exists() for name in (GRAPH, WEIGHTS)):
            words = (done.stderr or done.stdout).strip()[-_SHOWN:]
            raise ModelFailed(
                f"OpenVINO cannot read {gguf.name} (exit code {done.returncode}): {words or 'it says nothing'}; "
                "set options.engine to 'llama.cpp' for this model"
            )
        whole = making / "whole"
        whole.mkdir()
        _mend(gguf, making / GRAPH, whole / GRAPH)
        for name in (WEIGHTS, GRAPH):
            _write_through(whole / name)
        shutil.rmtree(folder, ignore_errors=True)  # without a graph in it: not one of ours
        whole.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _mend(gguf: Path, graph: Path, target: Path) -> None:
    """Moves the graph to `target`, with what the conversion lost of the file."""
    model = ov.Core().read_model(graph)
    mended = minima.restore(gguf, model)
    if mended:
        print(f"{gguf.name}: {mended} tensors of the converted graph have the minima of their blocks again")
        ov.save_model(model, target, compress_to_fp16=False)
        return
    for path in (graph, graph.with_suffix(".bin")):
        path.rename(target.with_suffix(path.suffix))


def _check_gguf(order: EngineOrder) -> None:
    try:
        with order.path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise PackageInvalid(f"model {order.model!r}: {order.file} cannot be read: {error.strerror}") from None
    if start != MAGIC:
        raise PackageInvalid(
            f"model {order.model!r}: {order.file} is neither a GGUF file nor the .xml file of an OpenVINO model"
        )


def _identity(path: Path) -> str:
    """Of a file that belongs to no stored version: where it is, how long, how old."""
    found = path.resolve()
    state = found.stat()
    return hashlib.sha256(f"{found}\n{state.st_size}\n{state.st_mtime_ns}".encode()).hexdigest()[:32]


def _write_through(path: Path) -> None:
    """To the disk: after a power cut a renamed folder must not hold empty files."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; a killed one lets go by itself."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
