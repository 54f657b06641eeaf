"""What design.md and docs/batching.md claim of the scheduler, replayed with the real batcher, admission and executor.

All figures come out of arithmetic: the same seeds give the same numbers on every machine.
"""

from __future__ import annotations

import itertools
import random

import pytest

from pelton.scheduling import scheduler as scheduler_module

# t0 and a in ms, largest batch, target in ms, highest rate with p99 <= target as simulated without bounds on the batch
HIGHEST_RATES = [
    (5, 0.5, 64, 50, 1463),
    (5, 0.5, 64, 100, 1703),
    (2, 1, 32, 50, 824),
    (10, 0.1, 128, 50, 5471),
    (1, 4, 16, 100, 210),
]
LOADS = [0.9, 1.2, 1.5, 2.0]


def open_loop(sim, seconds, times, slots=1, settle=0.0, rows=1, **kwargs):
    machine = sim.Machine(slots, settle)
    lane = machine.lane(seconds, **kwargs)
    lane.arrive(times, rows=rows)
    machine.loop.run()
    return lane


@pytest.mark.parametrize(("t0", "a", "rows", "target", "rate"), HIGHEST_RATES)
def test_natural_batching_holds_p99_up_to_a_few_percent_of_the_simulated_limit(sim, t0, a, rows, target, rate):
    def p99(load):
        times = sim.poisson(rate * load, 30_000)
        kwargs = {"target": target / 1e3, "max_rows": rows, "admission": False}
        return open_loop(sim, sim.linear(t0, a), times, **kwargs).result().p99

    assert p99(0.95) <= target / 1e3
    assert p99(1.08) > target / 1e3  # else the simulation itself would be too kind


def test_at_low_load_a_call_waits_for_nobody(sim):
    lane = open_loop(sim, sim.linear(5, 0.5), sim.poisson(86, 10_000), target=0.05, max_rows=64)
    result = lane.result()
    assert result.p50 == pytest.approx(0.0055, abs=1e-6)  # S(1): nothing is added
    assert result.p99 == pytest.approx(0.0114, rel=0.02)
    assert result.mean_batch < 1.2
    assert result.utilization == pytest.approx(0.44, abs=0.02)


@pytest.mark.parametrize(("clients", "t0", "a", "think", "split", "at_least"), [
    (8, 5, 0.1, 0.5, 741, 1180),
    (8, 5, 0.1, 3.0, 741, 770),
    (32, 5, 0.5, 1.0, 1231, 1380),
    (8, 1, 2.0, 0.5, 444, 440),
])  # fmt: skip
def test_returning_callers_are_waited_for_where_that_is_faster(sim, clients, t0, a, think, split, at_least):
    """`split`: the rate without waiting, where callers form two groups that take turns: N / (2 * S(N/2))."""
    assert clients / (2 * sim.linear(t0, a)(clients // 2)) == pytest.approx(split, rel=0.01)
    machine = sim.Machine()
    lane = machine.lane(sim.linear(t0, a), max_rows=64)
    lane.clients(clients, think / 1e3, until=12.0)
    machine.loop.run(12.0)
    assert lane.result(since=2.0).rate >= at_least


def test_callers_who_come_back_late_are_not_waited_for(sim):
    machine = sim.Machine()
    lane = machine.lane(sim.linear(5, 0.1), max_rows=64)
    lane.clients(8, 0.02, until=10.0)
    machine.loop.run(10.0)
    ends = [start + lane.seconds(rows) for start, _, rows, _ in lane.batches]
    ready = [max(call.queued for call in calls) for _, calls, _, _ in lane.batches]
    idle = [b[0] - max(end, came) for b, end, came in zip(lane.batches[1:], ends, ready[1:], strict=False)]
    assert sum(idle) < 0.02 * machine.loop.now


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(("t0", "a", "rows", "target"), [(5, 0.5, 64, 0.1), (1, 4, 16, 0.2)])
def test_goodput_stays_at_capacity_under_overload_and_refusals_come_at_once(sim, t0, a, rows, target, load, slots):
    seconds = sim.linear(t0, a)
    capacity = slots * rows / seconds(rows)
    lane = open_loop(sim, seconds, sim.poisson(load * capacity, 20_000), slots, target=target, max_rows=rows)
    result = lane.result()
    assert result.goodput >= 0.95 * min(load, 1.0) * capacity
    assert result.p99 <= target
    assert max(lane.decided.values(), default=0.0) == 0.0  # a refusal takes no time at all
    dropped = [call for call in lane.failed if id(call) not in lane.decided]
    assert len(dropped) <= 0.02 * 20_000


def test_bursts_keep_goodput_and_target(sim):
    seconds = sim.linear(5, 0.5)
    capacity = 64 / seconds(64)
    lane = open_loop(sim, seconds, sim.bursts(1.5 * capacity, 100, 20_000), target=0.1, max_rows=64)
    result = lane.result()
    assert result.goodput >= 0.97 * capacity * result.utilization  # nothing runs in vain
    assert result.utilization > 0.8  # between two bursts even a full queue runs dry
    assert result.p99 <= 0.1


@pytest.mark.parametrize("load", [1.2, 2.0])
def test_counting_the_own_batch_as_it_is_now_would_collapse(sim, monkeypatch, load):
    """The trap, as a mutant: predicted with the size that the caller's batch has now. It must fall far below."""

    def naive(now, free, ahead, rows, full_rows, full_seconds):
        full, rest = divmod(ahead + rows, full_rows)
        return max(free[0], now) + full * full_seconds + seconds(rest)

    seconds = sim.linear(1, 4)
    capacity = 16 / seconds(16)
    monkeypatch.setattr(scheduler_module, "predicted_finish", naive)
    monkeypatch.setattr("pelton.scheduling.batcher.Batcher._hopeless", lambda *_: False)
    lane = open_loop(sim, seconds, sim.poisson(load * capacity, 10_000), target=0.2, max_rows=16)
    assert lane.result().goodput < 0.6 * capacity


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
def test_cost_and_balanced_use_the_slack_and_hold_the_target(sim, load):
    def run(objective):
        times = sim.poisson(load * 1600, 15_000)
        return open_loop(sim, sim.linear(5, 0.5), times, target=0.05, max_rows=64, objective=objective).result()

    latency, balanced, cost = run("latency"), run("balanced"), run("cost")
    assert max(balanced.p99, cost.p99) <= 0.05
    assert cost.utilization <= balanced.utilization <= latency.utilization
    if load <= 0.5:
        assert cost.utilization < 0.75 * latency.utilization
        assert latency.p50 < balanced.p50 < cost.p50
    assert cost.refused <= 0.01 * 15_000


def test_waiting_for_company_ends_before_the_earliest_deadline_not_the_first(sim):
    """Mutant: slack of the head of the queue. Then the second call, which is in a hurry, is late."""
    machine = sim.Machine()
    lane = machine.lane(sim.linear(5, 0.5), target=0.5, max_rows=64, objective="cost")
    lane.send()
    machine.loop.at(0.001, lambda: lane.send(deadline=0.05))
    machine.loop.run()
    assert len(lane.answered) == 2
    assert max(lane.finished.values()) <= 0.051


def test_predictions_follow_a_machine_that_becomes_three_times_slower(sim):
    seconds, factor, machine = sim.linear(5, 0.5), [1.0], sim.Machine()
    lane = machine.lane(lambda rows: seconds(rows) * factor[0], target=0.2, max_rows=64)
    lane.arrive(sim.poisson(900, 15_000))
    machine.loop.at(8.0, lambda: factor.__setitem__(0, 3.0))
    machine.loop.run()
    size = lane.batcher.cap
    assert lane.batcher.latency.predict(size) == pytest.approx(3 * seconds(size), rel=0.3)
    after = [lane.finished[id(c)] - c.received for c in lane.answered if c.received > 8.0]
    good = sum(took <= 0.2 for took in after)
    assert good >= 0.85 * (machine.loop.now - 8.0) * 64 / (3 * seconds(64))


def test_predictions_survive_outliers(sim):
    dice, seconds = random.Random(3), sim.linear(5, 0.5)
    noisy = lambda rows: seconds(rows) * (50 if dice.random() < 0.01 else dice.uniform(0.9, 1.1))  # noqa: E731
    lane = open_loop(sim, noisy, sim.poisson(800, 15_000), target=0.1, max_rows=64)
    for rows in (1, 4, 8, 16):
        assert lane.batcher.latency.predict(rows) == pytest.approx(seconds(rows), rel=0.25)


@pytest.mark.parametrize("believed", [(40, 0.05), (0.1, 0.6), (1, 1)])
def test_a_wrong_start_is_corrected_for_the_sizes_that_run(sim, believed):
    seconds = sim.linear(5, 0.5)
    lane = open_loop(sim, seconds, sim.poisson(1200, 20_000), target=0.1, max_rows=64, believed=sim.linear(*believed))
    sizes = [rows for _, _, rows, _ in lane.batches[-300:]]
    error = sum(abs(lane.batcher.latency.predict(rows) / seconds(rows) - 1) for rows in sizes) / len(sizes)
    assert error < 0.15
    assert lane.result(since=machine_half(lane)).goodput > 0.9 * 1200


def machine_half(lane):
    return lane.loop.now / 2


def tree(rows):
    """A tree ensemble in ONNX Runtime: twice as long per row from 24 rows up."""
    return (2 + (0.5 if rows < 24 else 1.0) * rows) / 1e3


def test_a_curve_with_a_step_gets_the_batch_before_the_step(sim):
    lane = open_loop(sim, tree, sim.poisson(1500, 20_000), target=0.1)
    assert 12 <= lane.batcher._chosen < 24


def test_where_rows_gain_nothing_together_batches_stay_small(sim):
    assert open_loop(sim, sim.linear(0, 10), sim.poisson(150, 5000), target=0.2).batcher._chosen == 1
    assert open_loop(sim, sim.linear(1.5, 9.1), sim.poisson(150, 5000), target=0.2).batcher._chosen <= 8


def test_larger_batches_than_were_ever_measured_are_tried_when_that_pays(sim):
    machine = sim.Machine()
    lane = machine.lane(sim.linear(5, 0.1), target=0.2, sizes=(1,))
    lane.arrive(sim.poisson(3000, 20_000))
    machine.loop.run()
    assert lane.batcher.cap >= 64


def test_the_batch_size_stays_put_under_noise_where_all_sizes_are_equal(sim):
    """Mutant: `current` ignored in best_rows. Then the size follows the noise."""
    dice, machine, seen = random.Random(1), sim.Machine(), []
    lane = machine.lane(lambda rows: 0.002 * rows * dice.uniform(0.7, 1.4), target=1.0)
    lane.arrive(sim.poisson(450, 20_000))
    for second in range(5, 40):
        machine.loop.at(second, lambda: seen.append(lane.batcher._chosen))
    machine.loop.run()
    assert sum(a != b for a, b in itertools.pairwise(seen)) <= 2


@pytest.mark.parametrize("load", [0.5, 1.2, 1.5])
def test_what_the_loop_spends_on_answers_is_part_of_the_prediction(sim, load):
    """A model on the loop: 20 us of every answer go to HTTP. Mutant: the gap between batches is not counted."""
    seconds = lambda rows: (60 + 10 * rows) / 1e6  # noqa: E731
    capacity = 63 / (seconds(63) + 63 * 20e-6)
    lane = open_loop(sim, seconds, sim.poisson(load * capacity, 20_000), settle=20e-6, target=0.006)
    assert lane.batcher.inline_rows >= 32
    assert lane.result().p99 <= 1.03 * 0.006
    if load > 1:
        assert lane.batcher.gap > 0.0008


def test_small_calls_pass_a_large_one(sim):
    machine = sim.Machine()
    lane = machine.lane(sim.linear(5, 0.5), target=0.1, max_rows=64)
    for _ in range(20):
        lane.send(rows=60, priority=-1, deadline=5.0)
    lane.arrive([0.01 + 0.02 * i for i in range(20)])
    machine.loop.run()
    small = [c for c in lane.answered if c.rows == 1]
    assert len(small) == 20  # none refused because of the rows behind it
    assert max(lane.finished[id(c)] - c.received for c in small) <= 0.08
    assert len(lane.answered) == 40


def test_urgent_calls_leave_first_and_equals_in_order(sim):
    machine = sim.Machine()
    lane = machine.lane(sim.linear(0, 10), target=10.0)
    order = []
    for name, priority in (("a", 0), ("b", 1), ("c", 0), ("d", 5), ("e", 1), ("f", -1), ("g", 10**9), ("h", 9)):
        lane.send(priority=priority, done=lambda call, name=name: order.append(name))
    machine.loop.run()
    assert "".join(order) == "ghdbeacf"


def test_any_number_of_priorities_shares_a_few_levels(sim):
    machine = sim.Machine()
    lane = machine.lane(sim.linear(1, 0.1), target=10.0)
    for priority in range(-500, 500):
        lane.send(priority=priority)
    assert len(lane.batcher._levels) <= 17
    machine.loop.run()
    assert len(lane.answered) == 1000


def test_calls_of_mixed_shapes_are_batched_by_shape_and_none_starves(sim):
    """Mutant: a batch ends at the first call of another shape. Then batches of one, and a fifth of the rate."""
    dice, machine = random.Random(2), sim.Machine()
    lane = machine.lane(sim.linear(5, 0.2), target=0.1, max_rows=32)
    for shape, rate in ((16, 600), (32, 300), (512, 20)):
        lane.arrive(sim.poisson(rate, int(rate * 10), seed=dice.randrange(100)), bucket=shape)
    machine.loop.run()
    for shape in (16, 32, 512):
        took = [lane.finished[id(c)] - c.received for c in lane.answered if c.bucket == shape]
        assert took
        assert max(took) <= 0.1
    assert len(lane.failed) <= 0.01 * 9200
    assert all(len({call.bucket for call in calls}) == 1 for _, calls, _, _ in lane.batches)


def test_calls_whose_rows_do_not_add_up_to_a_full_batch_are_predicted_by_what_fits(sim):
    """Five rows a call, eight a batch: one call fills a batch. Mutant: `cap` rows counted per batch ahead."""
    lane = open_loop(sim, sim.linear(8, 0.1), sim.poisson(300, 6000), target=0.1, max_rows=8, rows=5)
    times = [lane.finished[id(c)] - c.received for c in lane.answered]
    assert sum(t <= 0.1 for t in times) >= 0.98 * len(times)


def test_a_model_that_works_on_one_batch_at_a_time_leaves_the_other_slot_to_others(sim):
    """Two slots; speech takes a second a batch. Mutant: `most` ignored. Then the short model waits for seconds."""
    machine = sim.Machine(slots=2)
    speech = machine.lane(lambda rows: 1.0, target=30.0, max_rows=1)
    speech.scheduler.most = 1
    short = machine.lane(sim.linear(5, 0.5), target=0.1, max_rows=64)
    for _ in range(10):
        speech.send()
    short.arrive(sim.poisson(50, 400))
    machine.loop.run()
    assert len(short.answered) == 400
    assert short.result().p99 < 0.02
    assert len(speech.answered) == 10
    assert [start for start, *_ in speech.batches] == pytest.approx(range(10))
    late = speech.send(deadline=0.5)  # one second of its own
    machine.loop.run()
    assert late in speech.answered  # nothing was ahead of it: it is tried
    for _ in range(3):
        speech.send()
    assert speech.send(deadline=2.5).outcome is not None  # three seconds ahead of it, whatever the other slot does
