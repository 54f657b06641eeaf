"""Tokens in records, windows, snapshots, log lines and spans; windows of tenants are bounded."""

from __future__ import annotations

import pytest

from pelton.records import Ledger, Record, TokenUsage, Window
from pelton.records.call_log import fields
from pelton.records.ledger import MOST_TENANTS, MOST_TENANTS_A_MINUTE, OTHER
from pelton.records.snapshot import Snapshot, Usage, merged, sums_of
from pelton.records.tokens import TOKEN
from pelton.records.traces import attributes, moments


def record(tenant: str = "", usage: TokenUsage | None = None, error: str = "", device: float = 0.5) -> Record:
    return Record(
        "m", "v" * 64, "openai", tenant, 1, 1, "", error, 10.0, 0.0, 0.1, 2.0, 2.2, device, "r", usage=usage
    )  # fmt: skip


USAGE = TokenUsage(64, 16, 21, 0.3, 0.2, 1.0, "stop", "echo")


def test_windows_add_up_the_tokens_of_generations_and_count_no_batches():
    one, other = Window(), Window()
    one.add([record(usage=USAGE), record(usage=USAGE, error="cancelled")])
    other.add([record(usage=TokenUsage(4, 0, 0)), record()])
    one.merge(other)
    tokens = one.tokens
    assert tokens is not None
    assert (tokens.generations, tokens.prompt, tokens.cached, tokens.completion) == (2, 128, 32, 42)
    assert tokens.histograms["first"].quantile(0.5) == pytest.approx(0.3, rel=0.05)
    assert tokens.histograms["each"].quantile(0.5) == pytest.approx(0.05, rel=0.05)
    assert round(tokens.histograms["outputs"].sum / TOKEN) == 42
    assert sum(batch.count for batch in one.batches.values()) == 1  # of the one that was no generation
    assert one.device_seconds == 2.0
    assert (one.answered, one.errors) == (3, {"cancelled": 1})


def test_a_window_without_generations_holds_none():
    window = Window()
    window.add([record()])
    assert window.tokens is None


@pytest.mark.parametrize("tokens", [1, 4, 16, 64, 1024, 4096])
def test_a_power_of_two_is_counted_in_its_own_bucket(tokens):
    window = Window()
    window.add([record(usage=TokenUsage(tokens, 0, 1, 0.1))])
    assert window.tokens is not None
    counts = window.tokens.histograms["inputs"].counts
    assert counts.nonzero()[0].tolist() == [8 * (tokens.bit_length() - 1)]


def test_a_snapshot_carries_tokens_to_another_worker():
    ledger = Ledger(lambda: 0.0)
    ledger.append(record("t", USAGE))
    ledger.fold()
    sums = sums_of(ledger.totals, 0.0)
    back = Snapshot.from_bytes(Snapshot("1", "3", 0, Usage(0.0, 0.0), sums).to_bytes())
    (window,) = merged([*back.sums, *back.sums]).values()
    assert window.tokens is not None
    assert (window.tokens.completion, window.tokens.histograms["each"].count) == (42, 2)


def test_invented_tenants_do_not_fill_the_memory():
    now = [0.0]
    ledger = Ledger(lambda: now[0])
    for minute in range(3):
        now[0] = minute * 60.0
        for number in range(MOST_TENANTS):
            ledger.append(record(f"{minute} {number}"))
        ledger.fold()
    assert len(ledger.totals) == MOST_TENANTS + 1
    assert [len(windows) for _, windows in ledger.minutes] == [MOST_TENANTS_A_MINUTE + 1] * 3
    assert sum(window.answered for key, window in ledger.totals.items() if key.tenant == OTHER) == 2 * MOST_TENANTS
    now[0] = 180.0
    ledger.append(record("0 5"))  # known in the totals, and one of the first of its minute
    ledger.fold()
    assert {key.tenant for key in ledger.minutes[-1][1]} == {"0 5"}


def test_log_lines_and_spans_tell_the_tokens():
    line = fields(record(usage=USAGE))
    assert (line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"]) == (64, 16, 21)
    assert (line["first_token_ms"], line["per_token_ms"], line["finish"]) == (300.0, 50.0, "stop")
    told = dict(attributes(record(usage=USAGE)))
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.usage.input_tokens"] == 64
    assert told["gen_ai.usage.output_tokens"] == 21
    assert told["gen_ai.usage.cache_read.input_tokens"] == 16
    assert told["gen_ai.response.model"] == "m:" + "v" * 12
    assert told["gen_ai.response.finish_reasons"] == ("stop",)
    assert ("first token", pytest.approx(10.0 - 2.2 + 0.3)) in moments(record(usage=USAGE))
    assert "prompt_tokens" not in fields(record())
    assert not [name for name in dict(attributes(record())) if name.startswith("gen_ai")]
