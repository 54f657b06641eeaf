"""What this process sees of calls that a deployment's split has routed: counts per revision, a sink of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pelton.records import Record
from pelton.rollout import Pairs, Stretch

WARM_UP: Final = 20  # first calls of a version in a process: they are slower, and say nothing of its quality
MOST_KEYS: Final = 100_000  # callers that are told apart in one stretch; later ones are not counted
KEPT: Final = 16  # stretches of a model
ERRORS: Final = frozenset({"model_failed", "internal"})
PROTOCOL: Final = "shadow"  # of copies in records: they are no calls of anybody
LATE: Final = frozenset({"refused", "deadline"})

Key = tuple[str, int]  # model, revision


class Failed:
    """Callers whose errors, and whose slow calls, were counted in any stretch of one candidate: a caller that fails all
    the time is one piece of bad luck, however many steps and pauses there are."""

    __slots__ = ("candidate", "erred", "slowed")

    def __init__(self, candidate: str) -> None:
        self.candidate = candidate
        self.erred: set[int] = set()
        self.slowed: set[int] = set()


class Track:
    """One stretch as it is counted."""

    __slots__ = ("_keys", "_over", "candidate", "failed", "slow", "stretch")

    def __init__(self, route: int, weight: float) -> None:
        self.failed = Failed("")
        self.stretch = Stretch(route, weight)
        self.candidate = ""
        self.slow = float("inf")  # seconds
        self._keys: set[int] = set()
        self._over = False

    def add(self, record: Record) -> None:
        """Counts one call. What went wrong by the caller's doing, or because the caller left in time, is none."""
        error = record.error
        seconds = record.total if record.usage is None else record.usage.first  # of generations: to the first token
        late = error in LATE or seconds > self.slow
        if error and not late and error not in ERRORS:
            return
        if self._over:
            return
        key = record.key
        repeated = bool(key) and key in self._keys
        if key and not repeated:
            if len(self._keys) >= MOST_KEYS:
                return
            self._keys.add(key)
        arm = self.stretch.candidate if record.version == self.candidate else self.stretch.stable
        arm.calls += 1
        arm.repeats += repeated
        arm.seconds += record.total
        arm.device += record.device
        if error in ERRORS:
            arm.errors += _first(self.failed.erred, key)
        elif late:
            arm.slow += _first(self.failed.slowed, key)

    def end(self) -> None:
        """Long over: who has called is forgotten, and late calls count no more."""
        self._keys, self.failed = set(), Failed("")
        self._over = True

    def size(self) -> tuple[int, ...]:
        """Grows with everything that is counted."""
        stretch = self.stretch
        pairs = stretch.pairs
        return stretch.stable.calls, stretch.candidate.calls, pairs.pairs, pairs.skipped, pairs.failed


class Evidence:
    """All stretches of this process. Counted on the event loop; another thread may write them to the store: counts only
    grow, and one is written as a whole, so nothing needs a lock."""

    def __init__(self) -> None:
        self._tracks: dict[Key, Track] = {}
        self._seen: dict[tuple[str, str], int] = {}  # calls of a version, up to the end of its warm-up
        self._written: dict[Key, tuple[int, ...]] = {}
        self._failed: dict[str, Failed] = {}  # of each model's latest candidate
        self._splitting = False

    def open(self, name: str, route: int, weight: float, candidate: str, slow: float) -> None:
        """Calls are routed by this revision from now on. A call that takes more than `slow` seconds is slow."""
        track = self._track(name, route, weight)
        track.candidate, track.slow = candidate, slow
        failed = self._failed.get(name)
        if failed is None or failed.candidate != candidate:
            failed = self._failed[name] = Failed(candidate)
        track.failed = failed
        self._splitting = True

    def pairs(self, name: str, route: int, weight: float) -> Pairs:
        """Where the pairs of that revision are added up."""
        return self._track(name, route, weight).stretch.pairs

    def __call__(self, records: Sequence[Record]) -> None:
        """Takes a lot of records."""
        if not self._splitting:
            return
        for record in records:
            if record.route:
                track = self._tracks.get((record.model, record.route))
                if track is not None and self._warm(record):
                    track.add(record)

    def close(self) -> None:
        """Nothing comes after. What was counted is written by `changed`'s caller."""

    def changed(self) -> list[tuple[str, Stretch]]:
        """Stretches with counts that were not told yet: (model, stretch). Tell `written` of those that were stored."""
        return [
            (name, track.stretch)
            for (name, route), track in list(self._tracks.items())
            if any(track.size()) and self._written.get((name, route)) != track.size()
        ]

    def size(self, name: str, stretch: Stretch) -> tuple[int, ...]:
        """How much a stretch counts now, for `written`."""
        track = self._tracks.get((name, stretch.route))
        return track.size() if track is not None else ()

    def written(self, name: str, stretch: Stretch, size: tuple[int, ...]) -> None:
        """The store holds at least `size` of this stretch."""
        self._written[name, stretch.route] = size

    def _warm(self, record: Record) -> bool:
        version = (record.model, record.version)
        seen = self._seen.get(version, 0)
        if seen >= WARM_UP:
            return True
        self._seen[version] = seen + 1
        return False

    def _track(self, name: str, route: int, weight: float) -> Track:
        track = self._tracks.get((name, route))
        if track is None:
            track = self._tracks[name, route] = Track(route, weight)
            mine = [key for key in self._tracks if key[0] == name]
            for key in mine[:-KEPT]:
                del self._tracks[key]
                self._written.pop(key, None)
            for key in mine[:-2]:
                if key in self._tracks:
                    self._tracks[key].end()
        return track


def _first(keys: set[int], key: int) -> int:
    """1 where this is the first time for a key; a call without one always counts."""
    if not key:
        return 1
    if key in keys or len(keys) >= MOST_KEYS:
        return 0
    keys.add(key)
    return 1
