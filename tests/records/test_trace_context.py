"""The rules of https://www.w3.org/TR/trace-context/#traceparent-header."""

from __future__ import annotations

import pytest

from pelton.records.trace_context import Parent, parse, valid_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

GOOD = [
    f"00-{TRACE}-{SPAN}-01",
    f"00-{TRACE}-{SPAN}-00",
    f"00-{TRACE}-{SPAN}-ff",  # flags of later versions are ignored
    f"cc-{TRACE}-{SPAN}-01",  # a version that is not known: what version 00 knows of it counts
    f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like",
    f"01-{TRACE}-{SPAN}-01-",
    f"00-{'0' * 31}1-{'0' * 15}1-01",
]
BAD = [
    "",
    f"00-{TRACE}-{SPAN}",
    f"00-{TRACE}-{SPAN}-1",
    f"00-{TRACE}-{SPAN}-01-more",  # version 00 ends there
    f"00-{TRACE}-{SPAN}-01-",
    f"00-{TRACE}-{SPAN}-01\n",
    f" 00-{TRACE}-{SPAN}-01",
    f"ff-{TRACE}-{SPAN}-01",
    f"0-{TRACE}-{SPAN}-01",
    f"cc-{TRACE}-{SPAN}-01.more",
    f"cc-{TRACE}-{SPAN}-011",
    f"00-{TRACE.upper()}-{SPAN}-01",
    f"00-{TRACE}-{SPAN.upper()}-01",
    f"00-{TRACE}-{SPAN}-0A",
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE[1:]}-{SPAN}-01",
    f"00-{TRACE}-{SPAN[1:]}-01",
    f"00-{TRACE[:-1]}g-{SPAN}-01",
    f"00_{TRACE}_{SPAN}_01",
    "-" * 55,
    "aa-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-a--",
    f"cc-{TRACE}-{SPAN}-01-" + "x" * 10_000,
    f"00-{TRACE}-{SPAN}-0é",
]


@pytest.mark.parametrize("text", GOOD)
def test_what_the_specification_allows_is_valid(text: str) -> None:
    assert valid_traceparent(text.encode())
    parent = parse(text)
    assert parent is not None
    assert (parent.trace_id, parent.span_id) == tuple(text.split("-")[1:3])


@pytest.mark.parametrize("text", BAD)
def test_everything_else_is_ignored(text: str) -> None:
    assert not valid_traceparent(text.encode("latin-1"))
    assert parse(text) is None


def test_the_lowest_flag_says_whether_the_caller_keeps_the_trace() -> None:
    assert parse(f"00-{TRACE}-{SPAN}-03") == Parent(TRACE, SPAN, True)
    assert parse(f"00-{TRACE}-{SPAN}-02") == Parent(TRACE, SPAN, False)


def test_a_header_of_any_bytes_does_not_raise() -> None:
    assert not valid_traceparent(bytes(range(256)))
