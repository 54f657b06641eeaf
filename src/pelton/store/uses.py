"""What the store says is in use: what garbage collection must not touch, and what `remove` refuses.

Deployments, rollouts and reports are JSON that other rooms write. Every digest in such a text counts as in use, so a
field that comes later protects its version without anybody thinking of this file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import Connection, select

from pelton.store.tables import aliases, deployments, processes, rollouts

Row = dict[str, Any]

SILENT_SECONDS: Final = 24 * 3600.0  # a process that reported nothing for so long runs nothing any more
_DIGEST: Final = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def kept(connection: Connection, now: float) -> dict[str, str]:
    """Version -> why garbage collection leaves it alone: deployed, candidate, shadow, to go back to, running, aliased."""
    found: dict[str, str] = {}
    for row in connection.execute(select(aliases).where(aliases.c.version != "")):
        found.setdefault(row.version, f"alias {row.alias}")
    for row in connection.execute(select(deployments)):
        _note(found, row.spec, "deployed")
    for row in connection.execute(select(rollouts).where(rollouts.c.open != 0)):
        _note(found, row.spec, "in a rollout")
    for row in connection.execute(select(processes).where(processes.c.at > now - SILENT_SECONDS)):
        _note(found, row.status, "loaded by a process")
    return found


def deployed(connection: Connection, name: str) -> set[str]:
    """Versions that the present deployment of a model names; none where it is not served."""
    spec = connection.scalar(select(deployments.c.spec).where(deployments.c.name == name))
    if spec is None or not json.loads(spec).get("version"):
        return set()
    rows = connection.scalars(select(rollouts.c.spec).where(rollouts.c.name == name, rollouts.c.open != 0))
    return {digest for text in (spec, *rows) for digest in _DIGEST.findall(text)}


def _note(found: dict[str, str], text: str, why: str) -> None:
    for digest in _DIGEST.findall(text):
        found.setdefault(digest, why)


def garbage(rows: Sequence[Row], needed: Collection[str], before: float) -> list[Row]:
    """The versions to remove, out of all (newest first within a model): added earlier than `before`, not the newest of
    their model, not needed, and not an ancestor of one that stays. Pure."""
    newest: dict[str, str] = {}
    for row in rows:
        newest.setdefault(row["name"], row["version"])
    parents = {row["version"]: row["parent"] for row in rows}
    stays = [
        row["version"]
        for row in rows
        if row["version"] in needed or row["added_at"] >= before or newest[row["name"]] == row["version"]
    ]
    safe: set[str] = set()
    while stays:
        version = stays.pop()
        if version not in safe:
            safe.add(version)
            if parent := parents.get(version):
                stays.append(parent)
    return [row for row in rows if row["version"] not in safe]
