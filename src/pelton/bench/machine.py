"""Where the generator runs: what a reader needs to compare two reports."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

_PACKAGES: Final = ("pelton", "onnxruntime", "numpy", "uvloop")


def describe_machine() -> dict[str, str]:
    """Processor, cores, memory, system and versions, as (label, text); what cannot be read is left out."""
    facts = {
        "Processor": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        "Cores": str(_cores()),
        "Memory": _memory(),
        "System": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return {label: text for label, text in facts.items() if text}


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _memory() -> str:
    kibibytes = _field(Path("/proc/meminfo"), "MemTotal").removesuffix(" kB")
    return f"{int(kibibytes) / 2**20:.0f} GiB" if kibibytes.isdigit() else ""


def _field(path: Path, label: str) -> str:
    """The first `label : value` line of a file of /proc."""
    try:
        with path.open() as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == label:
                    return value.strip()
    except OSError:
        return ""
    return ""
