"""A window: the sum of the records of one model, version, protocol and tenant over some time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from pelton.records.histogram import Histogram
from pelton.records.record import Record
from pelton.records.tokens import TokenSums

EXACT_ROWS: Final = 128  # larger batches are counted by the next power of two: the table stays small
STAGES: Final = ("prepare", "queue", "run", "total")


class WindowKey(NamedTuple):
    """Whose calls a window sums."""

    model: str
    version: str
    protocol: str
    tenant: str


class BatchCount:
    """Batches of one size: how many (calls add their share of a batch, so this is a float) and their run seconds."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count = 0.0
        self.seconds = 0.0


class Window:
    """Counts, sums and histograms. Windows of any two processes or times add up."""

    def __init__(self) -> None:
        self.answered = 0
        self.rows = 0
        self.device_seconds = 0.0
        self.failed_seconds = 0.0  # total times of calls that ended with an error
        self.errors: dict[str, int] = {}
        self.refusals: dict[str, int] = {}
        self.dispatched: dict[str, float] = {}  # why batches left the queue
        self.batches: dict[int, BatchCount] = {}
        self.stages = {stage: Histogram() for stage in STAGES}
        self.last_answer = 0.0
        self.tokens: TokenSums | None = None  # of language models

    def add(self, records: Sequence[Record]) -> None:
        """Folds records in."""
        good = [record for record in records if not record.error]
        for record in records:
            if record.error:
                self._add_error(record)
        usages = [record.usage for record in records if record.usage is not None]
        if usages:
            self._tokens().add(usages)
            self.device_seconds += sum([record.device for record in records if record.error])
        if not good:
            return
        self.answered += len(good)
        self.last_answer = max([self.last_answer, *[record.at for record in good]])
        self.rows += sum([record.rows for record in good])
        self.device_seconds += sum([record.device for record in good])
        # calls of a batch are alike: they are counted by what they have in common, and then added kind by kind
        batched = [record for record in good if record.usage is None] if usages else good
        alike = Counter([(record.reason, record.batch_rows, record.rows, record.device) for record in batched])
        for (reason, size, rows, device), calls in alike.items():
            share = calls * rows / size
            self.dispatched[reason] = self.dispatched.get(reason, 0.0) + share
            if size > EXACT_ROWS:
                size = 1 << (size - 1).bit_length()
            batch = self.batches.get(size)
            if batch is None:
                batch = self.batches[size] = BatchCount()
            batch.count += share
            batch.seconds += calls * device
        self.stages["queue"].add([record.queue for record in good])
        self.stages["run"].add([record.run for record in good])
        self.stages["total"].add([record.total for record in good])
        prepared = [record.prepare for record in good if record.prepare]
        if prepared:
            self.stages["prepare"].add(prepared)

    def merge(self, other: Window) -> None:
        """Adds another window to this one."""
        self.answered += other.answered
        self.rows += other.rows
        self.device_seconds += other.device_seconds
        self.failed_seconds += other.failed_seconds
        self.last_answer = max(self.last_answer, other.last_answer)
        for kind, count in other.errors.items():
            self.errors[kind] = self.errors.get(kind, 0) + count
        for reason, count in other.refusals.items():
            self.refusals[reason] = self.refusals.get(reason, 0) + count
        for reason, share in other.dispatched.items():
            self.dispatched[reason] = self.dispatched.get(reason, 0.0) + share
        for size, batch in other.batches.items():
            mine = self.batches.setdefault(size, BatchCount())
            mine.count += batch.count
            mine.seconds += batch.seconds
        for stage, histogram in other.stages.items():
            self.stages[stage].merge(histogram)
        if other.tokens is not None:
            self._tokens().merge(other.tokens)

    def _tokens(self) -> TokenSums:
        if self.tokens is None:
            self.tokens = TokenSums()
        return self.tokens

    def _add_error(self, record: Record) -> None:
        self.errors[record.error] = self.errors.get(record.error, 0) + 1
        self.failed_seconds += record.total
        if record.error == "refused":
            self.refusals[record.reason] = self.refusals.get(record.reason, 0) + 1
