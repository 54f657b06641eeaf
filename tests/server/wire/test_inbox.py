"""The inbox: what is read in one turn of the loop is handled in lots, in order, before the loop reads again."""

from __future__ import annotations

from collections.abc import Callable

from pelton.server.wire.inbox import LOT, Inbox
from pelton.testing.clock import ManualClock


class Log:
    """A connection that notes what it is given; `cost` seconds pass for each."""

    def __init__(self, events: list[object], clock: ManualClock, cost: float = 0.0) -> None:
        self.events = events
        self.clock = clock
        self.cost = cost

    def take(self, data: bytes, received: float) -> None:
        self.events.append((data, received))
        self.clock.advance(self.cost)


def made(cost: float = 0.0) -> tuple[Inbox, Log, list[object], list[Callable[[], None]], ManualClock]:
    clock, events, later = ManualClock(), [], []
    inbox = Inbox(later.append, clock, lambda: events.append("batches leave"))
    return inbox, Log(events, clock, cost), events, later, clock


def test_what_is_read_in_one_turn_is_handled_in_order_with_the_time_of_the_first_read() -> None:
    inbox, log, events, later, clock = made()
    clock.advance(5.0)
    inbox.put(log, b"a")
    clock.advance(0.25)
    inbox.put(log, b"b")
    assert events == []
    assert len(later) == 1
    later.pop()()
    assert events == [(b"a", 5.0), (b"b", 5.0), "batches leave"]


def test_batches_leave_after_each_lot() -> None:
    inbox, log, events, later, _ = made()
    for i in range(2 * LOT + 1):
        inbox.put(log, b"%d" % i)
    later.pop()()
    assert [i for i, event in enumerate(events) if event == "batches leave"] == [LOT, 2 * LOT + 1, 2 * LOT + 3]
    assert [event[0] for event in events if isinstance(event, tuple)] == [b"%d" % i for i in range(2 * LOT + 1)]


def test_what_arrives_while_a_turn_is_handled_belongs_to_the_next_turn() -> None:
    inbox, log, events, later, _ = made()

    class Echo(Log):
        def take(self, data: bytes, received: float) -> None:
            super().take(data, received)
            inbox.put(log, b"answer")

    inbox.put(Echo(events, log.clock), b"a")
    later.pop()()
    assert (b"answer", 0.0) not in events
    later.pop()()
    assert (b"answer", 0.0) in events


def test_a_request_is_late_when_its_lot_begins_after_its_target() -> None:
    inbox, _, events, later, clock = made()
    late: list[bool] = []

    class Asks(Log):
        def take(self, data: bytes, received: float) -> None:
            late.append(inbox.waited > 1.0)
            clock.advance(0.025)

    asks = Asks(events, clock)
    for _ in range(2 * LOT):
        inbox.put(asks, b"x")
    later.pop()()
    assert late == [False] * LOT + [True] * LOT


def test_a_busy_loop_counts_the_time_that_requests_waited_unread() -> None:
    inbox, _, events, later, clock = made()
    waited: list[float] = []

    class Asks(Log):
        def take(self, data: bytes, received: float) -> None:
            waited.append(inbox.waited)
            clock.advance(2.0)

    asks = Asks(events, clock)
    inbox.put(asks, b"slow")
    later.pop()()
    inbox.put(asks, b"waited in the kernel meanwhile")
    later.pop()()
    clock.advance(60.0)
    inbox.put(asks, b"arrived at an idle loop")
    later.pop()()
    assert waited == [0.0, 2.0, 0.0]
    assert inbox.waited == 0.0


def test_the_loop_rests_after_a_turn_that_refused_and_after_no_other() -> None:
    clock, rests, later = ManualClock(), [], []
    inbox = Inbox(later.append, clock, lambda: None, lambda: rests.append(clock()))

    class Refuses(Log):
        def take(self, data: bytes, received: float) -> None:
            inbox.refused = data == b"too much"

    reader = Refuses([], clock)
    for data in (b"fine", b"too much", b"fine"):
        inbox.put(reader, data)
        clock.advance(1.0)
        later.pop()()
    assert rests == [2.0]
