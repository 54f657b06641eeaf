import math

import msgspec
import numpy as np
import pytest

from pelton.bench import Plan, Target, render_html, render_table, run_bench
from pelton.bench.confidence import holds
from pelton.bench.load import arrivals
from pelton.bench.search import (
    MOST_CONFIRMS,
    MOST_PROBES,
    Ask,
    Seen,
    bracket,
    confirmed_rate,
    connections_for,
    lengthened,
    next_ask,
    verdict,
)
from pelton.errors import InvalidInput, NotReady

PLAN = Plan(step_seconds=4.0, confirm_seconds=10.0)


def batch_queue(times, fixed: float, per_row: float, largest: int) -> np.ndarray:
    """Latencies of natural batching: a free server takes all that waits, up to `largest`; S(b) = fixed + per_row * b."""
    latency, free, first = np.empty(len(times)), 0.0, 0
    while first < len(times):
        start = max(free, times[first])
        last = min(int(np.searchsorted(times, start, side="right")), first + largest)
        free = start + fixed + per_row * (last - first)
        latency[first:last] = free - times[first:last]
        first = last
    return latency


def replay(measure, capacity: float, plan: Plan = PLAN) -> list[Seen]:
    """Asks and answers until the search is done; `measure(ask, seed)` answers (requests, over)."""
    history: list[Seen] = []
    while ask := next_ask(plan, capacity, history):
        requests, over = measure(ask, len(history))
        history.append(Seen(ask.kind, ask.rate, requests, over, ask.rate * (1 - over / requests)))
        assert len(history) < 60
    return history


# The highest rates with p99 <= T come from long discrete-event simulations of natural batching, searched otherwise.
@pytest.mark.parametrize(
    ("fixed", "per_row", "largest", "target", "known"),
    [
        (0.005, 0.0005, 64, 0.05, 1463),
        (0.002, 0.001, 32, 0.05, 824),
        (0.010, 0.0001, 128, 0.05, 5471),
        (0.001, 0.004, 16, 0.1, 210),
    ],
)
def test_the_search_finds_the_known_capacity_of_a_batch_queue(fixed, per_row, largest, target, known) -> None:
    def measure(ask, seed):
        latency = batch_queue(arrivals(ask.rate, 0.0, ask.requests, seed), fixed, per_row, largest)
        return len(latency), int(np.count_nonzero(latency > target))

    history = replay(measure, largest / (fixed + per_row * largest))
    held = confirmed_rate(PLAN, history)
    assert held is not None
    assert 0.85 * known <= held <= 1.08 * known
    confirm = next(seen for seen in history if seen.kind == "confirm" and seen.rate == held)
    assert holds(confirm.requests, confirm.over)


def sharp(limit: float):
    """A server that holds everything up to a rate and nothing above."""
    return lambda ask, seed: (ask.requests, 0 if ask.rate <= limit else ask.requests)


@pytest.mark.parametrize("limit", [37.0, 700.0, 1_000.0, 3_100.0])
def test_the_answer_is_within_the_resolution(limit: float) -> None:
    history = replay(sharp(limit), 1_000.0)
    held = confirmed_rate(PLAN, history)
    assert limit / (1 + PLAN.resolution) <= held <= limit
    kinds = [seen.kind for seen in history]
    assert kinds == sorted(kinds, key=["probe", "confirm", "curve", "overload"].index)


def test_overload_is_asked_last_at_a_multiple_of_the_most_that_was_answered() -> None:
    history = replay(sharp(700.0), 1_000.0)
    assert history[-1].kind == "overload"
    assert history[-1].rate == pytest.approx(2_000.0)
    assert not any(seen.kind == "overload" for seen in replay(sharp(700.0), 1_000.0, Plan(overload=0)))


def test_the_curve_covers_the_fractions_of_the_rate_that_was_found() -> None:
    history = replay(sharp(700.0), 1_000.0)
    held = confirmed_rate(PLAN, history)
    for share in PLAN.fractions:
        assert any(abs(seen.rate - share * held) <= 0.11 * share * held for seen in history)


def test_a_server_that_never_holds_ends_without_an_answer() -> None:
    history = replay(sharp(0.0), 1_000.0)
    assert confirmed_rate(PLAN, history) is None
    assert {seen.kind for seen in history} == {"probe", "overload"}


def test_a_target_that_always_holds_ends_the_search() -> None:
    history = replay(sharp(math.inf), 1_000.0)
    assert len([seen for seen in history if seen.kind == "probe"]) <= MOST_PROBES
    assert 3_000 < confirmed_rate(PLAN, history) <= 4_000


def test_every_step_has_enough_requests_to_prove_something() -> None:
    for seen in replay(sharp(7.3), 10.0, Plan(longest_step_seconds=1_000)):
        assert seen.requests >= 459


def test_no_step_is_longer_than_the_longest() -> None:
    plan = Plan(longest_step_seconds=10.0)
    history = replay(sharp(7.0), 10.0, plan)
    assert all(seen.requests <= 10.0 * seen.rate for seen in history)
    assert confirmed_rate(plan, history) is None  # 70 requests prove nothing


def test_one_hiccup_does_not_decide() -> None:
    def hiccup_at_first(ask, seed):
        return (ask.requests, int(0.03 * ask.requests)) if seed == 0 else sharp(900.0)(ask, seed)

    assert confirmed_rate(PLAN, replay(hiccup_at_first, 1_000.0)) >= 900.0 / 1.05


def test_an_undecided_rate_is_tried_again_with_more_requests() -> None:
    first = next_ask(PLAN, 1_000.0, [])
    again = next_ask(PLAN, 1_000.0, [Seen("probe", first.rate, first.requests, int(0.02 * first.requests))])
    assert again.rate == first.rate
    assert again.requests >= 2 * first.requests


def test_a_hopeless_rate_is_not_tried_again() -> None:
    assert verdict(PLAN, [Seen("probe", 10.0, 1_000, 60)]) is False
    assert verdict(PLAN, [Seen("probe", 10.0, 1_000, 40)]) is None
    assert verdict(PLAN, [Seen("probe", 10.0, 1_000, 40), Seen("probe", 10.0, 1_000, 40)]) is False
    assert verdict(PLAN, [Seen("probe", 10.0, 1_000, 2)]) is True
    assert verdict(PLAN, [Seen("probe", 10.0, 0, 0)]) is False


def test_a_rate_above_one_that_failed_is_not_believed() -> None:
    seen = [Seen("probe", rate, 1_000, over) for rate, over in ((100.0, 0), (200.0, 500), (300.0, 0), (400.0, 500))]
    assert bracket(PLAN, seen) == (100.0, 200.0)


def test_what_fresh_requests_do_not_confirm_is_lowered() -> None:
    def lucky_search(ask, seed):
        limit = 900.0 if ask.kind == "probe" else 800.0
        return sharp(limit)(ask, seed)

    history = replay(lucky_search, 1_000.0)
    confirms = [seen.rate for seen in history if seen.kind == "confirm"]
    assert 2 <= len(confirms) <= MOST_CONFIRMS
    assert confirms == sorted(confirms, reverse=True)
    assert 750.0 < confirmed_rate(PLAN, history) <= 800.0


def test_given_rates_are_measured_instead_of_searched() -> None:
    plan = Plan(rates=(50.0, 500.0, 5_000.0))
    history = replay(sharp(600.0), 1_000.0, plan)
    assert [(seen.kind, seen.rate) for seen in history[:3]] == [("curve", 50.0), ("curve", 500.0), ("curve", 5_000.0)]
    assert confirmed_rate(plan, history) == 500.0


def test_steps_last_many_times_the_target() -> None:
    assert lengthened(Plan(step_seconds=2.0), 0.02).step_seconds == 2.0
    assert lengthened(Plan(step_seconds=2.0), 1.0).step_seconds == 20.0
    assert lengthened(Plan(longest_step_seconds=30.0), 9.0).confirm_seconds == 30.0


QUICK = Plan(
    callers=(1, 4),
    rates=(2_000.0,),
    warmup_seconds=0.0,
    step_seconds=0.05,
    confirm_seconds=0.05,
    longest_step_seconds=0.3,
    settle_seconds=0.01,
    command="pelton bench m",
)


def target(port: int, **changes) -> Target:
    fields = {"host": "127.0.0.1", "port": port, "path": "/m", "bodies": (b"1", b"22"), "p99_ms": 60_000.0, "name": "m"}
    return Target(**{**fields, **changes})


def answer(exchange) -> None:
    exchange.reply(headers="Server: fake/1\r\npelton-batch-rows: 2\r\nserver-timing: queue;dur=0, run;dur=0\r\n")


def test_a_bench_of_a_real_server_reports_what_was_sent(serving) -> None:
    lines: list[str] = []
    with serving(answer) as server:
        report = run_bench(target(server.port), QUICK, lines.append)
    assert [step.kind for step in report.steps] == ["closed", "closed", "curve", "overload"]
    curve = report.steps[2]
    assert (curve.requests, curve.ok, curve.over, curve.rows_mean) == (600, 600, 0, 2.0)
    assert report.held == 2_000.0
    assert (
        report.claim == "At 2,000 requests/s, p99 ≤ 60000 ms holds with 99 % confidence: 0 of 600 requests were over."
    )
    assert report.server == "fake/1"
    assert report.confirmed is curve
    assert report.claim in render_table(report)
    assert "fake/1" in render_html(report)
    assert report.command == "pelton bench m"
    assert len(lines) == 4


def test_a_search_against_a_real_server_ends_with_a_claim_that_its_requests_bear(serving) -> None:
    plan = Plan(
        callers=(4,),
        warmup_seconds=0.02,
        step_seconds=0.05,
        confirm_seconds=0.05,
        longest_step_seconds=0.1,
        settle_seconds=0.0,
    )
    with serving(answer) as server:
        report = run_bench(target(server.port), plan)
    confirms = [step for step in report.steps if step.kind == "confirm"]
    assert (report.held is not None) == any(holds(step.requests, step.over) for step in confirms)
    assert f"of {(report.confirmed or report.curve[0]).requests:,} requests" in report.claim


def test_the_connections_of_a_step_follow_from_its_rate_and_the_target() -> None:
    plan = Plan(max_connections=512, most_connections=8192, timeout_seconds=10.0)
    assert connections_for(plan, Ask("probe", 1_000.0, 4_000), 0.02) == 512
    assert connections_for(plan, Ask("probe", 1_000.0, 4_000), 1.0) == 2_000
    assert connections_for(plan, Ask("overload", 200.0, 4_000), 0.02) == 2_000
    assert connections_for(plan, Ask("overload", 200.0, 900), 0.02) == 900
    assert connections_for(plan, Ask("overload", 50_000.0, 100_000), 0.02) == 8192


class Holding:
    """A slow server: from the overload on it answers nothing before `enough` calls wait at once."""

    def __init__(self, enough: int) -> None:
        self.enough, self.overloaded = enough, False
        self.held: list = []
        self.asked: set = set()  # connections with a call of the overload

    def on_progress(self, line: str) -> None:
        self.overloaded |= line.startswith("curve")  # the step before it

    def __call__(self, exchange) -> None:
        if not self.overloaded:
            exchange.reply()
            return
        self.asked.add(exchange.connection)
        self.held.append(exchange)
        if len(self.held) >= self.enough:
            self.enough = 0
            for one in self.held:
                one.reply()
            self.held.clear()


def test_the_overload_of_a_slow_model_sends_what_comes_although_nothing_is_answered(serving) -> None:
    server = Holding(enough=100)
    plan = msgspec.structs.replace(QUICK, max_connections=8, timeout_seconds=20.0)
    with serving(server) as address:
        report = run_bench(target(address.port), plan, server.on_progress)
        assert address.most_open >= 100
    assert report.overload.connections >= len(server.asked) >= 100  # one that opens late may find nothing left to send
    assert (report.overload.timed_out, report.overload.failed) == (0, 0)
    assert report.overload.ok == report.overload.requests
    assert f"on up to {report.overload.connections} connections" in render_table(report).replace(",", "")


def test_an_overload_with_too_few_connections_is_said_to_be_one(serving) -> None:
    server = Holding(enough=16)
    plan = msgspec.structs.replace(QUICK, max_connections=8, most_connections=16, timeout_seconds=20.0)
    with serving(server) as address:
        report = run_bench(target(address.port), plan, server.on_progress)
        assert address.most_open == 16
    assert report.overload.connections == 16
    assert report.overload.starved > 0
    [note] = [note for note in report.notes if note.startswith("Overload")]
    assert "all 16 connections" in note
    assert note in render_html(report)


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(NotReady, match=r"http://127\.0\.0\.1:1/m"):
        run_bench(target(1), QUICK)


def test_a_body_that_the_server_refuses_stops_the_bench_with_its_words(serving) -> None:
    def picky(exchange) -> None:
        exchange.reply(200 if exchange.body == b"1" else 422, body=b'{"error": "x has 2 rows"}')

    with serving(picky) as server, pytest.raises(InvalidInput, match=r"422 to body 1.*x has 2 rows"):
        run_bench(target(server.port), QUICK)


def test_a_server_that_hangs_up_is_not_measured(serving) -> None:
    with serving(lambda exchange: exchange.hang_up()) as server, pytest.raises(NotReady, match="closed the connection"):
        run_bench(target(server.port), QUICK)


def test_a_server_that_fails_once_checked_is_not_measured(serving) -> None:
    with serving(lambda exchange: exchange.reply(200 if len(server.exchanges) <= 2 else 500)) as server:  # noqa: SIM117
        with pytest.raises(NotReady, match="answered no call"):
            run_bench(target(server.port), QUICK)
