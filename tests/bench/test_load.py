import asyncio
import itertools
import socket

import numpy as np
import pytest

from pelton.bench.load import BROKEN, TIMED_OUT, UNSENT, Pool, arrivals, closed_loop, open_loop, run
from pelton.bench.pacer import Pacer
from pelton.bench.results import summarize

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
PATIENT = 60.0  # seconds: nothing is over it
LOOPS = pytest.mark.parametrize("loop", [asyncio.run, run], ids=["asyncio", "uvloop"])


def at_once(exchange) -> None:
    exchange.reply()


async def load(server, count=200, *, limit=8, timeout=PATIENT, rate=20_000.0, over_after=PATIENT, give_up=False):
    pool = Pool("127.0.0.1", server.port, [REQUEST], limit=limit, timeout=timeout)
    try:
        times = arrivals(rate, 0.0, count, seed=3)
        return await open_loop(pool, times, 0.0, over_after=over_after, give_up=give_up)
    finally:
        await pool.close()


def test_arrivals_are_poisson_seeded_and_in_order() -> None:
    times = arrivals(1_000.0, 0.5, 20_000, seed=1)
    assert np.array_equal(times, arrivals(1_000.0, 0.5, 20_000, seed=1))
    assert not np.array_equal(times[:100], arrivals(1_000.0, 0.5, 20_000, seed=2)[:100])
    assert np.all(np.diff(times) >= 0)
    assert np.count_nonzero(times > 0.5) == 20_000
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1e-3, rel=0.03)
    assert gaps.std() == pytest.approx(1e-3, rel=0.03)  # an exponential's deviation is its mean


@LOOPS
def test_every_arrival_is_sent_once_and_answered(fake_server, loop) -> None:
    async def main():
        async with fake_server(at_once) as server:
            return await load(server), len(server.exchanges)

    window, received = loop(main())
    assert received == len(window.samples) == 200
    assert set(window.samples.status) == {200}
    step = summarize(window, "probe", PATIENT * 1e3, 0.99, offered=20_000.0)
    assert (step.ok, step.over, step.requests) == (200, 0, 200)


@LOOPS
def test_a_stall_is_charged_to_every_request_that_was_due_meanwhile(fake_server, loop) -> None:
    """Coordinated omission: one stalled answer, one connection, and the others wait behind it."""

    class Releasing(Pool):
        stalled = None
        released = 0.0
        submitted = 0

        def submit(self, intended: float) -> None:
            super().submit(intended)
            self.submitted += 1
            self.release_when_fifty_wait()

        def release_when_fifty_wait(self) -> None:
            if self.stalled is not None and self.submitted >= 50:
                self.released, stalled = self.clock(), self.stalled
                self.stalled = None
                stalled.reply()

    async def main():
        def stall_the_first(exchange) -> None:
            if len(server.exchanges) == 1:
                pool.stalled = exchange
                pool.release_when_fifty_wait()
            else:
                exchange.reply()

        async with fake_server(stall_the_first) as server:
            pool = Releasing("127.0.0.1", server.port, [REQUEST], limit=1, timeout=PATIENT)
            window = await open_loop(pool, arrivals(500.0, 0.0, 100, seed=5), 0.0, over_after=PATIENT, give_up=False)
            await pool.close()
            return window, pool.released

    window, released = loop(main())
    columns = window.samples.columns()
    stall = float(columns["latency"].max())
    due = columns["intended"] < released
    ended = columns["intended"] + columns["latency"]
    behind = due & (ended >= released)
    assert np.count_nonzero(behind) >= 50
    # From the moment of sending, those behind it look fast; from the intended time, they do not.
    assert np.count_nonzero(behind & (columns["intended"] + columns["latency"] - columns["sent"] >= stall / 2)) <= 1
    assert np.count_nonzero(columns["latency"] >= stall / 2) >= 10
    assert summarize(window, "probe", 1.0, 0.99).latency.p90 >= stall / 2 * 1e3


def test_a_closed_loop_keeps_its_callers_busy_and_counts_exactly(fake_server) -> None:
    """Time moves only when the server answers all four at once: 10 ms a round, 100 rounds in a second."""
    now = [1_000.0]

    async def main():
        waiting = []

        def answer_in_fours(exchange) -> None:
            waiting.append(exchange)
            if len(waiting) == 4:
                now[0] += 0.010
                for held in waiting:
                    held.reply(headers="pelton-batch-rows: 4\r\nserver-timing: queue;dur=1.5, run;dur=6\r\n")
                waiting.clear()

        async with fake_server(answer_in_fours) as server:
            pool = Pool("127.0.0.1", server.port, [REQUEST], limit=8, timeout=PATIENT, clock=lambda: now[0])
            window = await closed_loop(pool, 4, 0.9951, 0.0)
            await pool.close()
            return window

    step = summarize(asyncio.run(main()), "closed", 20.0, 0.99, callers=4)
    assert step.requests == step.ok == 400
    assert step.latency.p50 == pytest.approx(10.0)
    assert step.latency.p99 == pytest.approx(10.0)
    assert step.answered == pytest.approx(396 / 0.9951)  # the last round ends after the window
    assert step.rows_mean == 4.0
    assert step.stages.queue == pytest.approx(1.5)
    assert step.stages.run == pytest.approx(6.0)
    assert step.stages.wire == pytest.approx(2.5)
    assert step.stages.total == pytest.approx(step.latency.mean)


def test_statuses_are_counted_apart_and_refusals_have_their_own_time(fake_server) -> None:
    statuses = itertools.cycle([200, 200, 429, 503, 500])

    async def main():
        async with fake_server(lambda exchange: exchange.reply(next(statuses))) as server:
            return await load(server, 100)

    step = summarize(asyncio.run(main()), "probe", PATIENT * 1e3, 0.99)
    assert step.statuses == {200: 40, 429: 20, 503: 20, 500: 20}
    assert (step.ok, step.refused, step.failed, step.over) == (40, 40, 20, 60)
    assert 0 < step.refusal.p50 <= step.refusal.p99
    assert sum(count for _, count in step.bins) == 40
    assert step.bound_ms is None


@LOOPS
def test_a_server_that_closes_after_each_answer_gets_a_new_connection_each(fake_server, loop) -> None:
    async def main():
        async with fake_server(lambda exchange: exchange.reply(headers="Connection: close\r\n")) as server:
            return await load(server, 40), server.connections

    window, connections = loop(main())
    assert list(window.samples.status) == [200] * 40
    assert connections >= 40


@LOOPS
def test_a_connection_that_breaks_is_one_failure_and_the_others_go_on(fake_server, loop) -> None:
    async def main():
        def every_third_hangs_up(exchange) -> None:
            if len(server.exchanges) % 3 == 0:
                exchange.hang_up()
            else:
                exchange.reply()

        async with fake_server(every_third_hangs_up) as server:
            return await load(server, 90)

    window = loop(main())
    statuses = list(window.samples.status)
    assert statuses.count(200) == 60
    assert statuses.count(BROKEN) == 30
    assert summarize(window, "probe", PATIENT * 1e3, 0.99).failed == 30


def test_what_is_not_http_is_a_failure(fake_server) -> None:
    async def main():
        async with fake_server(lambda exchange: exchange.raw(b"nonsense\r\n\r\n")) as server:
            return await load(server, 10)

    assert set(asyncio.run(main()).samples.status) == {BROKEN}


def test_bytes_that_nobody_asked_for_end_the_connection_but_no_request(fake_server) -> None:
    async def main():
        def twice(exchange) -> None:
            exchange.reply()
            asyncio.get_running_loop().call_soon(exchange.raw, b"HTTP/1.1 408 Late\r\n\r\n")

        async with fake_server(twice) as server:
            return await load(server, 5, limit=1, rate=50.0)

    statuses = list(asyncio.run(main()).samples.status)
    assert len(statuses) == 5
    assert statuses[0] in (200, BROKEN)  # BROKEN only where both arrived in one piece


def test_a_body_that_ends_with_the_connection_is_an_answer(fake_server) -> None:
    async def main():
        def until_close(exchange) -> None:
            exchange.raw(b"HTTP/1.1 200 OK\r\n\r\nall of it")
            exchange.hang_up()

        async with fake_server(until_close) as server:
            return await load(server, 12)

    assert set(asyncio.run(main()).samples.status) == {200}


@LOOPS
def test_no_answer_is_a_timeout_with_at_least_its_time(fake_server, loop) -> None:
    async def main():
        async with fake_server(lambda exchange: None) as server:
            return await load(server, 12, limit=4, timeout=0.05)

    window = loop(main())
    assert set(window.samples.status) == {TIMED_OUT}
    assert min(window.samples.latency) >= 0.05
    assert summarize(window, "probe", 10.0, 0.99).timed_out == 12


def test_where_nothing_listens_every_request_fails() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))

        class Nobody:
            port = unused.getsockname()[1]

        window = asyncio.run(load(Nobody, 30, limit=4))
    assert list(window.samples.status) == [BROKEN] * 30


def test_connections_stay_within_their_limit(fake_server) -> None:
    async def main():
        held = []

        def answer_in_threes(exchange) -> None:
            held.append(exchange)
            if len(held) == 3:
                for each in held:
                    each.reply()
                held.clear()

        async with fake_server(answer_in_threes) as server:
            return await load(server, 30, limit=3), server.most_open

    window, most_open = asyncio.run(main())
    assert set(window.samples.status) == {200}
    assert most_open == 3


def test_a_hopeless_step_is_given_up_and_what_never_left_counts_as_over(fake_server) -> None:
    held = []

    class Crowded(Pool):
        def submit(self, intended: float) -> None:
            super().submit(intended)
            if held and self.under_way > 5:
                held.pop().reply(503)

    async def main():
        def refuse(exchange) -> None:
            if len(server.exchanges) == 20:  # the one that makes it hopeless: when others wait behind it
                held.append(exchange)
            else:
                exchange.reply(503)

        async with fake_server(refuse) as server:
            pool = Crowded("127.0.0.1", server.port, [REQUEST], limit=1, timeout=PATIENT)
            # 4 s of arrivals: it is hopeless long before
            window = await open_loop(pool, arrivals(100.0, 0.0, 400, seed=3), 0.0, over_after=PATIENT, give_up=True)
            await pool.close()
            return window

    window = asyncio.run(main())
    step = summarize(window, "probe", PATIENT * 1e3, 0.99)
    assert window.gave_up
    assert step.requests < 400
    assert step.unsent >= 4
    assert step.over == step.requests == step.refused + step.unsent
    assert set(window.samples.status) <= {503, UNSENT}


def test_a_step_that_must_be_whole_is_not_given_up(fake_server) -> None:
    async def main():
        async with fake_server(lambda exchange: exchange.reply(503)) as server:
            return await load(server, 300, give_up=False)

    assert len(asyncio.run(main()).samples) == 300


def test_bodies_are_sent_in_turn(fake_server) -> None:
    async def main():
        async with fake_server(at_once) as server:
            requests = [REQUEST.replace(b"{}", body) for body in (b"11", b"22", b"33")]
            pool = Pool("127.0.0.1", server.port, requests, limit=1, timeout=PATIENT)
            await open_loop(pool, arrivals(5_000.0, 0.0, 7, seed=1), 0.0, over_after=PATIENT, give_up=False)
            await pool.close()
            return [exchange.body for exchange in server.exchanges]

    assert asyncio.run(main()) == [b"11", b"22", b"33", b"11", b"22", b"33", b"11"]


def test_samples_of_the_settling_time_are_left_out(fake_server) -> None:
    async def main():
        async with fake_server(at_once) as server:
            pool = Pool("127.0.0.1", server.port, [REQUEST], limit=8, timeout=PATIENT)
            window = await open_loop(pool, arrivals(2_000.0, 0.1, 50, seed=1), 0.1, over_after=PATIENT, give_up=False)
            await pool.close()
            return window

    window = asyncio.run(main())
    assert len(window.samples) > 50
    assert summarize(window, "probe", PATIENT * 1e3, 0.99).requests == 50


@LOOPS
def test_the_pacer_never_wakes_early(loop) -> None:
    async def main():
        running = asyncio.get_running_loop()
        woken = running.create_future()
        pacer = Pacer(running, lambda: woken.set_result(clock()), clock)
        when = clock() + 0.003
        pacer.arm(when)
        try:
            return await woken - when
        finally:
            pacer.close()

    import time

    clock = time.perf_counter
    assert loop(main()) >= -1e-6
