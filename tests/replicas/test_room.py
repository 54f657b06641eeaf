"""Whether a second version of a language model fits beside the first."""

from __future__ import annotations

from pelton.replicas.room import lacking

GB = 10**9


def test_a_version_of_the_same_size_needs_as_much_as_the_one_that_serves():
    assert lacking(4 * GB, 2 * GB, 2 * GB, 5.0 * GB) == ""
    assert lacking(4 * GB, 2 * GB, 2 * GB, 4.1 * GB) == "it would need about 4.00 GB of memory, 3.89 GB can be had"


def test_half_the_weights_are_expected_to_need_half_the_memory():
    assert lacking(4 * GB, 2 * GB, 1 * GB, 2.5 * GB) == ""
    assert "about 8.00 GB" in lacking(4 * GB, 2 * GB, 4 * GB, 5.0 * GB)


def test_nothing_is_refused_where_nothing_is_known():
    assert lacking(0, 0, 10 * GB, 1.0) == ""
    assert lacking(4 * GB, 1, 10 * GB, float("inf")) == ""
