"""Batches of rows that differ in length: what runs together, in pure functions and replayed through the real lane.

Mutants that these tests were seen to kill by hand: the part of the last call instead of the first; no look at the deadlines
of those who are passed over, or of the first; rows of equal length taken from the back; the load of a call counted in rows; a long call on
the loop; the loop open again while a long call waits.
"""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from pelton.scheduling import BatchPolicy, LatencyModel, LengthBatcher
from pelton.scheduling.length_batcher import STEP, ByLength, load_of
from pelton.scheduling.lengths import Cost, Limits, Waiting, choose, split
from pelton.types import QUEUED, SETTLED, Call

COST = Cost(start=0.003, each=0.0003)
LIMITS = Limits(tokens=512, rows=64)
FAR = 1e9
SIZES = tuple(8 * 2**i for i in range(8))


def waiting(*lengths: int, rows: int = 1, deadline: float = FAR) -> list[Waiting]:
    return [Waiting(length, rows, deadline) for length in lengths]


def seconds_of(parts: list[list[int]], lengths: list[int]) -> float:
    return sum(COST.seconds(len(part) * max(lengths[i] for i in part)) for part in parts)


def partitions(order: list[int]):
    """All ways to cut a list into neighbours."""
    for cuts in itertools.product([False, True], repeat=len(order) - 1):
        parts = [[order[0]]]
        for i, cut in zip(order[1:], cuts, strict=True):
            if cut:
                parts.append([i])
            else:
                parts[-1].append(i)
        yield parts


@pytest.mark.parametrize("seed", range(30))
def test_served_batch_by_batch_all_that_waits_costs_no_more_than_the_cheapest_partition(seed):
    dice = random.Random(seed)
    lengths = [8 * dice.choice([1, 1, 2, 2, 3, 4, 8, 16, 32]) for _ in range(8)]
    fits = lambda part: len(part) == 1 or len(part) * max(lengths[i] for i in part) <= 512  # noqa: E731
    order = sorted(range(8), key=lengths.__getitem__)
    best = min(seconds_of(parts, lengths) for parts in partitions(order) if all(map(fits, parts)))
    left, served = list(range(8)), []
    while left:
        chosen = choose(waiting(*(lengths[i] for i in left)), 0.0, LIMITS, COST)
        assert chosen[0] == 0  # the most urgent one always leaves
        assert chosen == sorted(set(chosen))
        served.append([left[i] for i in chosen])
        assert fits(served[-1])
        left = [i for place, i in enumerate(left) if place not in chosen]
    assert seconds_of(served, lengths) == pytest.approx(best)


def test_among_equals_those_leave_that_wait_longest():
    chosen = choose(waiting(*[64] * 20), 0.0, LIMITS, COST)
    assert chosen == list(range(len(chosen)))
    assert 4 <= len(chosen) <= 8


def test_a_short_text_does_not_wait_for_a_long_one_nor_fill_up_to_it():
    assert choose(waiting(8, 256, 8, 256), 0.0, LIMITS, COST) == [0, 2]
    assert choose(waiting(256, 8, 256, 8), 0.0, LIMITS, COST) == [0, 2]


def test_where_a_batch_costs_much_and_a_token_little_all_leave_together():
    assert choose(waiting(8, 256, 8, 128), 0.0, Limits(4096, 64), Cost(1.0, 1e-6)) == [0, 1, 2, 3]


def test_a_call_is_passed_over_only_while_it_will_still_be_in_time():
    """The long call has time for itself, not for the sixteen short ones before it."""
    short, soon = Waiting(8, 1, 0.1), 0.12
    calls = [short, Waiting(256, 1, soon), *[Waiting(8, 1, FAR)] * 15]
    assert choose([short, Waiting(256, 1, FAR), *calls[2:]], 0.0, LIMITS, COST) == [0, *range(2, 17)]
    assert choose(calls, 0.0, LIMITS, COST) != [0, *range(2, 17)]
    left, now, late = calls, 0.0, []
    while left:
        chosen = choose(left, now, LIMITS, COST)
        now += COST.seconds(len(chosen) * max(left[i].length for i in chosen))
        late += [left[i] for i in chosen if left[i].deadline < now]
        left = [call for i, call in enumerate(left) if i not in chosen]
    assert not late


def test_a_batch_is_no_larger_than_its_most_urgent_call_can_bear():
    calls = [Waiting(64, 1, 0.05), *waiting(*[64] * 5)]
    chosen = choose(calls, 0.0, LIMITS, COST)
    assert len(chosen) == 2
    assert COST.seconds(2 * 64) <= 0.05
    assert len(choose([Waiting(64, 1, -1.0), *calls[1:]], 0.0, LIMITS, COST)) == 6  # it is late in any case


def test_where_not_all_can_be_in_time_no_batch_grows_beyond_its_bound():
    calls = [Waiting(8 * (1 + i % 16), 1, 0.001 * i) for i in range(60)]
    chosen = choose(calls, 1.0, LIMITS, COST)
    assert chosen[0] == 0
    assert len(chosen) * max(calls[i].length for i in chosen) <= 512


def test_one_call_may_be_more_than_a_batch():
    assert choose(waiting(512, 512, rows=4), 0.0, Limits(64, 2), COST) == [0]


def test_rows_of_a_call_are_cut_by_width_and_bound():
    lengths = [3, 300, 8, 5, 9, 301, 16]
    pieces = split(lengths, Limits(tokens=310, rows=2), STEP)
    assert sorted(row for rows, _ in pieces for row in rows) == list(range(7))
    assert all(
        max(lengths[row] for row in rows) <= width < max(lengths[row] for row in rows) + STEP for rows, width in pieces
    )
    assert all(len(rows) <= 2 and (len(rows) == 1 or len(rows) * width <= 310) for rows, width in pieces)
    assert [width for _, width in pieces] == [8, 8, 16, 304, 304]


def test_the_load_of_a_call_is_what_its_pieces_cost():
    call = Call([], 3, lambda call: None, 0.0, 1.0, length=304, lengths=(3, 300, 9))
    assert load_of(call) == sum(len(rows) * width for rows, width in split(call.lengths, LIMITS, STEP)) == 8 + 304 + 16
    call.lengths = None
    assert load_of(call) == 3 * 304


def test_long_rows_may_cost_more_a_token_and_outliers_move_that_little():
    factors = ByLength()
    for _ in range(400):
        factors.observe(512, 1.3 / factors.of(512))
    assert factors.of(512) == pytest.approx(1.3, rel=0.02)
    assert factors.of(8) == 1.0
    factors.observe(512, 50.0)
    assert factors.of(512) < 1.36


# ---- replayed through the real lane


def lane_of(sim, seconds, slots=1, **kwargs):
    return sim.LengthLane(sim.Machine(slots), seconds, sizes=SIZES, **kwargs)


def mixed(count: int, seed: int = 1) -> list[int]:
    """Lengths as those of e-mails: most are short, some are long."""
    dice = np.random.default_rng(seed)
    return [int(8 * max(1, min(32, round(x)))) for x in dice.lognormal(1.2, 0.9, count)]


def minilm(tokens: int) -> float:
    return 0.003 + 0.00032 * tokens


def padding(lane) -> float:
    return lane.batcher.padded_tokens / sum(c.length for _, calls, _, _ in lane.batches for c in calls)


@pytest.mark.parametrize("load", [0.5, 0.9, 2.0])
def test_padding_is_small_and_the_target_holds(sim, load):
    lengths = mixed(6000)
    rate = load / (np.mean(lengths) * 0.00032)
    lane = lane_of(sim, minilm, target=0.3, max_rows=128)
    lane.texts(sim.poisson(rate, 6000), lengths)
    lane.loop.run()
    took = [lane.finished[id(c)] - c.received for c in lane.answered]
    assert padding(lane) < 1.05
    assert np.quantile(took, 0.99) <= 0.3
    assert all(call.state == SETTLED for call in [*lane.answered, *lane.failed])
    assert len(lane.answered) + len(lane.failed) == 6000
    tokens = sum(call.length for call in lane.answered)
    assert tokens >= 0.85 * min(load, 0.95) * lane.loop.now / 0.00032  # of what the machine could do without start
    assert len([call for call in lane.failed if id(call) not in lane.decided]) <= 0.01 * 6000


def test_a_long_text_among_many_short_ones_is_answered_in_time(sim):
    lane = lane_of(sim, minilm, target=0.3, max_rows=128)
    rate = 0.7 / (8 * 0.00032)
    lane.texts(sim.poisson(rate, 4000), [8] * 4000)
    long = []
    for i in range(20):
        lane.loop.at(0.3 + 0.5 * i, lambda: long.append(lane.send(length=256)))
    lane.loop.run()
    assert len(long) == 20
    taken = [call for call in long if id(call) not in lane.decided]
    assert len(taken) >= 18
    assert max(lane.finished[id(call)] - call.received for call in taken) <= 0.3


def test_texts_that_may_wait_for_long_do_not_fill_the_queue_with_the_dead(sim):
    """One patient call stays first in the queue while thousands pass it: they must not stay behind it."""
    lane = lane_of(sim, minilm, target=0.3, max_rows=128)
    rate = 0.9 / (16 * 0.00032)
    lane.send(length=256, deadline=0.0)  # keeps the lane busy
    lane.texts(sim.poisson(rate, 2000), [16] * 2000)
    lane.loop.at(0.01, lambda: lane.send(length=256, deadline=3600.0))
    most = []
    for i in range(100):
        lane.loop.at(0.1 * i, lambda: most.append(len(lane.batcher._usual)))
    lane.loop.run()
    assert max(most) < 200
    assert all(call.state == SETTLED for call in [*lane.answered, *lane.failed])


def test_urgent_texts_leave_first(sim):
    lane = lane_of(sim, minilm, target=10.0)
    order = []
    lane.send(length=64)  # runs
    for name, priority in (("a", 0), ("b", 1), ("c", 0), ("d", -1), ("e", 1)):
        lane.send(length=256, priority=priority, done=lambda call, name=name: order.append(name))
    lane.loop.run()
    assert "".join(order).startswith("be")
    assert order[-1] == "d"


def test_nothing_is_left_in_the_count_when_calls_are_cancelled_and_late(sim):
    dice = random.Random(5)
    lane = lane_of(sim, minilm, target=0.1, admission=False)
    sent = []
    for i in range(400):
        when = 0.001 * i
        lane.loop.at(
            when, lambda: sent.append(lane.send(length=8 * dice.randint(1, 30), priority=dice.choice([0, 0, 1, -1])))
        )
    for i in range(100):
        lane.loop.at(0.003 * i, lambda: cancel(lane, dice.choice(sent)))
    lane.loop.run()
    assert lane.batcher.rows == 0
    assert lane.batcher.queued_rows == 0
    assert lane.batcher.head() is None
    assert all(level.rows == 0 for priority, level in lane.batcher._levels.items() if priority)


def cancel(lane, call):
    if call.state == QUEUED:
        call.state = SETTLED
        lane.scheduler.cancel(call)


def test_a_slower_machine_and_a_wrong_start_are_learned_by_tokens(sim):
    lane = lane_of(sim, lambda tokens: 3 * minilm(tokens), believed=minilm, target=1.0)
    lengths = mixed(4000)
    lane.texts(sim.poisson(0.8 / (np.mean(lengths) * 3 * 0.00032), 4000), lengths)
    lane.loop.run()
    for tokens in (16, 32, 64):
        assert lane.batcher.latency.predict(tokens) == pytest.approx(3 * minilm(tokens), rel=0.25)


def test_only_short_texts_run_on_the_loop():
    """A model of 5 us a token: 64 tokens are for the loop, 8,192 are not, also when nothing else waits."""
    latency = LatencyModel([(tokens, 5e-6 * tokens) for tokens in (8, 32, 128, 512)])
    batcher = LengthBatcher(BatchPolicy(target=0.5), latency, longest=8192)
    assert 64 <= batcher.inline_rows < 200
    short, long = (Call([], 1, lambda call: None, 0.0, 9.0, length=length) for length in (64, 8192))
    batcher.push(short)
    assert batcher.inline_rows >= 64
    batcher.push(long)
    assert batcher.inline_rows == 0
    assert batcher.take(0.0).batch.calls == [short]
    assert batcher.inline_rows == 0  # the long one is next
    assert batcher.take(0.0).batch.calls == [long]
    assert batcher.inline_rows >= 64


def test_the_gate_learns_from_what_ran_on_the_loop_in_tokens():
    batcher = LengthBatcher(BatchPolicy(target=0.5), LatencyModel([(8, 1e-5), (512, 4e-4)]), longest=512)
    for _ in range(200):
        batcher.push(Call([], 1, lambda call: None, 0.0, 9.0, length=128))
        batch = batcher.take(0.0).batch
        batcher.inline.ran_inline(batch.rows, 0.002)  # twenty times what was measured
        batcher.finished(batch, 0.002, 0.0)
    assert batcher.inline_rows < 128
