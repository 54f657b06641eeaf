"""What the tests of this folder look at from outside, and the servers whose end they bring about."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from echo_api import Api, serving

from pelton.packages import load as load_package
from pelton.packages import save
from pelton.registry import Registry
from pelton.types import ModelRef


def metric(api, name: str, **labels: str) -> float:
    """The sum of a series over all labels that are not given."""
    total, found = 0.0, False
    for line in api.get("/metrics").body.decode().splitlines():
        match = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
        if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
            total, found = total + float(match[2]), True
    assert found, name
    return total


def children(pid: int) -> list[int]:
    """Processes that `pid` has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def second_version(home: Path, name: str, weights: bytes = b"none") -> str:
    """The same model with another description: another version."""
    registry = Registry(home)
    folder = home / "another" / f"{name}-{len(list(home.glob('another/*')))}"
    shutil.copytree(registry.resolve(ModelRef(name)).folder, folder)
    (folder / "weights.none").write_bytes(weights)
    save(msgspec.structs.replace(load_package(folder).manifest, description="another"), folder)
    return registry.add(folder)


@contextlib.contextmanager
def ending(home: Path, *models: str, **settings: Any) -> Iterator[Api]:
    """A server that the test itself brings to its end, with whatever exit code."""
    context = serving(home, *models, **settings)
    api = context.__enter__()
    try:
        yield api
    finally:
        with contextlib.suppress(AssertionError):
            context.__exit__(None, None, None)
