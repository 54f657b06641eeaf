import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.bench.wire import BadResponse, Response, Stages, read_server, read_stages

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=1\r\nhello\r\n1A\r\n"
    + b"z" * 26
    + b"\r\n0\r\nTrailer: 1\r\n\r\n"
)
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + PLAIN
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize("data", [PLAIN, CHUNKED, INTERIM, EMPTY])
@given(cuts=st.lists(st.integers(0, 130), max_size=6))
def test_a_response_is_complete_at_its_last_byte_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    places = sorted({min(cut, len(data) - 1) for cut in cuts} | {0, len(data)})
    response = Response()
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    assert [response.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert response.status in (200, 204)


def test_one_reader_reads_response_after_response() -> None:
    response = Response()
    for data in (PLAIN, CHUNKED, EMPTY, PLAIN):
        assert response.feed(data)
        response.restart()


def test_a_body_without_length_ends_when_the_server_closes() -> None:
    response = Response()
    assert not response.feed(b"HTTP/1.1 200 OK\r\n\r\nsome text")
    assert response.ended()


def test_a_head_alone_is_not_complete_when_the_server_closes() -> None:
    response = Response()
    assert not response.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort")
    assert not response.ended()


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0", b"HTTP/1.0 200 OK\r\ncontent-length: 0"]
)
def test_a_server_that_will_close_is_noticed(head: bytes) -> None:
    response = Response()
    assert response.feed(head + b"\r\n\r\n")
    assert response.close


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        PLAIN + b"more",
        CHUNKED + b"more",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 5_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
    ],
)
def test_what_is_not_one_http_response_is_refused(data: bytes) -> None:
    with pytest.raises(BadResponse):
        Response().feed(data)


def test_stages_are_read_whatever_their_order_and_case() -> None:
    head = b"HTTP/1.1 200 OK\r\nServer-Timing: run;dur=2.5, prepare;dur=1, queue;dur=0.125\r\nPELTON-Batch-Rows: 12"
    assert read_stages(head) == Stages(rows=12, queue=0.000125, run=0.0025, prepare=0.001, known=True)


def test_missing_stages_are_not_guessed() -> None:
    assert read_stages(b"HTTP/1.1 200 OK\r\nx: queue;dur=1") == Stages()
    assert read_stages(b"HTTP/1.1 200 OK\r\npelton-batch-rows: 3") == Stages(rows=3)
    assert read_stages(b"HTTP/1.1 200 OK\r\nserver-timing: cache;desc=hit, total;dur=3") == Stages()


def test_the_server_may_name_itself() -> None:
    assert read_server(b"HTTP/1.1 200 OK\r\nServer: pelton/1.0\r\na: b") == "pelton/1.0"
    assert read_server(b"HTTP/1.1 200 OK") == ""
