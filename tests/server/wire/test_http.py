"""The HTTP layer: framing, limits, times, order. What is one request to us must be one request to everybody."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from pelton.testing import EchoModel, SleepyModel
from pelton.types import Signature, TensorSpec

HOST = b"Host: a\r\n"
ROW = {"x": [1.0, 2.0, 3.0]}
MEGABYTE = 1 << 20


def get(path: str = "/page", extra: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n{extra}\r\n".encode()


def chunked(*chunks: bytes, path: str = "/predict/m", extra: bytes = b"", trailer: bytes = b"") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n%b\r\n" % (path.encode(), extra)
    return head + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n" + trailer + b"\r\n"


def row(path: str = "/predict/m", value: float = 1.0, extra: str = "") -> bytes:
    body = json.dumps({"x": [value, 2.0, 3.0]})
    return f"POST {path} HTTP/1.1\r\nHost: a\r\n{extra}Content-Length: {len(body)}\r\n\r\n{body}".encode()


class TestWhatIsNoRequest:
    """Each is answered once with a 4xx or 5xx that says why, then closed; nothing behind it is looked at."""

    @pytest.mark.parametrize(
        ("status", "data"),
        [
            (400, b"POST /predict/m HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            (400, b"POST /predict/m HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
            (400, b"POST /predict/m HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}"),
            (400, b"POST /predict/m HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
            (400, b"POST /predict/m HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\n{}"),
            (400, b"POST /predict/m HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n{}"),
            (400, b"POST /predict/m HTTP/1.1\r\nHost: a\r\nContent-Length: 0x2\r\n\r\n{}"),
            (400, b"POST /predict/m HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\n{}"),
            (400, b"POST /predict/m HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n{}"),
            (400, b"POST /predict/m HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n"),
            (501, b"POST /predict/m HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
            (400, b"POST /predict/m HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
            (501, b"POST /predict/m HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            (400, b"POST /predict/m HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n"),
            (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n"),
            (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n"),
            (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}}\r\n0\r\n\r\n"),
            (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n"),
            (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n"),
            (400, b"GET / HTTP/1.1\nHost: a\n\n"),
            (400, b"GET / HTTP/1.1\r\nHost: a\n\r\n"),
            (400, b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n"),
            (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
            (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n"),
            (400, b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
            (400, b"GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n"),
            (400, b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, b"GET page HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, b"GET ftp://a/page HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, b"GET / HTTP/1.1\r\n\r\n"),
            (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
            (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n"),
            (417, b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\nContent-Length: 2\r\n\r\n"),
            (501, b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (501, b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"),
            (501, b"PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
            (505, b"GET / HTTP/0.9\r\nHost: a\r\n\r\n"),
            (400, b"GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
            (400, b"GET / http/1.1\r\nHost: a\r\n\r\n"),
            (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("pieces", ["whole", "bytes"])
    def test_it_is_refused_with_a_reason_and_the_connection_ends(
        self, server: Any, status: int, data: bytes, pieces: str
    ) -> None:
        client = server.connect()
        client.send(*([data] if pieces == "whole" else [data[i : i + 1] for i in range(len(data))]))
        client.send(get("/smuggled"))
        answer = client.answer
        assert answer.status == status
        assert answer.error
        assert answer.headers["connection"] == "close"
        assert client.transport.events == ["eof"]

    def test_the_requests_before_it_are_answered_first(self, server: Any) -> None:
        client = server.connect().send(row(value=7.0) + get("/a") + b"GET / HTTP/1.1\r\nbroken\r\n\r\n" + get("/b"))
        answers = client.answers
        assert [a.status for a in answers] == [200, 200, 400]
        assert answers[0].json == {"y": [7.0, 2.0, 3.0]}
        assert answers[1].json["path"] == "/a"

    def test_a_client_that_left_before_the_error_is_written_gets_nothing(self, server: Any) -> None:
        client = server.connect()
        client.send_and(row() + b"nonsense\r\n\r\n", lambda: client.connection.connection_lost(None))
        assert client.answers == []


class TestFraming:
    def test_a_chunked_body_is_the_same_as_a_whole_one(self, server: Any) -> None:
        body = json.dumps(ROW).encode()
        client = server.connect()
        client.send(chunked(body[:3], body[3:10], body[10:]))
        assert client.answer.json == {"y": [1.0, 2.0, 3.0]}

    def test_trailers_do_not_become_headers(self, server: Any) -> None:
        client = server.connect()
        client.send(chunked(json.dumps(ROW).encode(), trailer=b"X-Request-Id: mine\r\nContent-Encoding: gzip\r\n"))
        client.send(row())
        answers = client.answers
        assert [a.status for a in answers] == [200, 200]
        assert all(a.headers["x-request-id"] != "mine" for a in answers)

    def test_trailers_do_not_become_headers_of_the_next_request_in_the_same_read(self, server: Any) -> None:
        client = server.connect()
        client.send(chunked(json.dumps(ROW).encode(), trailer=b"X-Request-Id: mine\r\n") + row())
        answers = client.answers
        assert [a.status for a in answers] == [200, 200]
        assert all(a.headers["x-request-id"] != "mine" for a in answers)

    def test_a_length_with_blanks_behind_it_is_a_length(self, server: Any) -> None:
        client = server.connect().send(b"POST /page HTTP/1.1\r\nHost: a\r\nContent-Length: 2 \t\r\n\r\n{}")
        assert client.answer.json["size"] == 2

    def test_empty_lines_before_a_request_are_skipped(self, server: Any) -> None:
        assert server.connect().send(b"\r\n\r\n", get("/a")).answer.json["path"] == "/a"

    def test_an_upgrade_is_not_taken_up_and_the_request_is_answered(self, server: Any) -> None:
        extra = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
        client = server.connect().send(row(extra=extra) + get("/a") + get("/b", extra) + row(value=5.0), get("/c"))
        answers = client.answers
        assert [a.status for a in answers] == [200] * 5
        assert [a.json.get("path") or a.json["y"][0] for a in answers] == [1.0, "/a", "/b", 5.0, "/c"]

    @pytest.mark.parametrize("size", [1, 7, 10_000])
    def test_the_body_of_a_request_that_asks_for_an_upgrade_is_its_body(self, server: Any, size: int) -> None:
        extra = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
        inner = get("/smuggled")
        data = chunked(inner, path="/page", extra=extra) + get("/next")
        client = server.connect().send(*[data[i : i + size] for i in range(0, len(data), size)])
        assert [(a.json["path"], a.json["size"]) for a in client.answers] == [("/page", len(inner)), ("/next", 0)]

    def test_many_upgrades_in_one_read_are_no_recursion(self, server: Any) -> None:
        one = get("/u", "Connection: Upgrade\r\nUpgrade: websocket\r\n")
        assert len(server.connect().send(one * 2000).answers) == 2000

    @pytest.mark.parametrize(
        ("target", "path"),
        [
            ("http://example.org/predict/m", None),
            ("HTTPS://example.org:8080/predict/m?x=1", None),
            ("/predict/%6d", None),
            ("/predict/m?a=b", None),
            ("http://example.org", "/"),
            ("http://example.org?q=/x", "/"),
            ("/a%20b/%C3%A4", "/a b/ä"),
            ("//a/b", "//a/b"),
        ],
    )
    def test_targets_in_every_form_reach_their_route(self, server: Any, target: str, path: str | None) -> None:
        answer = server.connect().ask(target, ROW)
        assert answer.status == 200
        assert answer.json == ({"y": [1.0, 2.0, 3.0]} if path is None else answer.json | {"path": path})

    def test_options_may_ask_about_the_whole_server(self, server: Any) -> None:
        assert server.connect().send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").answer.json["path"] == "*"

    def test_http_1_0_is_answered_and_closed_even_if_it_asks_to_stay(self, server: Any) -> None:
        for extra in (b"", b"Connection: keep-alive\r\n"):
            client = server.connect().send(b"GET /a HTTP/1.0\r\n" + extra + b"\r\n" + get("/b"))
            answer = client.answer
            assert answer.json["path"] == "/a"
            assert answer.headers["connection"] == "close"
            assert client.transport.closed

    def test_connection_close_ends_the_connection_behind_its_answer(self, server: Any) -> None:
        client = server.connect().send(row(extra="Connection: close\r\n") + get("/b"), get("/c"))
        answer = client.answer
        assert answer.json == {"y": [1.0, 2.0, 3.0]}
        assert answer.headers["connection"] == "close"
        assert client.transport.closed

    def test_a_get_with_a_body_does_not_disturb_the_next_request(self, server: Any) -> None:
        client = server.connect().send(b"GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nGET " + get("/b"))
        assert [a.json["path"] for a in client.answers] == ["/a", "/b"]

    def test_the_client_s_request_id_comes_back_only_if_it_is_plain(self, server: Any) -> None:
        client = server.connect()
        assert client.ask("/predict/m", ROW, "X-Request-Id: abc-1\r\n").headers["x-request-id"] == "abc-1"
        for given in ("é", "a" * 129, "a\tb", ""):
            assert client.ask("/predict/m", ROW, f"X-Request-Id: {given}\r\n").headers["x-request-id"] != given

    def test_a_head_seen_before_means_the_same_the_second_time(self, server: Any) -> None:
        client = server.connect()
        for value in (1.0, 2.0, 3.0):
            client.send(row(value=value))
        other = server.connect().send(row(value=4.0))
        assert [a.json["y"][0] for a in client.answers] == [1.0, 2.0, 3.0]
        assert other.answer.json["y"][0] == 4.0

    @pytest.mark.parametrize("header", ["Accept-Encoding: gzip", "Pelton-Timeout-Ms: 60000", "Pelton-Priority: 2"])
    def test_headers_that_matter_go_on_to_matter_when_their_head_is_known(self, server: Any, header: str) -> None:
        client = server.connect()
        for value in (1.0, 2.0, 3.0):
            client.send(row(value=value, extra=f"{header}\r\n"))
        assert [a.json["y"][0] for a in client.answers] == [1.0, 2.0, 3.0]

    def test_a_compressed_body_is_decompressed_when_its_head_is_known(self, server: Any) -> None:
        client = server.connect()
        for _ in range(3):
            body = gzip.compress(b'{"x":[7.0,2.0,3.0]}', mtime=0)
            head = (
                f"POST /predict/m HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            client.send(head.encode() + body)
        assert [a.json["y"][0] for a in client.answers] == [7.0, 7.0, 7.0]

    def test_ids_are_never_those_of_a_head_that_was_seen_before(self, server: Any) -> None:
        client = server.connect()
        for name in ("a-1", "a-2", "a-1"):
            client.send(row(extra=f"X-Request-Id: {name}\r\n"))
        assert [a.headers["x-request-id"] for a in client.answers] == ["a-1", "a-2", "a-1"]


class TestLimits:
    def test_a_body_too_large_by_its_length_is_refused_before_it_is_sent(self, make_server: Callable[..., Any]) -> None:
        client = make_server(body=1000).connect().send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n")
        assert client.answer.status == 413
        assert "1000" in client.answer.error

    def test_a_body_too_large_by_its_chunks_is_refused(self, make_server: Callable[..., Any]) -> None:
        client = make_server(body=1000).connect().send(chunked(b"a" * 600, b"b" * 600))
        assert client.answer.status == 413

    def test_a_body_of_the_largest_size_is_taken(self, make_server: Callable[..., Any]) -> None:
        client = make_server(body=1000).connect()
        assert client.ask("/page", b"a" * 1000).json["size"] == 1000

    @pytest.mark.parametrize("name", ["gzip", "deflate", "x-gzip", "GZIP"])
    def test_a_compressed_body_that_grows_over_the_limit_is_refused(
        self, make_server: Callable[..., Any], name: str
    ) -> None:
        server = make_server(body=MEGABYTE)
        server.serve()
        bomb = b" " * (MEGABYTE + 1)
        small = zlib.compress(bomb) if name == "deflate" else gzip.compress(bomb)
        assert len(small) < 5000
        answer = server.connect().ask("/predict/m", small, f"Content-Encoding: {name}\r\n")
        assert answer.status == 413
        assert "after decompression" in answer.error

    def test_a_compressed_body_is_read(self, server: Any) -> None:
        data = json.dumps(ROW).encode()
        client = server.connect()
        for name, small in (("gzip", gzip.compress(data)), ("deflate", zlib.compress(data)), ("identity", data)):
            answer = client.ask("/predict/m", small, f"Content-Encoding: {name}\r\n")
            assert answer.json == {"y": [1.0, 2.0, 3.0]}

    @pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b + b"x", lambda b: b"x" + b, lambda b: b""])
    def test_a_damaged_compressed_body_is_a_400(self, server: Any, damage: Callable[[bytes], bytes]) -> None:
        client = server.connect()
        for name, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
            answer = client.ask("/predict/m", damage(pack(json.dumps(ROW).encode())), f"Content-Encoding: {name}\r\n")
            assert answer.status == 400
            assert name in answer.error

    def test_an_unknown_content_encoding_is_a_415(self, server: Any) -> None:
        answer = server.connect().ask("/predict/m", b"...", "Content-Encoding: br\r\n")
        assert answer.status == 415
        assert "gzip" in answer.error

    def test_one_json_body_has_a_limit_of_its_own(self, make_server: Callable[..., Any]) -> None:
        server = make_server(json=100)
        server.serve()
        assert server.connect().ask("/predict/m", {"x": [1.0] * 100}).status == 413

    def test_too_many_header_fields_are_a_431(self, server: Any) -> None:
        client = server.connect().send(get("/", "".join(f"X-{i}: 1\r\n" for i in range(101))))
        assert client.answer.status == 431

    def test_too_long_header_fields_are_a_431(self, server: Any) -> None:
        assert server.connect().send(get("/", f"X: {'a' * 66000}\r\n")).answer.status == 431

    def test_a_header_that_never_ends_is_cut_off_while_it_is_read(self, server: Any) -> None:
        client = server.connect().send(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        for _ in range(100):
            client.send(b"a" * 1024)
        assert client.answer.status == 431

    def test_a_header_name_that_never_ends_is_cut_off(self, server: Any) -> None:
        client = server.connect().send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        for _ in range(100):
            client.send(b"a" * 1024)
        assert client.answer.status == 431

    def test_a_target_that_is_too_long_is_a_414(self, server: Any) -> None:
        assert server.connect().send(get("/" + "a" * 9000)).answer.status == 414
        client = server.connect().send(b"GET /")
        for _ in range(20):
            client.send(b"a" * 1024)
        assert client.answer.status == 414

    def test_trailers_without_end_are_cut_off(self, server: Any) -> None:
        client = server.connect().send(chunked(b"{}")[:-2])
        for i in range(300):
            client.send(b"T%d: 1\r\n" % i)
        assert client.answer.status == 431

    def test_chunk_extensions_without_end_are_cut_off(self, server: Any) -> None:
        client = server.connect().send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x=")
        for _ in range(200):
            client.send(b"a" * 1024)
        assert client.answer.status == 400

    def test_a_large_body_in_honest_small_chunks_is_taken(self, server: Any) -> None:
        client = server.connect().send(b"POST /page HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(200):
            client.send(b"1\r\na\r\n" * 1000)
        assert client.send(b"0\r\n\r\n").answer.json["size"] == 200_000

    def test_an_error_is_short_whatever_it_names(self, server: Any) -> None:
        name = "x" * 100_000
        for path, body in (
            ("/predict/m", {name: 1}),
            ("/v1/models/m:predict", {"instances": [{name: 1}]}),
            ("/v1/models/m:predict", {"inputs": {name + str(i): [1] * i for i in range(20)}}),
            ("/v2/models/m/infer", {"inputs": [{"name": name, "shape": [1, 3], "datatype": name, "data": [1]}]}),
        ):
            assert len(server.connect().ask(path, body).body) < 2200


class TestPipelining:
    def test_answers_come_in_the_order_of_the_requests(self, server: Any) -> None:
        requests = [row(value=float(i)) if i % 3 else get(f"/p{i}") for i in range(50)]
        answers = server.connect().send(b"".join(requests)).answers
        assert [a.json["y"][0] if i % 3 else a.json["path"] for i, a in enumerate(answers)] == [
            float(i) if i % 3 else f"/p{i}" for i in range(50)
        ]

    def test_one_bad_body_in_the_middle_fails_alone(self, server: Any) -> None:
        client = server.connect().send(row(value=1.0) + row("/predict/other") + row(value=2.0))
        assert [a.status for a in client.answers] == [200, 404, 200]

    def test_a_thousand_requests_at_once_are_all_answered(self, server: Any) -> None:
        client = server.connect().send(row() + row("/predict/other") * 500 + row(value=3.0) * 500)
        answers = client.answers
        assert [a.status for a in answers] == [200] + [404] * 500 + [200] * 500

    def test_reading_rests_while_requests_wait_and_goes_on_when_none_does(
        self, make_server: Callable[..., Any]
    ) -> None:
        server = make_server(pipelined=4)
        server.serve()
        client = server.connect()
        assert client.send_and(row() * 4, lambda: client.transport.reading) == [True]
        assert client.send_and(row() * 6, lambda: client.transport.reading) == [False]
        assert len(client.answers) == 10
        assert client.transport.reading

    def test_what_waited_behind_others_has_its_full_time(self, make_server: Callable[..., Any]) -> None:
        server = make_server(pipelined=2, read_timeout=30.0)
        server.serve()
        client = server.connect()
        client.send_and(row() * 5 + row()[:40], lambda: server.clock.advance(100.0))
        assert len(client.answers) == 5
        client.do(client.connection.sweep, server.clock())
        assert len(client.answers) == 5
        client.send(row()[40:])
        assert client.answers[5].status == 200

    def test_a_client_that_leaves_takes_its_waiting_requests_with_it(self, server: Any) -> None:
        client = server.connect()
        client.send_and(row() * 10, lambda: client.connection.connection_lost(None))
        server.settle()
        assert [record.error for record in server.folded()] == ["cancelled"]
        assert not server.connections


class TestExpect:
    HEAD = b"POST /predict/m HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 14\r\n\r\n"
    BODY = b'{"x": [1,2,3]}'

    def test_the_client_is_told_to_go_on_and_then_answered(self, server: Any) -> None:
        client = server.connect().send(self.HEAD)
        assert bytes(client.transport.out) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(self.BODY)
        assert [a.status for a in client.answers] == [100, 200]

    def test_it_is_told_after_the_answers_that_are_due_before(self, server: Any) -> None:
        client = server.connect()
        assert client.send_and(row() + self.HEAD, lambda: bytes(client.transport.out)) == [b""]
        assert [a.status for a in client.answers] == [200, 100]
        assert [a.status for a in client.send(self.BODY).answers] == [200, 100, 200]

    def test_a_body_that_will_be_refused_is_not_asked_for(self, make_server: Callable[..., Any]) -> None:
        client = make_server(body=10).connect().send(self.HEAD)
        assert [a.status for a in client.answers] == [413]

    def test_without_a_body_there_is_nothing_to_go_on_with(self, server: Any) -> None:
        client = server.connect().send(get("/a", "Expect: 100-continue\r\n"))
        assert [a.status for a in client.answers] == [200]

    def test_http_1_0_knows_no_interim_answers(self, server: Any) -> None:
        client = server.connect().send(b"POST /a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}")
        assert [a.status for a in client.answers] == [200]


class TestTimes:
    def sweep(self, server: Any, client: Any, seconds: float) -> None:
        server.clock.advance(seconds)
        client.do(client.connection.sweep, server.clock())

    @pytest.mark.parametrize("start", [b"G", b"POST /predict/m HTTP/1.1\r\nHost:", row()[:-4], chunked(b"{}")[:-4]])
    def test_a_request_that_trickles_in_is_a_408(self, server: Any, start: bytes) -> None:
        client = server.connect().send(start)
        self.sweep(server, client, 29.0)
        assert client.answers == []
        self.sweep(server, client, 2.0)
        assert client.answer.status == 408
        assert client.answer.error

    def test_bytes_that_keep_coming_do_not_extend_the_time(self, server: Any) -> None:
        client = server.connect().send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        for i in range(40):
            client.send(b"X-%d: 1\r\n" % i)
            self.sweep(server, client, 1.0)
        assert client.answer.status == 408

    def test_an_idle_connection_is_closed_without_a_word(self, server: Any) -> None:
        for first in (b"", b"\r\n", row()):
            client = server.connect().send(first)
            answers = client.answers
            self.sweep(server, client, 74.0)
            assert not client.transport.closed
            self.sweep(server, client, 2.0)
            assert client.transport.closed
            assert len(client.answers) == len(answers)

    def test_a_long_answer_is_no_idle_time(self, make_server: Callable[..., Any]) -> None:
        server = make_server(idle_timeout=1.0)
        server.serve(model=SleepyModel(100.0, 0.0, server.clock, Signature((TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (3,)),))), slo=_slo())  # fmt: skip
        client = server.connect().send(row())
        assert client.answer.status == 200
        self.sweep(server, client, 0.5)
        assert not client.transport.closed

    def test_a_reader_that_takes_nothing_is_cut_off(self, server: Any) -> None:
        client = server.connect().send(row())
        assert client.answer.status == 200
        client.transport.unread = 100_000
        client.do(client.connection.pause_writing)
        self.sweep(server, client, 59.0)
        assert not client.transport.aborted
        self.sweep(server, client, 2.0)
        assert client.transport.aborted

    def test_a_slow_reader_that_takes_something_is_not(self, server: Any) -> None:
        client = server.connect()
        client.transport.unread = 100_000
        client.do(client.connection.pause_writing)
        for _ in range(10):
            client.transport.unread -= 1000
            self.sweep(server, client, 50.0)
        assert not client.transport.closed

    def test_no_further_request_is_started_for_a_client_that_does_not_read(self, server: Any) -> None:
        client = server.connect()
        client.do(client.connection.pause_writing)
        client.send(row() * 3)
        assert client.answers == []
        client.do(client.connection.resume_writing)
        assert len(client.answers) == 3

    def test_after_an_error_the_rest_is_read_and_dropped_for_a_while(self, server: Any) -> None:
        client = server.connect().send(b"nonsense\r\n\r\n")
        for _ in range(10):
            client.send(b"more" * 1000)
        assert client.answer.status == 400
        self.sweep(server, client, 4.0)
        assert not client.transport.closed
        self.sweep(server, client, 2.0)
        assert client.transport.closed
        assert not client.transport.aborted

    def test_a_connection_that_cannot_be_closed_politely_is_aborted(self, server: Any) -> None:
        client = server.connect().send(row(extra="Connection: close\r\n"))
        assert client.answer.status == 200
        assert client.transport.closed
        assert not client.transport.aborted
        self.sweep(server, client, 61.0)
        assert client.transport.aborted

    def test_a_client_that_closes_while_its_call_waits_has_left(self, server: Any) -> None:
        client = server.connect()
        left = client.send_and(
            row() * 3, client.connection.eof_received, lambda: client.connection.connection_lost(None)
        )
        assert left[0] is False
        assert client.answers == []
        assert server.engine.in_flight == 0

    def test_a_client_that_closes_its_sending_side_between_requests_is_closed(self, server: Any) -> None:
        client = server.connect().send(row())
        assert client.answer.status == 200
        assert client.do(client.connection.eof_received) is False

    def test_half_a_request_and_the_end_is_no_request(self, server: Any) -> None:
        client = server.connect().send(row()[:-3])
        assert client.do(client.connection.eof_received) is False
        assert client.answers == []


def _slo() -> Any:
    from pelton.packages.manifest import Slo

    return Slo(1e6)


class TestStopping:
    def test_every_request_that_is_here_is_answered_and_the_last_answer_says_close(self, server: Any) -> None:
        client = server.connect()
        client.send_and(row() * 5, client.connection.finish, lambda: client.connection.data_received(row()))
        answers = client.answers
        assert [a.status for a in answers] == [200] * 5
        assert ["connection" in a.headers for a in answers] == [False] * 4 + [True]
        assert client.transport.closed

    def test_an_idle_connection_is_closed_at_once(self, server: Any) -> None:
        client = server.connect()
        client.do(client.connection.finish)
        assert client.transport.closed

    def test_half_a_request_is_refused(self, server: Any) -> None:
        client = server.connect().send(row()[:-3])
        client.do(client.connection.finish)
        assert client.answer.status == 503
        client.do(client.connection.finish)
        assert client.transport.closed


class TestPages:
    """ASGI applications behind the same connection."""

    def run(self, make_server: Callable[..., Any], app: Any, request: bytes) -> Any:
        client = make_server(app=app).connect().send(request)
        assert client.answers is not None  # the loop has run
        return client

    def app(self, *bodies: bytes, headers: tuple[tuple[bytes, bytes], ...] = (), status: int = 200) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": status, "headers": list(headers)})
            for i, body in enumerate(bodies):
                await send({"type": "http.response.body", "body": body, "more_body": i < len(bodies) - 1})

        return app

    def test_head_has_the_length_and_no_body(self, make_server: Callable[..., Any]) -> None:
        for bodies in ((b"hello",), (b"hel", b"lo")):
            app = self.app(*bodies, headers=((b"content-length", b"5"),))
            client = self.run(make_server, app, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            head, _, body = bytes(client.transport.out).partition(b"\r\n\r\n")
            assert b"content-length: 5" in head
            assert body == b""
            assert not client.transport.closed

    def test_head_of_an_answer_of_unknown_length(self, make_server: Callable[..., Any]) -> None:
        client = self.run(make_server, self.app(b"hel", b"lo"), b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert bytes(client.transport.out).partition(b"\r\n\r\n")[2] == b""

    def test_parts_are_chunks(self, make_server: Callable[..., Any]) -> None:
        client = self.run(make_server, self.app(b"a", b"", b"b", b""), get() + get())
        assert [a.body for a in client.answers] == [b"ab", b"ab"]

    def test_parts_for_http_1_0_end_with_the_connection(self, make_server: Callable[..., Any]) -> None:
        client = self.run(make_server, self.app(b"a", b"b"), b"GET / HTTP/1.0\r\n\r\n")
        assert bytes(client.transport.out).endswith(b"\r\n\r\nab")
        assert client.transport.closed

    def test_parts_with_a_length_are_not_chunked(self, make_server: Callable[..., Any]) -> None:
        client = self.run(make_server, self.app(b"a", b"b", headers=((b"Content-Length", b"2"),)), get() + get())
        assert [a.body for a in client.answers] == [b"ab", b"ab"]

    @pytest.mark.parametrize("status", [204, 304])
    def test_a_status_without_body_has_none(self, make_server: Callable[..., Any], status: int) -> None:
        client = self.run(make_server, self.app(b"oops", status=status), get() + get())
        assert [(a.status, a.body) for a in client.answers] == [(status, b"")] * 2

    def test_an_application_that_sends_less_than_it_promised_is_cut_off(self, make_server: Callable[..., Any]) -> None:
        client = self.run(make_server, self.app(b"a", b"b", headers=((b"content-length", b"9"),)), get() + get())
        assert client.transport.aborted

    def test_an_application_cannot_send_more_than_it_promised(self, make_server: Callable[..., Any]) -> None:
        client = self.run(make_server, self.app(b"abc", b"d", headers=((b"content-length", b"2"),)), get() + get())
        assert [a.body for a in client.answers] == [b"ab", b"ab"]

    def test_an_application_that_raises_is_a_500_and_the_connection_lives(
        self, make_server: Callable[..., Any]
    ) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise RuntimeError("secret")

        client = self.run(make_server, app, get() + get())
        assert [a.status for a in client.answers] == [500, 500]
        assert "secret" not in client.answers[0].error

    def test_an_application_that_raises_in_the_middle_cuts_the_connection(
        self, make_server: Callable[..., Any]
    ) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise RuntimeError

        assert self.run(make_server, app, get()).transport.aborted

    def test_a_header_with_a_line_break_never_leaves_the_server(self, make_server: Callable[..., Any]) -> None:
        for value in (b"a\r\nSet-Cookie: x", b"a\nb", b"a\rb", b"a\0b"):
            client = self.run(make_server, self.app(b"x", headers=((b"x-echo", value),)), get())
            assert client.answer.status == 500
            assert b"x-echo" not in client.transport.out

    def test_the_application_hears_when_the_client_leaves(self, make_server: Callable[..., Any]) -> None:
        heard = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            heard.append((await receive())["type"])
            heard.append((await receive())["type"])

        server = make_server(app=app)
        client = server.connect().send(get())
        server.turns(3)
        client.hang_up()
        server.turns(3)
        assert heard == ["http.request", "http.disconnect"]

    def test_the_application_hears_when_its_answer_is_complete(self, make_server: Callable[..., Any]) -> None:
        heard = []
        plain = self.app(b"x")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await plain(scope, receive, send)
            heard.append((await receive())["type"])

        self.run(make_server, app, get())
        assert heard == ["http.disconnect"]

    def test_a_stream_waits_for_a_slow_reader(self, make_server: Callable[..., Any]) -> None:
        sent = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for i in range(5):
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                sent.append(i)
            await send({"type": "http.response.body", "body": b""})

        server = make_server(app=app)
        client = server.connect()
        client.send_and(get(), client.connection.pause_writing)
        server.turns(20)
        assert sent == []
        client.do(client.connection.resume_writing)
        server.turns(20)
        assert sent == [0, 1, 2, 3, 4]


def test_responses_are_compressed_only_where_asked_and_large(make_server: Callable[..., Any]) -> None:
    server = make_server()
    spec = TensorSpec("x", "FP32", (-1,)), TensorSpec("y", "FP32", (-1,))
    server.serve(model=EchoModel(Signature((spec[0],), (spec[1],))))
    client = server.connect()
    accept = "Accept-Encoding: br, gzip;q=0.5\r\n"
    large = client.ask("/predict/m", {"x": [0.5] * 10_000}, accept)
    assert large.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(large.body)) == {"y": [0.5] * 10_000}
    assert "content-encoding" not in client.ask("/predict/m", {"x": [0.5] * 10}, accept).headers
    assert "content-encoding" not in client.ask("/predict/m", {"x": [0.5] * 10_000}).headers
    error = client.ask("/predict/m", {"x": ["0.5"] * 10_000}, accept)
    assert "content-encoding" not in error.headers
    assert error.status == 400
    assert error.error


def test_the_date_is_written_as_the_standard_wants_it(server: Any) -> None:
    date = server.connect().ask("/predict/m", ROW).headers["date"]
    assert re.fullmatch(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", date)
