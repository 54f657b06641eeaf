"""RFC 9110, section 12.5.3, with its own examples."""

from __future__ import annotations

import pytest

from pelton.server.wire.encodings import negotiate


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        (b"gzip", b"gzip"),
        (b"x-gzip", b"gzip"),
        (b"GZip", b"gzip"),
        (b"deflate", b"deflate"),
        (b"gzip, deflate, br", b"gzip"),
        (b"br;q=1.0, deflate , gzip", b"gzip"),
        (b"deflate;q=1.0, gzip;q=0.5", b"deflate"),
        (b"compress;q=0.5, gzip;q=1.0", b"gzip"),
        (b"gzip;q=1.0, identity; q=0.5, *;q=0", b"gzip"),
        (b"gzip;q=0.001", b"gzip"),
        (b"gzip ; q = 1.000", b"gzip"),
        (b"identity, gzip", b"gzip"),  # as good as plain: smaller
        (b"*", b"gzip"),
        (b"*;q=0.5, gzip;q=0", b"deflate"),
        (b"identity;q=0, *", b"gzip"),
    ],
)
def test_the_client_gets_what_it_likes_most(header: bytes, encoding: bytes) -> None:
    assert negotiate(header) == encoding


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"identity",
        b"br",
        b"gzip;q=0",
        b"gzip;q=0.0, deflate;q=0.000",
        b"*;q=0",
        b"identity;q=1, gzip;q=0.5",
        b"identity, gzip;q=0.9",
        b"identity;q=0.5, *;q=0.1",
        b"gzip;q=0, *;q=0",
        b"br, identity;q=0",  # nothing fits: plain is better than an error
    ],
)
def test_a_plain_answer_where_nothing_else_is_wanted(header: bytes) -> None:
    assert negotiate(header) is None


@pytest.mark.parametrize(
    "header",
    [b"gzip;q=2", b"gzip;q=-1", b"gzip;q=nan", b"gzip;q=", b"gzip;x=1", b"gzip;q=1;q=1", b";q=1", b",,;,", b"gz\xffip"],
)
def test_a_malformed_part_counts_for_nothing(header: bytes) -> None:
    assert negotiate(header) is None
    assert negotiate(header + b", deflate") == b"deflate"


def test_the_first_weight_of_a_name_counts() -> None:
    assert negotiate(b"gzip;q=0, gzip;q=1") is None


def test_a_header_with_very_many_parts_is_not_read_to_its_end() -> None:
    assert negotiate(b"br," * 20_000 + b"gzip") is None
