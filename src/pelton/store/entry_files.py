"""What Pelton up to 0.2 kept instead of a store: `home/models/<name>/<version>.json`. Taken over once, then set aside."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

import msgspec

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """An entry: the model, its version, and when it was added."""

    name: str
    version: str
    added: float


class _Entry(msgspec.Struct):
    name: str
    version: str
    added: float


def read(models: Path) -> list[Found]:
    """All entries. Of a damaged one the path tells name and version, and the file's own time when it was added."""
    return [_read(path) for path in sorted(models.glob("*/*.json"))]


def set_aside(models: Path) -> None:
    """Keeps the folder under another name; nothing reads it any more."""
    target = models.with_name("models.before-store")
    number = 1
    while target.exists():
        number += 1
        target = models.with_name(f"models.before-store-{number}")
    try:
        os.rename(models, target)
    except FileNotFoundError:
        return  # another process was first
    except OSError as error:
        log.warning("%s was taken over into the store, but cannot be renamed: %s", models, error.strerror)
        return
    log.info("the entries under %s are in the store now; they are kept in %s", models, target)


def _read(path: Path) -> Found:
    name, version = path.parent.name, path.stem
    try:
        entry = msgspec.json.decode(path.read_bytes(), type=_Entry)
        if (entry.name, entry.version) == (name, version):
            return Found(name, version, entry.added)
    except (msgspec.DecodeError, OSError):
        pass
    log.warning("%s is damaged; the model is taken over without it", path)
    return Found(name, version, path.stat().st_mtime)
