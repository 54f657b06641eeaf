"""Who may use the admin API: every rule by itself."""

from __future__ import annotations

import pytest

from pelton.server.pages.admin_auth import ATTEMPTS, REMEMBERED, WINDOW, Denied, Gate

HERE = {"host": "127.0.0.1:8080"}


def denied(gate: Gate, headers: dict[str, str], peer: str | None = "127.0.0.1", now: float = 0.0) -> Denied:
    with pytest.raises(Denied) as found:
        gate.check(headers, peer, now)
    return found.value


# ---- without a token


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST"])
def test_programs_on_the_machine_are_let_in(peer, host):
    assert Gate("").check({"host": host}, peer, 0.0) == "by this machine"


@pytest.mark.parametrize(
    "peer", ["10.0.0.7", "192.168.1.2", "::ffff:10.0.0.7", "2001:db8::1", "", None, "localhost.evil"]
)
def test_other_machines_are_kept_out(peer):
    error = denied(Gate(""), HERE, peer)
    assert error.status == 403
    assert "admin_token" in str(error)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8080", "", "[", "10.0.0.7"]
)
def test_a_foreign_name_that_leads_here_is_kept_out(host):
    assert denied(Gate(""), {"host": host}).status == 403
    assert denied(Gate(""), {}).status == 403


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-host"])
def test_what_comes_through_a_proxy_is_kept_out(header):
    assert denied(Gate(""), {**HERE, header: "127.0.0.1"}).status == 403


# ---- browsers


@pytest.mark.parametrize("gate", [Gate(""), Gate("secret")], ids=["open", "token"])
@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9999"},
     {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}],
)  # fmt: skip
def test_pages_of_other_sites_are_kept_out(gate, headers):
    assert denied(gate, {**HERE, "authorization": "Bearer secret", **headers}).status == 403


@pytest.mark.parametrize(
    "headers", [{"origin": "http://127.0.0.1:8080"}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}]
)
def test_pages_of_the_server_itself_are_let_in(headers):
    assert Gate("").check({**HERE, **headers}, "127.0.0.1", 0.0)


# ---- with a token


@pytest.mark.parametrize("peer", ["10.0.0.7", "127.0.0.1", None])
def test_whoever_has_the_token_is_let_in_from_anywhere(peer):
    assert Gate("s3cret").check({"host": "models.example", "authorization": "Bearer s3cret"}, peer, 0.0) == "by token"
    assert Gate("s3cret").check({"authorization": "bearer  s3cret "}, peer, 0.0)


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Bearer wrong", "Bearer s3cret2", "Basic s3cret", "s3cret", "Bearer \xff"]
)
def test_a_missing_or_wrong_token_is_refused_also_on_the_machine(given):
    headers = {**HERE, "authorization": given} if given else HERE
    error = denied(Gate("s3cret"), headers)
    assert error.status == 401
    assert "PELTON_ADMIN_TOKEN" in str(error)
    assert "s3cret" not in str(error)


def test_a_token_may_hold_any_letters():
    sent = "gehäim".encode().decode("latin-1")  # as headers are read
    assert Gate("gehäim").check({"authorization": f"Bearer {sent}"}, "10.0.0.7", 0.0)


def test_an_address_that_guesses_has_to_wait_and_others_do_not():
    gate = Gate("s3cret")
    wrong = {"authorization": "Bearer wrong"}
    for number in range(ATTEMPTS):
        assert denied(gate, wrong, "10.0.0.7", now=number * 0.1).status == 401
    assert denied(gate, wrong, "10.0.0.7", now=3.0).status == 429
    assert denied(gate, {"authorization": "Bearer s3cret"}, "10.0.0.7", now=3.0).status == 429
    assert gate.check({"authorization": "Bearer s3cret"}, "10.0.0.8", 3.0)
    assert gate.check({"authorization": "Bearer s3cret"}, "10.0.0.7", 3.0 + WINDOW)


def test_asking_without_a_token_is_no_guess():
    gate = Gate("s3cret")
    for _ in range(ATTEMPTS + 5):
        assert denied(gate, HERE).status == 401


def test_many_addresses_that_guess_take_a_bounded_memory():
    gate = Gate("s3cret")
    for number in range(REMEMBERED + 50):
        denied(gate, {"authorization": "Bearer wrong"}, f"10.0.{number // 250}.{number % 250}")
    assert len(gate._wrong) == REMEMBERED


# ---- the actor


def test_the_actor_is_who_the_caller_says_and_what_let_it_in():
    headers = {"authorization": "Bearer t", "pelton-actor": "ann@desk"}
    assert Gate("t").check(headers, "10.0.0.7", 0.0) == "ann@desk (by token)"
    assert Gate("").check({**HERE, "pelton-actor": "ann@desk"}, "::1", 0.0) == "ann@desk (by this machine)"


def test_an_actor_is_short_and_printable():
    assert len(Gate("").check({**HERE, "pelton-actor": "a" * 5000}, "::1", 0.0)) < 150
    assert Gate("").check({**HERE, "pelton-actor": "a\x00b"}, "::1", 0.0) == "by this machine"
