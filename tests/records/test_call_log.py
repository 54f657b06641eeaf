from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from pelton.records import Ledger, Record
from pelton.records.call_log import CallLog
from pelton.records.trace_context import parse
from pelton.testing import ManualClock

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Timers:
    """An event loop's `call_later` on a clock that stands still."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self.waiting.append((self.clock() + seconds, what))

    def advance(self, seconds: float) -> None:
        now = self.clock.advance(seconds)
        due = [timer for timer in self.waiting if timer[0] <= now]
        self.waiting = [timer for timer in self.waiting if timer[0] > now]
        for _, what in due:
            what()


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, dict[str, Any]]]]:
    """The lines so far: (level, fields of the call)."""
    caplog.set_level(logging.DEBUG, "pelton.records.call_log")
    return lambda: [(line.levelname, line.__dict__["call"]) for line in caplog.records]


def record(error: str = "", **fields: Any) -> Record:
    values: dict[str, Any] = {
        "model": "m", "version": "0123456789abcdef", "protocol": "native", "tenant": "", "rows": 2, "batch_rows": 5,
        "reason": "idle", "at": 10.0, "prepare": 0.0, "queue": 0.001, "run": 0.002, "total": 0.004, "device": 0.0008,
        "request_id": "r-1", "trace": TRACE,
    }  # fmt: skip
    return Record(error=error, **{**values, **fields})


def test_an_error_of_the_models_making_is_one_line_with_the_fields_of_its_call(timers, lines):
    CallLog(timers.later)([record("model_failed")])
    assert lines() == [
        (
            "ERROR",
            {
                "request_id": "r-1",
                "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
                "model": "m",
                "version": "0123456789ab",
                "protocol": "native",
                "rows": 2,
                "batch_rows": 5,
                "reason": "idle",
                "queue_ms": 1.0,
                "run_ms": 2.0,
                "total_ms": 4.0,
                "error": "model_failed",
            },
        )
    ]


def test_answers_and_errors_of_callers_have_no_line_of_their_own(timers, lines):
    CallLog(timers.later)([record(), record("invalid"), record("not_found"), record("cancelled"), record("deadline")])
    assert lines() == []
    assert timers.waiting == []


def test_the_eleventh_error_of_a_second_is_counted_and_told_when_the_second_is_over(timers, lines):
    calls = CallLog(timers.later)
    calls([record("model_failed")] * 25)
    assert len(lines()) == 10
    calls([record("model_failed")] * 5)
    assert len(lines()) == 10
    timers.advance(1.0)
    assert lines()[10:] == [("ERROR", {"model": "m", "error": "model_failed", "calls": 20})]


def test_the_next_second_has_lines_again_and_a_second_without_more_errors_ends_silently(timers, lines):
    calls = CallLog(timers.later)
    calls([record("model_failed")] * 3)
    timers.advance(1.0)
    calls([record("model_failed")] * 3)
    timers.advance(1.0)
    assert [call.get("calls") for _, call in lines()] == [None] * 6
    assert timers.waiting == []


def test_each_model_and_each_kind_has_its_own_bound(timers, lines):
    CallLog(timers.later)(
        [record("model_failed")] * 11 + [record("internal")] * 11 + [record("internal", model="n")] * 11
    )
    assert len(lines()) == 30


def test_refusals_are_summed_up_once_a_second_and_per_model(timers, lines):
    calls = CallLog(timers.later)
    calls([record("refused", reason="overloaded")] * 300 + [record("refused", reason="not_ready", model="n")])
    calls([record("refused", reason="late")] * 2)
    assert lines() == []
    timers.advance(1.0)
    assert lines() == [
        ("WARNING", {"model": "m", "error": "refused", "calls": 302, "reasons": {"overloaded": 300, "late": 2}}),
        ("WARNING", {"model": "n", "error": "refused", "calls": 1, "reasons": {"not_ready": 1}}),
    ]
    timers.advance(5.0)
    assert len(lines()) == 2


def test_calls_slower_than_the_limit_are_warned_of_and_bounded(timers, lines):
    calls = CallLog(timers.later, slow_ms=100.0)
    calls([record(total=0.1)] + [record(total=0.1001)] * 12)
    assert [level for level, _ in lines()] == ["WARNING"] * 10
    timers.advance(1.0)
    assert lines()[-1] == ("WARNING", {"model": "m", "error": "", "calls": 2})


def test_without_a_limit_no_call_is_slow(timers, lines):
    CallLog(timers.later)([record(total=3600.0)])
    assert lines() == []


def test_the_access_log_has_exactly_one_line_for_every_call(timers, lines):
    calls = CallLog(timers.later, slow_ms=100.0, every=True, per_period=1)
    calls(
        [
            record(),
            record("invalid"),
            record("refused"),
            record("model_failed"),
            record("model_failed"),
            record(total=1.0),
        ]
    )
    assert [level for level, _ in lines()] == ["INFO", "INFO", "INFO", "ERROR", "INFO", "WARNING"]


def test_closing_tells_what_was_not_told_yet(timers, lines):
    calls = CallLog(timers.later)
    calls([record("refused", reason="draining")])
    calls.close()
    assert lines() == [("WARNING", {"model": "m", "error": "refused", "calls": 1, "reasons": {"draining": 1}})]


def test_the_message_itself_says_which_model_and_what(timers, caplog):
    CallLog(timers.later)([record("internal")])
    assert caplog.messages == ["model m: internal, 2 rows, 4.0 ms (request r-1)"]


def test_a_call_for_a_model_that_nobody_serves_has_a_line_too(timers, caplog):
    caplog.set_level(logging.INFO, "pelton.records.call_log")
    CallLog(timers.later, every=True)([record("not_found", model="", version="", request_id="", trace="")])
    assert caplog.messages == ["model -: not_found, 2 rows, 4.0 ms (request -)"]


def test_the_ledger_hands_its_lots_to_the_log(timers, lines):
    ledger = Ledger(timers.clock, [CallLog(timers.later, every=True)])
    ledger.append(record())
    assert lines() == []
    ledger.fold()
    assert [call["request_id"] for _, call in lines()] == ["r-1"]


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
        "00-4bf92f3577b34da6a3ce929d0e0e47\n6-00f067aa0ba902b7-01",
    ],
)
def test_a_malformed_traceparent_counts_as_none(header):
    assert parse(header) is None


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("ff", True)])
def test_only_the_first_flag_of_a_traceparent_says_sampled(flags, sampled):
    parent = parse(f"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}")
    assert parent == ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled)
