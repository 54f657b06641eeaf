"""Windows are sums: whatever way records are split and in whatever order the parts are added, the result is one."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.records import Histogram, Ledger, Record, Window
from pelton.records.histogram import upper_edge
from pelton.records.ledger import FOLD_AT, MINUTES_KEPT
from pelton.testing import ManualClock


def record(dice, model="m", tenant=""):
    """Times are sixteenths of seconds, shares are binary fractions: sums are exact in any order."""
    error = dice.choice(["", "", "", "refused", "invalid"])
    rows, batch = dice.choice([(1, 1), (1, 8), (4, 8), (16, 16), (1024, 1024)])
    sixteenth = lambda: dice.randrange(1, 64) / 16  # noqa: E731
    reason = "overloaded" if error == "refused" else dice.choice(["full", "idle"])
    return Record(
        model, "v", "v2", tenant, rows, batch, reason, error,
        sixteenth(), dice.choice([0.0, 0.25]), sixteenth(), sixteenth(), sixteenth(), sixteenth(),
    )  # fmt: skip


def folded(records):
    window = Window()
    window.add(records)
    return window


def added(*windows):
    total = Window()
    for window in windows:
        total.merge(window)
    return total


def facts(window):
    """Everything that a window holds, comparable."""
    return (
        window.answered, window.rows, window.device_seconds, window.failed_seconds,
        window.errors, window.refusals, window.dispatched,
        {size: (batch.count, batch.seconds) for size, batch in window.batches.items()},
        {stage: (histogram.counts.tolist(), histogram.sum) for stage, histogram in window.stages.items()},
        window.last_answer,
    )  # fmt: skip


@given(st.integers(0, 2**32), st.lists(st.integers(0, 60), max_size=3))
def test_windows_split_anywhere_add_up_to_the_same(seed, cuts):
    dice = random.Random(seed)
    records = [record(dice) for _ in range(60)]
    bounds = [0, *sorted(cuts), 60]
    parts = [folded(records[a:b]) for a, b in itertools.pairwise(bounds)]
    whole = facts(folded(records))
    assert facts(added(*parts)) == whole
    assert facts(added(*reversed(parts))) == whole
    assert facts(added(parts[0], added(*parts[1:]))) == whole


def test_a_window_counts_what_it_was_given():
    window = folded([
        Record("m", "v", "v2", "", 2, 8, "full", "", 5.0, 0.0, 0.5, 1.0, 2.0, 0.25),
        Record("m", "v", "v2", "", 6, 8, "full", "", 5.0, 0.5, 0.5, 1.0, 2.0, 0.75),
        Record("m", "v", "v2", "", 1, 0, "late", "refused", 6.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        Record("m", "v", "v2", "", 1, 1, "full", "model_failed", 6.0, 0.0, 0.0, 0.5, 0.75, 0.5),
    ])  # fmt: skip
    assert window.failed_seconds == 1.75
    assert (window.answered, window.rows, window.device_seconds, window.last_answer) == (2, 8, 1.0, 5.0)
    assert window.errors == {"refused": 1, "model_failed": 1}
    assert window.refusals == {"late": 1}
    assert window.dispatched == {"full": 1.0}  # one batch, of which both calls were a part
    assert window.batches[8].count == 1.0
    assert window.stages["prepare"].count == 1
    assert window.stages["total"].count == 2


@given(st.lists(st.floats(1e-6, 1900), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_off_by_at_most_half_a_bucket(seconds, q):
    histogram = Histogram()
    histogram.add(seconds)
    true = sorted(seconds)[max(0, int(np.ceil(q * len(seconds))) - 1)]
    assert histogram.quantile(q) == pytest.approx(true, rel=0.0455)


def test_durations_beyond_both_ends_are_counted():
    histogram = Histogram()
    histogram.add([0.0, -1e-3, 1e9])
    assert histogram.count == 3
    assert histogram.quantile(0.1) <= 1e-6
    assert Histogram().quantile(0.99) == 0.0


@given(st.lists(st.floats(1e-6, 100), max_size=100))
def test_the_buckets_for_prometheus_only_grow_and_are_true(seconds):
    histogram = Histogram()
    histogram.add(seconds)
    pairs = histogram.cumulative()
    assert [count for _, count in pairs] == sorted(count for _, count in pairs)
    for edge, count in pairs:
        sure = sum(s <= edge * (1 - 1e-9) for s in seconds)
        assert sure <= count <= sum(s <= edge * (1 + 1e-9) for s in seconds)


def test_edges_double_every_eight_buckets():
    assert upper_edge(8) == pytest.approx(2 * upper_edge(0))


def test_folding_hands_every_record_on_once_in_order_and_keys_by_who_asked():
    got = []
    ledger = Ledger(ManualClock(), [got.extend])
    dice = random.Random(1)
    records = [record(dice, model=dice.choice("ab"), tenant=dice.choice(["", "t"])) for _ in range(500)]
    for i, one in enumerate(records):
        ledger.append(one)
        if i % 70 == 69:
            ledger.fold()
    ledger.fold()
    ledger.fold()
    assert got == records
    assert len(ledger.totals) == 4
    for key, window in ledger.totals.items():
        mine = [r for r in records if (r.model, r.version, r.protocol, r.tenant) == key]
        assert facts(window) == facts(folded(mine))


def test_minutes_roll_over_and_only_an_hour_is_kept():
    clock = ManualClock()
    ledger = Ledger(clock)
    dice = random.Random(1)
    for _ in range(3 * MINUTES_KEPT):
        ledger.append(record(dice))
        ledger.fold()
        clock.advance(30.0)
    assert len(ledger.minutes) == MINUTES_KEPT
    numbers = [number for number, _ in ledger.minutes]
    assert numbers == list(range(numbers[0], numbers[0] + MINUTES_KEPT))
    counts = [sum(w.answered + sum(w.errors.values()) for w in windows.values()) for _, windows in ledger.minutes]
    assert counts == [2] * MINUTES_KEPT


def test_a_sink_that_fails_costs_neither_windows_nor_other_sinks():
    def broken(records):
        raise OSError("no route to the collector")

    got = []
    ledger = Ledger(ManualClock(), [broken, got.extend])
    ledger.append(record(random.Random(1)))
    ledger.fold()
    assert len(got) == 1
    assert ledger.totals


def test_a_lot_is_full_after_a_bounded_number_of_records():
    ledger = Ledger(ManualClock())
    one = record(random.Random(1))
    for _ in range(FOLD_AT - 1):
        ledger.append(one)
    assert not ledger.full()
    ledger.append(one)
    assert ledger.full()
    ledger.fold()
    assert not ledger.full()


def test_a_window_stays_small_whatever_sizes_callers_send():
    """Mutant: every size its own entry. Then callers choose how much memory the metrics take."""
    window = Window()
    for rows in range(1, 5000):
        window.add([Record("m", "v", "v2", "", rows, rows, "pieces", "", 1.0, 0.0, 0.0, 0.1, 0.1, 0.1)])
    assert len(window.batches) <= 128 + 16
    assert sum(batch.count for batch in window.batches.values()) == pytest.approx(4999)
