"""Deliveries to real HTTP servers, by threads of this process and by processes that are killed."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pelton.events import LEASE_SECONDS, MOST_ATTEMPTS, Events, pause_after
from pelton.server.webhooks import Deliverer, post, sign
from pelton.store import Store

SECRET = "a-secret-of-the-test"
ROOT = Path(__file__).parents[2]
PROCESS = """
import sys, time
from pelton.events import Events
from pelton.server.webhooks import Deliverer
from pelton.store import Store

deliverer = Deliverer(Events(Store.open(sys.argv[1])), sys.argv[2])
while True:
    deliverer.tick(time.time())
    time.sleep(0.01)
"""


@pytest.fixture
def address(tmp_path: Path) -> str:
    """Leases are tested on both stores; what goes over the wire does not depend on them."""
    return f"sqlite:///{tmp_path / 'pelton.db'}"


@pytest.fixture
def make_deliverer(events: Events) -> Iterator[Callable[..., Deliverer]]:
    made: list[Deliverer] = []

    def make(process: str = "p", **options: Any) -> Deliverer:
        made.append(Deliverer(events, process, **options))
        return made[-1]

    yield make
    for deliverer in made:
        deliverer.close()


@pytest.fixture
def deliverer(make_deliverer: Callable[..., Deliverer]) -> Deliverer:
    return make_deliverer()


@pytest.fixture
def start(address: str) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts a process that delivers until it is killed."""
    made: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen([sys.executable, "-c", PROCESS, address, name], stderr=subprocess.PIPE))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate()


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], int]]:
    """answering(bytes) -> the port of a server that says just that, byte for byte, again and again, and hangs up never."""
    ended = threading.Event()
    threads: list[threading.Thread] = []
    listeners: list[socket.socket] = []

    def serve(listener: socket.socket, said: bytes, times: int) -> None:
        with listener, listener.accept()[0] as connection:
            connection.settimeout(0.05)
            for _ in range(times):
                if ended.is_set():
                    return
                try:
                    connection.sendall(said)
                except TimeoutError:
                    continue
                except OSError:
                    return
            ended.wait(30)

    def start(said: bytes, times: int = 1) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        port: int = listener.getsockname()[1]
        threads.append(threading.Thread(target=serve, args=(listener, said, times), daemon=True))
        threads[-1].start()
        return port

    yield start
    ended.set()
    for thread in threads:
        thread.join(10)


def refusing_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


# ---- what is sent


def test_an_event_is_posted_as_signed_json(
    events: Events, tell: Any, deliverer: Deliverer, receiver: Any, until: Any
) -> None:
    hook = events.webhook_add(receiver.url, SECRET)
    key = tell("promote", "fraud", version="v4", why="métrique")
    assert deliverer.tick(time.time()) == 1
    until(lambda: not events.webhooks()[0].waiting, "delivered")
    [post] = receiver.posts
    [event] = events.page(after=hook.cursor)
    assert post.path == "/hooks/secret-path?key=secret-query"
    assert list(post.json) == ["id", "at", "action", "name", "actor", "details"]
    assert post.json == {
        "id": key, "at": event.at, "action": "promote", "name": "fraud", "actor": "ana",
        "details": {"version": "v4", "why": "métrique"},
    }  # fmt: skip
    assert post.headers["content-type"] == "application/json"
    assert post.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert post.headers["pelton-event"] == "promote"
    assert post.headers["pelton-delivery"] == f"{hook.id}-{key}"
    seconds = int(post.headers["pelton-signature"].split(",")[0].removeprefix("t="))
    assert abs(seconds - time.time()) < 60
    assert post.headers["pelton-signature"] == sign(SECRET, post.body, seconds)


def test_the_signature_is_that_of_the_specification() -> None:
    """Computed by hand: printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac a-secret-of-the-test"""
    assert sign(SECRET, b'{"a":1}', 1_700_000_000) == ("t=1700000000,v1=" + openssl_hmac(SECRET, b'1700000000.{"a":1}'))


def openssl_hmac(secret: str, data: bytes) -> str:
    command = ["openssl", "dgst", "-sha256", "-hmac", secret]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout.split()[-1].decode()


def test_the_verification_of_the_documentation_accepts_what_is_sent_and_nothing_else(
    events: Events, tell: Any, deliverer: Deliverer, receiver: Any, until: Any
) -> None:
    text = (ROOT / "docs" / "events.md").read_text()
    code = next(part for part in text.split("```python\n") if "def verified" in part).split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names: dict[str, Any] = {}
    exec(code, names)
    verified = names["verified"]
    events.webhook_add(receiver.url, SECRET)
    tell()
    deliverer.tick(time.time())
    until(lambda: receiver.posts, "delivered")
    [post] = receiver.posts
    signature = post.headers["pelton-signature"]
    seconds, mac = signature.removeprefix("t=").split(",v1=")
    assert verified(SECRET, signature, post.body)
    assert not verified(SECRET + "x", signature, post.body)
    assert not verified(SECRET, signature, post.body + b" ")
    assert not verified(SECRET, f"t={int(seconds) + 1},v1={mac}", post.body)
    assert not verified(SECRET, sign(SECRET, post.body, int(seconds) - 3600), post.body)  # an old one, sent again


# ---- order and repetition


def test_events_arrive_in_order_each_once(
    events: Events, tell: Any, deliverer: Deliverer, receiver: Any, until: Any
) -> None:
    events.webhook_add(receiver.url)
    ids = [tell(number=number) for number in range(20)]
    deliverer.tick(time.time())  # one tick is enough for a burst
    until(lambda: not events.webhooks()[0].waiting, "all delivered")
    assert receiver.ids == ids
    assert receiver.most_together == 1


def test_an_event_is_sent_again_after_an_error_and_the_next_one_waits_for_it(
    events: Events, tell: Any, deliverer: Deliverer, receiver: Any, until: Any
) -> None:
    events.webhook_add(receiver.url)
    receiver.statuses = [500, 503]
    first, second = tell(), tell()
    now = time.time()
    deliverer.tick(now)
    until(lambda: events.webhooks()[0].last_error, "it failed")
    assert events.webhooks()[0].last_error == "it answered 500"
    assert deliverer.tick(now) == 0  # not before its pause
    now = events.webhooks()[0].next_at
    assert deliverer.tick(now) == 1
    until(lambda: events.webhooks()[0].last_error == "it answered 503", "it failed again")
    deliverer.tick(events.webhooks()[0].next_at)
    until(lambda: not events.webhooks()[0].waiting, "all delivered")
    assert receiver.ids == [first, first, first, second]
    assert len({post.headers["pelton-delivery"] for post in receiver.posts}) == 2
    assert events.webhooks()[0].last_error == ""


def test_a_receiver_that_is_not_there_yet_gets_the_event_when_it_is(
    events: Events, tell: Any, make_deliverer: Any, receiver: Any, until: Any
) -> None:
    gone = f"http://127.0.0.1:{refusing_port()}/"

    def moved(url: str, headers: Any, body: bytes, deadline: float) -> int:
        return post(gone if events.webhooks()[0].attempts == 1 else receiver.url, headers, body, deadline)

    deliverer = make_deliverer(opener=moved)
    events.webhook_add(receiver.url)
    key = tell()
    deliverer.tick(time.time())
    until(lambda: "refused" in events.webhooks()[0].last_error, "refused")
    deliverer.tick(events.webhooks()[0].next_at)
    until(lambda: not events.webhooks()[0].waiting, "delivered")
    assert receiver.ids == [key]


def test_what_no_attempt_could_deliver_is_given_up_and_the_next_event_goes_on(
    events: Events, tell: Any, deliverer: Deliverer, receiver: Any, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    events.webhook_add(receiver.url, SECRET)
    receiver.statuses = [404] * MOST_ATTEMPTS
    first, second = tell(), tell()
    now = time.time()
    for attempt in range(1, MOST_ATTEMPTS + 1):
        deliverer.tick(now)
        until(lambda sent=attempt: len(receiver.posts) >= sent, "sent")
        until(lambda: not deliverer.tick(now) and not receiver.together, "settled")
        until(lambda sent=attempt: events.webhooks()[0].next_at > now or sent == MOST_ATTEMPTS, "put off")
        now += pause_after(attempt, 0.0) + 1.0
    until(lambda: not events.webhooks()[0].waiting, "the next one went on")
    assert receiver.ids == [first] * MOST_ATTEMPTS + [second]
    assert events.webhooks()[0].given_up == 1
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert told == [
        f"webhook {events.webhooks()[0].id} (http://127.0.0.1:{receiver.port}): event {first} is given up after "
        f"{MOST_ATTEMPTS} attempts: it answered 404"
    ]
    for secret in (SECRET, "secret-path", "secret-query"):
        assert secret not in caplog.text
        assert secret not in events.webhooks()[0].last_error


# ---- several at once


def test_two_processes_never_deliver_to_a_webhook_at_the_same_time(
    events: Events, tell: Any, make_receiver: Any, start: Any, until: Any
) -> None:
    receivers = [make_receiver(), make_receiver()]
    for receiver in receivers:
        events.webhook_add(receiver.url, actions=["deploy"])
    ids = [tell() for _ in range(10)]
    for name in ("first", "second"):
        start(name)
    ids += [tell() for _ in range(20)]
    until(lambda: not any(hook.waiting for hook in events.webhooks()), "all delivered")
    for receiver in receivers:
        assert receiver.ids == ids  # in order, and each once: nobody was killed
        assert receiver.most_together == 1


def test_a_process_that_is_killed_while_it_delivers_loses_nothing(
    events: Events, tell: Any, deliverer: Deliverer, receiver: Any, start: Any, until: Any
) -> None:
    events.webhook_add(receiver.url)
    receiver.gate.clear()
    first, second = tell(), tell()
    process = start("victim")
    until(lambda: receiver.posts, "it is delivering")
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    receiver.gate.set()
    assert deliverer.tick(time.time()) == 0  # the dead one's lease stands
    deliverer.tick(time.time() + LEASE_SECONDS)
    until(lambda: not events.webhooks()[0].waiting, "all delivered")
    assert receiver.ids == [first, first, second]
    assert receiver.posts[0].headers["pelton-delivery"] == receiver.posts[1].headers["pelton-delivery"]


def test_a_slow_receiver_does_not_hold_up_the_others(
    events: Events, tell: Any, deliverer: Deliverer, make_receiver: Any, until: Any
) -> None:
    slow, quick = make_receiver(), make_receiver()
    slow.gate.clear()
    events.webhook_add(slow.url, actions=["deploy"])
    events.webhook_add(quick.url, actions=["deploy"])
    ids = [tell() for _ in range(5)]
    deliverer.tick(time.time())
    until(lambda: len(quick.posts) == len(ids) and slow.posts, "the quick one has all")
    assert slow.ids == ids[:1]
    assert quick.ids == ids
    slow.gate.set()
    until(lambda: not any(hook.waiting for hook in events.webhooks()), "all delivered")
    assert slow.ids == ids


def test_no_more_are_told_at_once_than_allowed(events: Events, tell: Any, make_deliverer: Any, receiver: Any) -> None:
    deliverer = make_deliverer(at_once=2)
    receiver.gate.clear()
    for _ in range(3):
        events.webhook_add(receiver.url)
    tell()
    assert deliverer.tick(time.time()) == 2
    assert deliverer.tick(time.time()) == 0
    receiver.gate.set()


def test_a_closed_deliverer_claims_nothing_more(
    events: Events, tell: Any, make_deliverer: Any, receiver: Any, until: Any
) -> None:
    deliverer = make_deliverer()
    events.webhook_add(receiver.url)
    first, second = tell(), tell()
    receiver.gate.clear()
    deliverer.tick(time.time())
    until(lambda: receiver.posts, "the first is on its way")
    closing = threading.Thread(target=deliverer.close)
    closing.start()
    until(lambda: deliverer._closed, "closing")
    receiver.gate.set()
    closing.join(20)
    assert receiver.ids == [first]
    assert deliverer.tick(time.time()) == 0
    assert [events.webhooks()[0].waiting, events.webhooks()[0].cursor] == [1, first]
    assert second > first


# ---- receivers that misbehave


def test_a_redirect_is_not_followed(
    events: Events, tell: Any, deliverer: Deliverer, make_receiver: Any, until: Any
) -> None:
    first, elsewhere = make_receiver(), make_receiver()
    first.statuses, first.headers = [307], {"location": elsewhere.url}
    events.webhook_add(first.url)
    tell()
    deliverer.tick(time.time())
    until(lambda: "redirects are not followed" in events.webhooks()[0].last_error, "it failed")
    assert elsewhere.posts == []


def test_an_environment_with_a_proxy_is_not_asked(receiver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{refusing_port()}")
    assert post(receiver.url, {}, b"{}", soon()) == 200


@pytest.mark.parametrize(
    ("said", "times"),
    [
        (b"", 1),
        (b"HTTP/1.1", 1),
        (b"HTTP/1.1 100 Continue\r\n", 1),
        (b"HTTP/1.1 100 Continue\r\n\r\n", 1_000_000),
    ],
    ids=["nothing", "half a line", "half a promise", "promises"],
)
def test_a_receiver_that_never_answers_costs_no_more_than_the_deadline(answering: Any, said: bytes, times: int) -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        post(f"http://127.0.0.1:{answering(said, times)}/", {}, b"{}", soon(0.3))
    assert time.monotonic() - begun < 10


def test_a_handshake_that_never_ends_costs_no_more_than_the_deadline(answering: Any) -> None:
    with pytest.raises(TimeoutError):
        post(f"https://127.0.0.1:{answering(b'')}/", {}, b"{}", soon(0.3))


def test_a_deadline_that_has_passed_connects_to_nobody(receiver: Any) -> None:
    with pytest.raises(TimeoutError):
        post(receiver.url, {}, b"{}", time.monotonic() - 1.0)
    assert receiver.posts == []


def test_an_answer_without_an_end_is_not_read_to_its_end(answering: Any) -> None:
    port = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999\r\n\r\n" + b"x" * 65_536, 1_000_000)
    assert post(f"http://127.0.0.1:{port}/", {}, b"{}", soon(20)) == 200


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/2 200 OK\r\n\r\n", b"x" * 65_536])
def test_what_is_no_http_is_told(answering: Any, said: bytes) -> None:
    with pytest.raises(ValueError, match="not HTTP"):
        post(f"http://127.0.0.1:{answering(said)}/", {}, b"{}", soon())


def test_a_promise_before_the_answer_is_skipped(answering: Any) -> None:
    port = answering(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 204 No\r\n\r\n")
    assert post(f"http://127.0.0.1:{port}/", {}, b"{}", soon()) == 204


def test_a_name_that_does_not_exist_is_told(
    events: Events, tell: Any, deliverer: Deliverer, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*arguments: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # the resolvers of networks differ
    events.webhook_add("http://no.such.host/")
    tell()
    deliverer.tick(time.time())
    until(lambda: "cannot be looked up" in events.webhooks()[0].last_error, "it failed")


def test_a_store_that_fails_leaves_the_event_for_later(
    store: Store, events: Events, tell: Any, deliverer: Deliverer, receiver: Any, until: Any
) -> None:
    """The answer came, but could not be written down: it is sent again, not lost."""
    events.webhook_add(receiver.url)
    key = tell()
    receiver.gate.clear()
    deliverer.tick(time.time())
    until(lambda: receiver.posts, "on its way")
    with store.write() as connection:
        connection.exec_driver_sql("ALTER TABLE webhooks RENAME TO away")
    receiver.gate.set()
    until(lambda: not any(thread.is_alive() for thread in deliverer._threads), "the thread ended")
    with store.write() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO webhooks")
    assert deliverer.tick(time.time() + LEASE_SECONDS) == 1
    until(lambda: not events.webhooks()[0].waiting, "delivered")
    assert receiver.ids == [key, key]


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key, in one file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pelton test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture
def secure_receiver(make_receiver: Any, certificate: Path) -> Any:
    receiver = make_receiver()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    receiver.secure(context)
    return receiver


def test_a_certificate_that_nobody_vouches_for_gets_no_event(
    events: Events, tell: Any, deliverer: Deliverer, secure_receiver: Any, until: Any
) -> None:
    events.webhook_add(secure_receiver.url)
    tell()
    deliverer.tick(time.time())
    until(lambda: "certificate is not trusted" in events.webhooks()[0].last_error, "it failed")
    assert secure_receiver.posts == []


def test_a_certificate_of_an_own_authority_is_trusted_where_it_is_named(
    events: Events, tell: Any, deliverer: Deliverer, secure_receiver: Any, certificate: Path, until: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    events.webhook_add(secure_receiver.url)
    key = tell(text="x" * 300_000)  # more than one record, and than a socket's buffer
    deliverer.tick(time.time())
    until(lambda: not events.webhooks()[0].waiting, "delivered")
    assert secure_receiver.ids == [key]


def test_a_certificate_for_another_name_gets_no_event(
    secure_receiver: Any, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(ssl.SSLCertVerificationError):
        post(secure_receiver.url.replace("127.0.0.1", "localhost"), {}, b"{}", soon())
