import pytest

from pelton.bench.plan import Plan, Target, encode_requests
from pelton.errors import InvalidInput

GOOD = {"host": "127.0.0.1", "port": 80, "path": "/v2/models/m/infer", "bodies": (b"{}",), "p99_ms": 20.0}


def test_a_request_is_encoded_with_its_own_length() -> None:
    target = Target(**{**GOOD, "bodies": (b"{}", b"[1,2]")}, headers=(("x-key", "abc"),))
    first, second = encode_requests(target)
    assert (
        first == b"POST /v2/models/m/infer HTTP/1.1\r\nhost: 127.0.0.1:80\r\nx-key: abc\r\ncontent-length: 2\r\n\r\n{}"
    )
    assert second.endswith(b"content-length: 5\r\n\r\n[1,2]")


def test_an_address_of_version_6_is_bracketed() -> None:
    assert Target(**{**GOOD, "host": "::1"}).url == "http://[::1]:80/v2/models/m/infer"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bodies", ()),
        ("p99_ms", 0.0),
        ("p99_ms", float("nan")),
        ("port", 0),
        ("path", "v2"),
        ("path", "/a b"),
        ("path", "/a\r\nx: y"),
        ("host", "a\r\nb"),
        ("headers", (("x", "a\r\nb: c"),)),
        ("headers", (("x y", "a"),)),
        ("headers", (("x", "Ω"),)),
        ("headers", (("Content-Length", "3"),)),
    ],
)
def test_a_target_that_cannot_be_sent_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=field.removesuffix("s").replace("bodie", "bodies")):
        Target(**{**GOOD, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("callers", ()),
        ("callers", (0,)),
        ("callers", (1_000,)),
        ("step_seconds", 0.0),
        ("timeout_seconds", float("inf")),
        ("settle_seconds", -1.0),
        ("confidence", 1.0),
        ("rates", (0.0,)),
        ("overload", 0.5),
        ("most_connections", 100),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=field):
        Plan(**{field: value})
