"""Models, versions and aliases in a store, packages on the disk."""

from __future__ import annotations

import difflib
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pelton import packages
from pelton.artifacts import Artifacts
from pelton.errors import ArtifactCorrupt, InvalidInput, NotFound, PackageInvalid
from pelton.packages import Package
from pelton.packages.comparison import Diff, compare
from pelton.registry.entries import (
    Alias,
    AliasMove,
    Collected,
    Entry,
    Lineage,
    alias_move_of,
    check_alias,
    check_unused,
    checked,
    entry_of,
    expected,
    newest_first,
    noted,
    one_of,
)
from pelton.store import Store, entry_files
from pelton.types import ModelRef

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from pelton.store import aliases


class Registry:
    """Models and versions under `home`. Safe for any number of threads and processes.

    `store`: an open store, or the address of one that is opened when it is needed; None: a SQLite file in the home."""

    def __init__(self, home: Path, store: Store | str | None = None, clock: Callable[[], float] = time.time) -> None:
        self.home = home
        self.artifacts = Artifacts(home / "artifacts")
        self._clock = clock
        self._given = store
        self._store: Store | None = None
        self._opening = threading.Lock()

    @property
    def store(self) -> Store:
        """The store, open. The first time, entries that earlier builds kept in files are taken over."""
        if self._store is None:
            with self._opening:
                if self._store is None:
                    given = self._given or f"sqlite:///{self.home / 'pelton.db'}"
                    store = Store.open(given) if isinstance(given, str) else given
                    _take_over(self.home / "models", self.artifacts, store)
                    self._store = store
        return self._store

    def close(self) -> None:
        """Closes the store, unless it was given open."""
        with self._opening:
            if self._store is not None and not isinstance(self._given, Store):
                self._store.close()
            self._store = None

    # ---- versions

    def add(
        self,
        folder: Path,
        *,
        by: str = "",
        source: str = "",
        parent: str = "",
        derivation: str = "",
        accepted_on: str = "",
        metrics: Mapping[str, float] | None = None,
    ) -> str:
        """Stores a package folder and makes it the newest version of its model. Returns the version.

        What is said about a version that is there already replaces what was; what is not said stays. `parent` is a full
        version. Raises PackageInvalid for what is no package, NotFound for a parent that is not there, InvalidInput
        for one that derives from this version, and what `Artifacts.put` raises. The same folder may be added again at
        any time, also by several processes at once."""
        package = packages.load(folder)
        said = {"added_by": by, "source": source, "parent": parent, "derivation": derivation}
        said = {key: value for key, value in {**said, "accepted_on": accepted_on}.items() if value}
        store = self.store  # whatever is wrong with it is told before anything is copied
        version = self.artifacts.put(folder)
        with store.write() as connection:
            if self.artifacts.has(version):
                self._note(connection, package.name, version, said, metrics or {})
                return version
        # Another process removed it between the two. Then the files are copied inside of the transaction: others wait
        # for it, which they should not for a large model, but nobody can remove it again.
        with store.write() as connection:
            version = self.artifacts.put(folder)
            self._note(connection, package.name, version, said, metrics or {})
        return version

    def _note(
        self, connection: Connection, name: str, version: str, said: dict[str, Any], metrics: Mapping[str, float]
    ) -> None:
        """Makes the entry of a version whose files are there, as the newest, unless nothing about it is new."""
        from pelton.store import catalog

        known = catalog.of_model(connection, name)
        newest = known[0] if known else None
        row = noted(name, version, known, {"size": self.artifacts.size(version), **said}, metrics)
        if row == newest:
            return
        _check_parent(connection, version, said.get("parent", ""))
        if newest is None or newest["version"] != version:
            row["added_at"] = max(self._clock(), newest["added_at"] + 1e-3 if newest else 0.0)
        catalog.put(connection, row)
        _event(connection, "add", name, said.get("added_by", ""), {"version": version, **said}, self._clock())

    def models(self) -> list[str]:
        """Names of all models, sorted."""
        return [str(name) for name in self.store.values("versions", "name")]

    def versions(self, name: str) -> list[Entry]:
        """All versions of a model, the newest first. Raises NotFound."""
        entries = newest_first([entry_of(row) for row in self.store.rows("versions", name=checked(name))])
        if not entries:
            raise NotFound(self._unknown(name))
        return entries

    def find(self, ref: ModelRef) -> Entry:
        """The version that a reference means, its files unseen. Raises NotFound, and InvalidInput for a prefix of
        several versions."""
        entries = self.versions(ref.name)
        if ref.alias:
            return one_of(ModelRef(ref.name, self.alias(ref.name, ref.alias).version), entries)
        return one_of(ref, entries)

    def resolve(self, ref: ModelRef) -> Package:
        """The package that a reference means: its version, a unique prefix of one, its alias, or else the newest.

        Reads the manifest only; `verify` reads every byte. Raises NotFound, InvalidInput (a prefix of several
        versions), PackageInvalid (a damaged package)."""
        version = self.find(ref).version
        try:
            folder = self.artifacts.folder(version)
        except NotFound:
            raise PackageInvalid(
                f"the files of {ref} are gone from {self.artifacts.root}; add the package again"
            ) from None
        package = packages.load(folder, version)
        if package.name != ref.name:
            raise PackageInvalid(f"the files of {ref} are those of {package.name!r}; add the package again")
        return package

    def verify(self, version: str) -> None:
        """Reads every file of a version again. Raises ArtifactCorrupt, naming the file."""
        self.artifacts.verify(version)

    def check(self, version: str) -> None:
        """`verify` before a load: cheap where this process has verified the version and no file was touched since."""
        self.artifacts.check(version)

    def lineage(self, name: str, version: str) -> Lineage:
        """Ancestors and children of a version (or a unique prefix). An ancestor that was removed ends the row."""
        entry = self.find(ModelRef(name, version))
        known = {row["version"]: entry_of(row) for row in self.store.rows("versions")}
        ancestors: list[Entry] = []
        here = entry
        while (here := known.get(here.parent)) and here not in ancestors:  # type: ignore[assignment]
            ancestors.append(here)
        children = [one for one in known.values() if one.parent == entry.version]
        return Lineage(entry, tuple(ancestors), tuple(newest_first(children)))

    def diff(self, a: ModelRef, b: ModelRef) -> Diff:
        """What differs between two versions, of one model or of two: files, signature, manifest; and their metrics.

        Raises what `resolve` raises, and ArtifactCorrupt."""
        entries = self.find(a), self.find(b)
        found = [self.resolve(ModelRef(entry.name, entry.version)) for entry in entries]
        files = [self.artifacts.files(entry.version) for entry in entries]
        return compare(found[0], found[1], (files[0], files[1]), (entries[0].metrics, entries[1].metrics))

    # ---- aliases

    def alias(self, name: str, alias: str) -> Alias:
        """Where an alias points. Raises NotFound, naming those that there are."""
        for row in self.store.rows("aliases", name=checked(name), alias=alias):
            if row["version"]:
                return Alias(**row)
        there = [one.alias for one in self.aliases(name)]
        known = f"; it has {', '.join(there)}" if there else "; it has none yet: set one with `pelton alias`"
        raise NotFound(f"the model {name!r} has no alias {alias!r}{known}")

    def aliases(self, name: str) -> list[Alias]:
        """All aliases of a model that point somewhere, by name."""
        rows = self.store.rows("aliases", name=checked(name))
        return sorted((Alias(**row) for row in rows if row["version"]), key=lambda one: one.alias)

    def set_alias(
        self,
        name: str,
        alias: str,
        version: str,
        *,
        expect: int | str | None,
        by: str = "",
        why: str = "",
        evidence: Mapping[str, Any] | None = None,
    ) -> Alias:
        """Points an alias at a version (or a unique prefix of one), if it is still as `expect` says: a revision (0:
        there never was one), or the full version that it points at ("" or None: at none).

        Raises Conflict, which tells who was first; NotFound, InvalidInput."""
        from pelton.store import aliases, catalog

        check_alias(alias)
        wanted = ModelRef(checked(name), version)
        with self.store.write() as connection:
            entries = [entry_of(row) for row in catalog.of_model(connection, name)]
            if not entries or not version:
                raise NotFound(f"a version of {name!r} must be named" if entries else self._unknown(name))
            to = one_of(wanted, entries).version
            proof = msgspec.json.encode(dict(evidence or {})).decode()
            change = aliases.Move(name, alias, to, expected(expect), self._clock(), by, why, proof)
            revision = _move(connection, change)
        return Alias(name, alias, to, revision)

    def remove_alias(self, name: str, alias: str, *, expect: int | str, by: str = "", why: str = "") -> None:
        """Takes an alias away; its history stays. Raises NotFound, Conflict."""
        from pelton.store import aliases

        self.alias(name, alias)
        with self.store.write() as connection:
            _move(connection, aliases.Move(name, alias, "", expect, self._clock(), by, why))

    def alias_history(self, name: str, alias: str | None = None) -> list[AliasMove]:
        """All moves of one alias, or of all of a model, the newest first."""
        equal = {"name": name} if alias is None else {"name": name, "alias": alias}
        rows = sorted(self.store.rows("alias_history", **equal), key=lambda row: int(row["id"]), reverse=True)
        return [alias_move_of(row) for row in rows]

    # ---- forgetting

    def remove(self, ref: ModelRef, force: bool = False, by: str = "", why: str = "") -> list[str]:
        """Forgets one version, or, where the reference names none, the model with all its versions.

        Returns the versions that are gone. Raises NotFound, and Conflict where one is deployed or has an alias;
        `force` removes it all the same, its aliases too. A model that is loaded goes on serving."""
        from pelton.store import aliases, catalog, uses

        ref = ModelRef(ref.name, self.find(ref).version) if ref.alias else ref
        with self.store.write() as connection:
            found = [entry_of(row) for row in catalog.of_model(connection, checked(ref.name))]
            if not found:
                raise NotFound(self._unknown(ref.name))
            found = [one_of(ref, found)] if ref.version else found
            deployed = uses.deployed(connection, ref.name)
            for entry in found:
                named = aliases.pointing_at(connection, entry.name, entry.version)
                if not force:
                    check_unused(entry, entry.version in deployed, [row["alias"] for row in named])
                for row in named:
                    move = aliases.Move(entry.name, row["alias"], "", row["revision"], self._clock(), by, why)
                    _move(connection, move)
                catalog.remove(connection, entry.name, entry.version)
                _event(connection, "remove", entry.name, by, {"version": entry.version, "why": why}, self._clock())
        self._delete_files([entry.version for entry in found])
        return [entry.version for entry in found]

    def gc(
        self,
        older_than: float,
        running: Collection[str] = (),
        keep: Collection[str] = (),
        dry_run: bool = False,
        by: str = "",
    ) -> list[Collected]:
        """Removes the versions that nothing needs and that were added more than `older_than` seconds ago.

        Never: what is deployed, a candidate, a shadow, the version to go back to, in an open rollout, loaded by a
        process, aliased, the newest of its model, an ancestor of what stays, in `running` or `keep` (full versions).
        `dry_run` only tells what it would remove."""
        from pelton.store import catalog, uses

        now = self._clock()
        with self.store.read() if dry_run else self.store.write() as connection:
            needed = {*uses.kept(connection, now), *running, *keep}
            rows = uses.garbage(catalog.everything(connection), needed, now - older_than)
            garbage = [Collected(row["name"], row["version"], row["size"], row["added_at"]) for row in rows]
            if dry_run:
                return garbage
            for one in garbage:
                catalog.remove(connection, one.name, one.version)
                _event(connection, "gc", one.name, by, {"version": one.version, "size": one.size}, now)
        self._delete_files([one.version for one in garbage])
        return garbage

    def _delete_files(self, versions: Collection[str]) -> None:
        """Of versions without an entry. In a transaction of its own: nobody can add one of them again meanwhile."""
        from pelton.store import catalog

        graves = []
        with self.store.write() as connection:
            for version in versions:
                if self.artifacts.has(version) and catalog.by_digest(connection, version) is None:
                    graves.append(self.artifacts.bury(version))
        for grave in graves:
            shutil.rmtree(grave, ignore_errors=True)

    def _unknown(self, name: str) -> str:
        known = self.models()
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        if near:
            return f"there is no model {name!r}; did you mean {' or '.join(map(repr, near))}?"
        if known:
            return f"there is no model {name!r}; there are {', '.join(known[:10])}{', ...' if len(known) > 10 else ''}"
        return f"there is no model {name!r}: {self.home} holds none yet; add one with `pelton add`"


def _check_parent(connection: Connection, version: str, parent: str) -> None:
    from pelton.store import catalog

    here, seen = parent, set[str]()
    while here and here not in seen:
        if here == version:
            raise InvalidInput(
                f"{parent[:12]} cannot be the parent of {version[:12]}: it is that version, or derives from it"
            )
        row = catalog.by_digest(connection, here)
        if row is None and here == parent:
            raise NotFound(f"no version {parent!r} is in the registry: a parent is named by its whole version")
        seen.add(here)
        here = row["parent"] if row else ""


def _move(connection: Connection, change: aliases.Move) -> int:
    """Moves an alias, with its event; returns the new revision."""
    from pelton.store import aliases

    before, revision = aliases.move(connection, change)
    details = {"alias": change.alias, "from": before, "to": change.version, "revision": revision}
    details |= {"why": change.why, "evidence": msgspec.json.decode(change.evidence)}
    _event(connection, "alias", change.name, change.by, details, change.at)
    return revision


def _event(connection: Connection, action: str, name: str, by: str, details: Mapping[str, Any], at: float) -> None:
    from pelton import events

    events.append(connection, action, name, by, details, at)


def _take_over(models: Path, artifacts: Artifacts, store: Store) -> None:
    """Entries of earlier builds whose files are there. Killed in the middle, it is done again the next time."""
    if not (found := entry_files.read(models)):
        return
    from pelton.store import catalog

    with store.write() as connection:
        for name, version, added in found:
            try:
                size = artifacts.size(version)
            except (NotFound, ArtifactCorrupt):
                size = -1
            known = catalog.of_model(connection, name)
            if artifacts.has(version) and not any(row["version"] == version for row in known):
                row = noted(name, version, known, {"size": size, "added_at": added}, {})
                catalog.put(connection, row)
    entry_files.set_aside(models)
