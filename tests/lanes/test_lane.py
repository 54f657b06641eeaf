"""Every generation ends exactly once, with one record, its own tokens, and its share of the engine's time."""

from __future__ import annotations

import asyncio
import random

import pytest

from pelton.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    NotReady,
    Overloaded,
    TooLarge,
    Unsupported,
)
from pelton.packages import Slo
from pelton.runtimes.language import Speed
from pelton.runtimes.step_engine import GrammarSpec, Sampling


@pytest.mark.parametrize("fair", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
def test_after_hundreds_of_random_cancellations_nothing_is_left_and_all_others_are_right(run, fair, seed):
    async def scenario(house):
        dice = random.Random(seed)
        served = house.serve(streams=4, fair=fair, speed=Speed(1e6, {1: 1e-6, 4: 1e-6}), prefill_tokens=64)
        cancelled = 0
        for turn in range(1000):
            prompt = tuple(dice.randrange(1000) for _ in range(dice.choice([1, 3, 20, 90])))
            how = {"tenant": dice.choice(["a", "a", "a", "b", "c", ""]), "priority": dice.choice([0, 0, 0, 1, -1])}
            ask = house.ask(served, prompt, dice.choice([1, 2, 8, 30]), **how)
            if dice.random() < 0.15:
                ask.on_heard = lambda ask: (
                    ask.hang_up(satisfied=True) if len(ask.tokens) > 2 and not ask.hung_up else None
                )
            if dice.random() < 0.3:
                await asyncio.sleep(0)
            victims = [one for one in house.asks[-40:] if not one.ended.done()]
            if victims and dice.random() < 0.6:
                dice.choice(victims).hang_up()
                cancelled += 1
            if turn % 100 == 99:
                await asyncio.sleep(0.01)
        await house.idle()
        house.check(served)
        assert cancelled > 400
        words = {record.error for record in house.records}
        assert {"", "cancelled"} <= words <= {"", "cancelled", "refused"}
        answered = [ask for ask in house.asks if ask.errors == [None]]
        assert len(answered) > 100
        assert all(len(ask.tokens) == ask.generation.max_tokens for ask in answered)

    run(scenario)


def test_a_hundred_hang_ups_in_mid_stream_free_their_places_at_the_next_step(run):
    async def scenario(house):
        served = house.serve(streams=4, seconds=0.001)
        for _ in range(25):
            asks = [house.ask(served, (1, 2), 3000) for _ in range(4)]
            await house.until(lambda asks=asks: all(len(ask.tokens) > 1 for ask in asks))
            step = served.lane._engine.steps
            for ask in asks:
                ask.hang_up()
            await house.until(lambda: not served.lane.running)
            assert served.lane._engine.steps <= step + 2
        await house.idle()
        house.check(served)
        assert [record.error for record in house.records] == ["cancelled"] * 100
        assert all(record.usage.completion > 1 for record in house.records)

    run(scenario)


def test_the_shares_of_all_generations_are_the_engines_time(run):
    async def scenario(house):
        served = house.serve(streams=3, seconds=0.001, prefill_tokens=16)
        asks = [house.ask(served, range(1, 10 * (i + 1)), 4 + i, tenant=str(i % 2)) for i in range(9)]
        await house.until(lambda: len(asks[0].tokens) > 1)
        asks[1].hang_up()
        await house.idle()
        house.check(served)
        lane = served.lane
        assert lane.busy_seconds == pytest.approx(lane._engine.steps * 0.001, rel=0.2)
        assert sum(record.device for record in house.records) == pytest.approx(lane.busy_seconds)
        assert all(record.device > 0 for record in house.records if record.usage.completion)

    run(scenario)


def test_a_receipt_says_how_long_each_part_took(run):
    async def scenario(house):
        served = house.serve(streams=1, seconds=0.002)
        first, second = house.ask(served, (1, 2, 3), 5), house.ask(served, (4, 5), 3)
        await house.idle()
        receipt, other = first.generation.receipt, second.generation.receipt
        assert (receipt.engine, receipt.prompt_tokens, receipt.completion_tokens) == ("chain", 3, 5)
        assert receipt.decode >= 4 * 0.002
        assert receipt.prefill > 0
        assert other.queue > receipt.decode
        record = house.records[0]
        assert record.usage.first == pytest.approx(receipt.queue + receipt.prefill, abs=1e-4)
        assert record.total >= record.queue + receipt.prefill + receipt.decode - 1e-4
        assert record.usage.per_token == pytest.approx(receipt.decode / 4)
        assert record.usage.finish == "length"

    run(scenario)


# ---- who gets a place


@pytest.mark.parametrize("fair", [True, False])
def test_a_flood_of_one_tenant_holds_no_other_up(run, fair):
    async def scenario(house):
        served = house.serve(streams=8, fair=fair, seconds=0.001)
        engine = served.lane._engine
        flood = [house.ask(served, (1, i), 200, tenant="flood") for i in range(64)]
        await house.until(lambda: len(flood[0].tokens) > 2)
        lone = house.ask(served, (9, 9), 20, tenant="lone")
        before = engine.steps
        if fair:  # it is handed over although all places are taken: the engine itself shares its steps
            assert "lone" in [request.tenant for request in engine.added][-3:]
            lone.hang_up()
        else:
            await lone.ended
            assert engine.steps - before <= 20 + 3
        for ask in flood:
            ask.hang_up()
        await house.idle()
        house.check(served)

    run(scenario)


def test_a_generation_that_gave_up_its_place_goes_on_where_it_was(run):
    async def scenario(house):
        served = house.serve(streams=2, seconds=0.0005)
        flood = [house.ask(served, (1, i), 60, tenant="flood") for i in range(4)]
        await house.until(lambda: len(flood[1].tokens) > 10)
        for i in range(5):
            await house.ask(served, (5, i), 5, tenant="lone").ended
        await house.idle()
        house.check(served)
        again = [request for request in served.lane._engine.added if len(request.prompt) > 2]
        assert again
        assert all(request.max_tokens == 60 - (len(request.prompt) - 2) for request in again)
        assert all(ask.errors == [None] and len(ask.tokens) == ask.generation.max_tokens for ask in house.asks)
        assert all(record.usage.prompt == 2 for record in house.records)

    run(scenario)


def test_memory_is_shared_as_places_are(run):
    async def scenario(house):
        served = house.serve(streams=8, seconds=0.001, kv_tokens=1000)
        engine = served.lane._engine
        flood = [house.ask(served, (1, i), 400, tenant="flood") for i in range(6)]
        await house.until(lambda: len(flood[0].tokens) > 2)
        assert (
            len([request for request in engine.added if request.tenant == "flood"]) <= 2 + 2
        )  # those that fit, margin
        lone = house.ask(served, (9, 9), 300, tenant="lone")
        before = engine.steps
        await lone.ended
        assert lone.errors == [None]
        assert engine.steps - before <= 300 + 3
        for ask in flood:
            ask.hang_up()
        await house.idle()
        house.check(served)
        assert served.lane._reserved == 0

    run(scenario)


def test_a_generation_with_a_grammar_keeps_its_place(run):
    async def scenario(house):
        served = house.serve(streams=1, seconds=0.0005)
        how = {"grammar": GrammarSpec("json_object"), "tenant": "flood"}
        flood = [house.ask(served, (1,), 40, **how), house.ask(served, (2,), 40, **how)]
        await house.until(lambda: len(flood[0].tokens) > 2)
        house.ask(served, (3,), 2, tenant="lone")
        await house.idle()
        house.check(served)
        assert all(len(request.prompt) == 1 for request in served.lane._engine.added)

    run(scenario)


def test_the_more_urgent_goes_first_and_equals_in_their_order(run):
    async def scenario(house):
        served = house.serve(streams=1)
        engine = served.lane._engine
        engine.pause()
        asks = [house.ask(served, (0,), 2) for _ in range(2)]  # one place, and one that the engine has ready
        asks += [house.ask(served, (i,), 2, priority=priority) for i, priority in [(1, 0), (2, 5), (3, 0), (4, 5)]]
        engine.resume()
        await house.idle()
        assert [request.prompt for request in engine.added[2:]] == [(2,), (4,), (1,), (3,)]

    run(scenario)


def test_tenants_are_served_by_their_weights(run):
    async def scenario(house):
        served = house.serve(streams=1)
        house.weights["big"] = 3.0
        for i in range(40):
            for tenant in ("big", "small"):
                house.ask(served, (i,), 10, tenant=tenant)
        await house.idle()
        ended = sorted(house.asks, key=lambda ask: ask.at[-1])
        first = [ask.generation.tenant for ask in ended[:40]]
        assert 26 <= first.count("big") <= 34

    run(scenario)


# ---- what is not taken


def test_what_would_come_too_late_is_refused_at_once_and_only_to_the_tenant_that_floods(run):
    async def scenario(house):
        slo = Slo(ttft_ms=500.0)
        served = house.serve(streams=2, slo=slo, speed=Speed(1e4, {1: 0.02, 2: 0.02}), seconds=0.02)
        served.lane.speed.ended(100)
        served.lane._engine.pause()
        flood = [house.ask(served, (1,), 100, tenant="flood") for _ in range(10)]
        refused = [ask for ask in flood if ask.errors]
        assert refused
        for ask in refused:
            assert isinstance(ask.errors[0], Overloaded)
            assert ask.errors[0].retry_after > 0
        lone = house.ask(served, (1,), 100, tenant="lone")
        assert not lone.errors
        for ask in [*flood, lone]:
            if not ask.errors:
                ask.hang_up()
        served.lane._engine.resume()
        await house.idle()
        house.check(served)
        assert {record.reason for record in house.records if record.error == "refused"} == {"overloaded"}

    run(scenario)


def test_a_deadline_that_cannot_hold_is_refused_at_once(run):
    async def scenario(house):
        served = house.serve(streams=2, speed=Speed(1e6, {1: 0.01, 2: 0.01}), seconds=0.01)
        served.lane.speed.ended(200)
        house.ask(served, (1,), 30)
        hopeless = house.ask(served, (2,), 500, timeout=0.5)
        fine = house.ask(served, (3,), 5, timeout=5.0)
        assert isinstance(hopeless.errors[0], Overloaded)
        assert "deadline" in str(hopeless.errors[0])
        await house.idle()
        assert fine.errors == [None]
        house.check(served)

    run(scenario)


def test_the_queue_has_an_end_and_a_newcomer_still_a_place_in_it(run):
    async def scenario(house):
        served = house.serve(streams=1, speed=Speed(1e9, {1: 1e-9}))
        served.lane._engine.pause()
        flood = [house.ask(served, (1,), 1, tenant="flood") for _ in range(1500)]
        taken = [ask for ask in flood if not ask.errors]
        assert 500 <= len(taken) <= 520
        assert "wait already" in str(flood[-1].errors[0])
        assert not house.ask(served, (1,), 1, tenant="lone").errors
        served.lane._engine.resume()
        await house.idle()
        house.check(served)

    run(scenario)


@pytest.mark.parametrize(
    ("prompt", "most", "how", "facts", "error", "word"),
    [
        ((), 1, {}, {}, InvalidInput, "empty"),
        ((1,), 0, {}, {}, InvalidInput, "1 or more"),
        ((1,) * 90, 20, {}, {"context": 100}, TooLarge, "context"),
        ((1,) * 90, 20, {}, {"kv_tokens": 100}, TooLarge, "memory"),
        ((1,), 1, {"grammar": GrammarSpec("json_object")}, {"grammar": False}, Unsupported, "grammar"),
        ((1,), 1, {"sampling": Sampling(bias=((1, 2.0),))}, {"bias": False}, Unsupported, "bias"),
        ((1,), 1, {"sampling": Sampling(presence=1.0)}, {"penalties": False}, Unsupported, "penalties"),
        ((1,), 1, {"sampling": Sampling(logprobs=9)}, {"top_logprobs": 5}, Unsupported, "9 logprobs"),
        ((1,), 1, {"prompt_logprobs": True}, {"prompt_logprobs": False}, Unsupported, "prompt"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_and_said(run, prompt, most, how, facts, error, word):
    async def scenario(house):
        served = house.serve(**facts)
        ask = house.ask(served, prompt, most, **how)
        assert isinstance(ask.errors[0], error)
        assert word in str(ask.errors[0])
        await house.idle()
        house.check(served)
        assert not served.lane._engine.added

    run(scenario)


# ---- time


def test_a_deadline_ends_a_running_generation_and_one_that_waits(run):
    async def scenario(house):
        served = house.serve(streams=1, seconds=0.002)
        running = house.ask(served, (1,), 3000, timeout=0.2)
        others = [house.ask(served, (2,), 3000) for _ in range(2)]
        waiting = house.ask(served, (3,), 1, timeout=0.15)
        await running.ended
        await waiting.ended
        assert isinstance(running.errors[0], DeadlineExceeded)
        assert len(running.tokens) > 3
        assert isinstance(waiting.errors[0], DeadlineExceeded)
        for ask in others:
            ask.hang_up()
        await house.idle()
        house.check(served)
        assert sorted(record.error for record in house.records) == ["cancelled"] * 2 + ["deadline"] * 2

    run(scenario)


def test_what_was_accepted_is_finished_before_a_lane_is_drained(run):
    async def scenario(house):
        served = house.serve(streams=2, seconds=0.001)
        asks = [house.ask(served, (i,), 20) for i in range(6)]
        async with asyncio.timeout(20):
            drained = asyncio.ensure_future(served.lane.drained())
            await asyncio.sleep(0)
            asks.append(house.ask(served, (7,), 20))  # it had found this version before
            assert not drained.done()
            await drained
        assert all(ask.errors == [None] for ask in asks)
        late = house.ask(served, (1,), 2)
        assert isinstance(late.errors[0], NotReady)
        await house.idle()
        house.check(served)

    run(scenario)


def test_a_version_stays_until_all_callers_that_have_found_it_have_asked(run):
    async def scenario(house):
        served = house.serve(streams=2, seconds=0.001)
        ready = asyncio.Event()

        async def caller(leaves):
            await ready.wait()  # its text becomes tokens meanwhile
            return None if leaves else house.ask(served, (7,), 20)

        callers = [asyncio.ensure_future(caller(leaves)) for leaves in (False, True)]
        for task in callers:
            served.expect(task)
        async with asyncio.timeout(20):
            drained = asyncio.ensure_future(served.scheduler.drained())
            for _ in range(10):
                await asyncio.sleep(0)
            assert not drained.done()
            ready.set()
            ask = await callers[0]
            await drained
        assert ask.errors == [None]
        assert served.scheduler.expected == 0

    run(scenario)


# ---- the engine ends


def test_when_the_engine_ends_what_runs_fails_what_waits_stays_and_readiness_tells(run):
    async def scenario(house):
        served = house.serve(streams=2, seconds=0.001)
        engine, states = served.lane._engine, house.engine.directory.states
        asks = [house.ask(served, (i,), 50) for i in range(8)]
        await house.until(lambda: len(asks[1].tokens) > 3)
        assert states() == {}
        engine.kill()
        failed = [ask for ask in asks if ask.errors]
        assert 2 <= len(failed) <= 4
        for ask in failed:
            assert isinstance(ask.errors[0], ModelFailed)
            assert "the engine ended (killed by signal 9) and is started again" in str(ask.errors[0])
        assert "killed by signal 9" in states()["m"]
        late = house.ask(served, (9,), 5)
        assert isinstance(late.errors[0], NotReady)
        engine.revive()
        assert states() == {}
        await house.idle()
        house.check(served)
        assert [ask.errors for ask in asks if ask not in failed] == [[None]] * (8 - len(failed))
        assert served.lane.restarts == 1

    run(scenario)


def test_what_waits_for_an_engine_that_does_not_come_back_ends_with_its_deadline(run):
    async def scenario(house):
        served = house.serve(streams=1)
        engine = served.lane._engine
        engine.pause()
        asks = [house.ask(served, (i,), 5, timeout=0.1) for i in range(5)]
        assert not any(ask.errors for ask in asks)
        engine.kill()
        ended = [await ask.ended for ask in asks]
        assert {type(error) for error in ended} == {ModelFailed, DeadlineExceeded}
        house.engine.hang_up(served, asks[0].generation)  # nobody is there any more
        await house.idle()
        house.check(served)

    run(scenario)


def test_a_caller_whose_code_raises_does_not_harm_the_others(run):
    async def scenario(house):
        served = house.serve(streams=4)
        asks = [house.ask(served, (i,), 10) for i in range(4)]

        def fails(ask):
            raise RuntimeError("no")

        asks[2].on_heard = fails
        await house.idle()
        assert [type(ask.errors[0]) for ask in asks] == [type(None), type(None), ModelFailed, type(None)]
        house.check(served)

    run(scenario)


def test_a_request_that_the_engine_refuses_fails_alone(run):
    async def scenario(house):
        served = house.serve(streams=2)
        served.lane._engine.engine.options = served.lane._engine.options.__class__(refuse_token=7)
        good, bad = house.ask(served, (1,), 3), house.ask(served, (7,), 3)
        await house.idle()
        assert good.errors == [None]
        assert "token 7" in str(bad.errors[0])
        house.check(served)

    run(scenario)


def test_two_language_models_do_not_meet(run):
    async def scenario(house):
        one, two = house.serve("one", streams=2), house.serve("two", streams=2)
        asks = [house.ask(dict(enumerate((one, two)))[i % 2], (i,), 12) for i in range(20)]
        await house.idle()
        house.check(one, two)
        assert all(ask.errors == [None] for ask in asks)
        assert {record.model for record in house.records} == {"one", "two"}

    run(scenario)


# ---- as any other model


def test_rows_of_texts_are_answered_with_texts_in_one_record(run, tools):
    async def scenario(house):
        served = house.serve(streams=2)
        call, ended = house.submit(served, ["ab", "cd", "ab"], request_id="r", protocol="native")
        await asyncio.wait_for(ended, 20)
        await house.idle()
        expected = [" ".join(map(str, tools.continued(tuple(text), 256))) for text in (b"ab", b"cd", b"ab")]
        assert [text.decode() for text in call.outcome[0]] == expected
        (record,) = house.records
        assert (record.rows, record.usage.completion, record.usage.generations) == (3, 768, 3)
        assert record.device == pytest.approx(served.lane.busy_seconds)

    run(scenario)


def test_a_call_of_texts_fails_as_a_whole_and_its_other_rows_are_stopped(run):
    async def scenario(house):
        served = house.serve(streams=4, seconds=0.001)
        call, ended = house.submit(served, ["ab", "x" * 5000])
        await asyncio.wait_for(ended, 20)
        assert isinstance(call.outcome, TooLarge)
        other, gone = house.submit(served, ["ab", "cd"])
        await house.until(lambda: served.lane.running == 2)
        house.engine.cancel(served, other)
        assert isinstance(other.outcome, Cancelled)
        await house.until(lambda: not served.lane.running)
        await house.idle()
        assert not gone.done()
        assert [record.error for record in house.records] == ["invalid", "cancelled"]
        assert not served.scheduler._questions

    run(scenario)


def test_generations_of_a_split_carry_its_route(run):
    async def scenario(house):
        from pelton.engine import Pick

        old, new = house.serve("m", "a"), house.serve("m", "b")
        house.engine.directory.put(old)

        class Split:
            def pick(self, key):
                return Pick(new, 7, 99) if key == b"k" else Pick(old, 7, 0)

        old.split = Split()
        served, route, key = house.engine.resolve("m").split.pick(b"k")
        house.ask(served, (1,), 2, route=route, key=key)
        await house.idle()
        assert [(r.version[0], r.route, r.key) for r in house.records] == [("b", 7, 99)]

    run(scenario)
