"""Which engine runs a language model on this machine: what can, what was measured, what follows. The decision is pure."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec

from pelton.runtimes.language import Facts

LOG: Final = logging.getLogger("pelton.runtimes.language")
PROMPT, ANSWER = 128, 128  # tokens of the request that engines are compared by
WORTH: Final = 1.1  # a second engine in memory must be so many times as fast for what it is there for
NEEDS: Final = {"openvino": ("openvino",), "llama.cpp": ("xllamacpp",), "torch": ("torch", "safetensors")}
GPU: Final = Path("/dev/nvidia0")
LARGE: Final = 0.15  # of the memory that is left: a file above this share is not loaded twice


class Choice(msgspec.Struct, frozen=True):
    """`engines`: one, or the two of a duet, the one for few streams first. `crowd`: streams from which on the second
    runs them."""

    engines: tuple[str, ...]
    why: str
    crowd: int = 0


def candidates(file: Path, there: Sequence[str], gpu: bool) -> list[str]:
    """Engines that may run this file; of two the one that is good for few streams first. `there`: what is installed."""
    torch = ["torch"] if file.suffix in (".gguf", ".safetensors") and "torch" in there else []
    if gpu and torch:
        return torch
    on_cpu = {".gguf": ("llama.cpp", "openvino"), ".xml": ("openvino",)}.get(file.suffix, ())
    return [engine for engine in on_cpu if engine in there] or torch


def installed(file: Path) -> list[str]:
    """Engines whose libraries are there; for a GGUF file OpenVINO also needs its converter."""
    found = [engine for engine, modules in NEEDS.items() if all(importlib.util.find_spec(name) for name in modules)]
    if file.suffix == ".gguf" and "openvino" in found and importlib.util.find_spec("openvino_genai") is None:
        found.remove("openvino")
    return found


def decide(solo: Facts, many: Facts, twice: bool) -> Choice:
    """`solo` is the engine that is good for few streams, `many` the other; `twice`: there is memory for both."""
    most = max(many.streams, solo.streams)
    counts = range(1, solo.streams + 2)
    crowd = next((count for count in counts if seconds(many, count) < seconds(solo, count)), 0)
    ahead = seconds(solo, most) / seconds(many, most)  # above 1: many is faster for many
    alone = seconds(many, 1) / seconds(solo, 1)  # above 1: solo is faster for one
    if ahead <= 1.0 and not crowd:
        return Choice((solo.engine,), told(solo, many, most))
    if crowd == 1 or alone < WORTH:
        return Choice((many.engine,), told(many, solo, most))
    if ahead < WORTH:
        return Choice((solo.engine,), told(solo, many, most))
    if not twice:
        best, other = (many, solo) if ahead >= alone else (solo, many)
        return Choice((best.engine,), told(best, other, most) + "; there is no memory for both")
    crowd = crowd or solo.streams + 1
    why = f"{solo.engine} for fewer than {crowd} streams, {many.engine} from then on: {told(many, solo, most)}"
    return Choice((solo.engine, many.engine), why, crowd)


def seconds(facts: Facts, count: int) -> float:
    """That `count` requests take that come together."""
    runs = min(count, facts.streams)
    once = runs * PROMPT / max(facts.speed.prefill, 1e-9) + ANSWER * step(facts, runs)
    return once * count / runs


def step(facts: Facts, count: int) -> float:
    """Seconds of a step in which `count` streams decode, between and beyond what was measured."""
    points = sorted(facts.speed.decode.items()) or [(1, 1.0)]
    below = [point for point in points if point[0] <= count]
    above = [point for point in points if point[0] > count]
    if not below:
        return points[0][1]
    if not above:
        return below[-1][1] * count / below[-1][0]
    (low, fast), (high, slow) = below[-1], above[0]
    return fast + (slow - fast) * (count - low) / (high - low)


def told(winner: Facts, other: Facts, streams: int) -> str:
    """As people read it: "openvino: 242 tok/s at 16 streams against 209; alone 57 against 133"."""

    def rate(facts: Facts, count: int) -> str:
        return f"{count * ANSWER / seconds(facts, count):.0f}"

    return (
        f"{winner.engine}: {rate(winner, streams)} tok/s at {streams} streams against {rate(other, streams)} "
        f"of {other.engine}; alone {rate(winner, 1)} against {rate(other, 1)}"
    )


# ---- what was decided before


class Remembered(msgspec.Struct, frozen=True):
    """A decision and what it was made for: anything else asks for another."""

    key: str
    choice: Choice


def key(version_of_package: str, options: msgspec.Struct, engines: Sequence[str]) -> str:
    """What a decision depends on: the files, the options, the libraries, the machine."""
    return msgspec.json.encode(
        [version_of_package, options, [[engine, *map(release, NEEDS.get(engine, ()))] for engine in engines], machine()]
    ).decode()


def release(module: str) -> str:
    try:
        return version(module)
    except PackageNotFoundError:
        return ""


def machine() -> list[str]:
    """Its processor and how many cores this process may use."""
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return [model, str(cores())]


def recall(path: Path, wanted: str) -> Choice | None:
    """What was decided for this key, if anything was."""
    try:
        known = msgspec.json.decode(path.read_bytes(), type=Remembered)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return known.choice if known.key == wanted else None


def remember(path: Path, wanted: str, choice: Choice) -> None:
    """A decision that cannot be kept is made again."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(Remembered(wanted, choice))))
        partial.replace(path)
    except OSError as error:
        LOG.warning("cannot keep the choice of an engine: %s", error)


def busy() -> bool:
    """Whether others use this machine so much that what is measured now will not hold."""
    return os.getloadavg()[0] > cores() / 2


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def room_for_both(file: Path) -> bool:
    """Whether two engines may hold the weights."""
    return file.stat().st_size < LARGE * free_memory()


def free_memory() -> float:
    """Bytes; infinite where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except (OSError, ValueError, LookupError):
        pass
    return float("inf")
