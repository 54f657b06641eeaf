"""Events are told to webhooks: signed JSON by POST, each receiver in order, slow ones apart from the others.

A private client instead of the library's: the whole exchange ends within one deadline, however slowly the receiver
sends, no redirect is followed and no proxy of the environment is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec

from pelton import __version__
from pelton.errors import PeltonError
from pelton.events import LEASE_SECONDS, Delivery, Events, host_of

log = logging.getLogger(__name__)

TIMEOUT: Final = 5.0  # of the whole exchange
LATEST: Final = LEASE_SECONDS / 2  # after the claim: beyond, another process might have the lease
AT_ONCE: Final = 8  # receivers that are told at the same time
LONGEST_HEAD: Final = 16 * 1024  # of an answer
LINGER: Final = 0.2  # for the rest of an answer, which nobody reads: receivers dislike a connection that breaks
MOST_REST: Final = 64 * 1024
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r\n]")
_BEGINNING: Final = 13  # bytes of a status line that say whether it is one

Opener = Callable[[str, Mapping[str, str], bytes, float], int]
T = TypeVar("T")


def sign(secret: str, body: bytes, at: int) -> str:
    """The header `pelton-signature`: the time in seconds since 1970, and the HMAC of it and the body."""
    mac = hmac.new(secret.encode(), b"%d.%b" % (at, body), hashlib.sha256)
    return f"t={at},v1={mac.hexdigest()}"


class Deliverer:
    """Tells the webhooks of a store what they have not heard. `opener`: (address, headers, body, deadline) -> status.

    Any number of processes may each have one. `tick` returns at once; deliveries run in threads of their own.
    """

    def __init__(self, events: Events, process: str, opener: Opener | None = None, at_once: int = AT_ONCE) -> None:
        self._events = events
        self._process = process
        self._opener = opener or post
        self._free = threading.BoundedSemaphore(at_once)
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def tick(self, now: float) -> int:
        """Starts to deliver what is due; returns how many deliveries it has started. `now`: seconds since 1970.

        Raises PeltonError where the store cannot be used: try again later."""
        started = 0
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        while not self._closed and self._free.acquire(blocking=False):
            delivery, begun = None, time.monotonic()
            try:
                delivery = self._events.claim(self._process, now)
            finally:
                if delivery is None:
                    self._free.release()
            if delivery is None:
                break
            # a daemon: a name that is looked up for a minute must not keep the process from its end
            thread = threading.Thread(
                target=self._deliver_all, args=(delivery, now, begun), daemon=True, name="webhook"
            )
            self._threads.add(thread)
            thread.start()
            started += 1
        return started

    def close(self) -> None:
        """Waits a bounded time for what is under way. What is left is delivered later, by any process."""
        self._closed = True
        end = time.monotonic() + TIMEOUT + LINGER
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _deliver_all(self, first: Delivery, now: float, begun: float) -> None:
        """Delivers this one, and then whatever is due, so that a burst does not take one tick an event."""
        delivery: Delivery | None = first
        try:
            while delivery is not None:
                self._deliver(delivery, now, begun)
                delivery = None
                if not self._closed:
                    now, begun = now + time.monotonic() - begun, time.monotonic()
                    delivery = self._events.claim(self._process, now)
        except PeltonError as error:  # the lease ends by itself, then this one is told again
            log.warning("webhooks wait, the store cannot be used: %s", error)
        except Exception:
            log.exception("telling a webhook failed")
        finally:
            self._free.release()

    def _deliver(self, delivery: Delivery, now: float, begun: float) -> None:
        """One attempt. `now` is the time of the claim, `begun` the same on the monotonic clock."""
        body, headers = request_of(delivery, now)
        try:
            deadline = min(time.monotonic() + TIMEOUT, begun + LATEST)
            problem = problem_of(self._opener(delivery.url, headers, body, deadline))
        except (OSError, ValueError) as error:
            problem = _told(error)
        now += time.monotonic() - begun
        if not problem:
            self._events.delivered(delivery, now)
        elif self._events.failed(delivery, problem, now):
            log.error(
                "webhook %s (%s): event %d is given up after %d attempts: %s",
                delivery.webhook, host_of(delivery.url), delivery.event.id, delivery.attempt, problem,
            )  # fmt: skip
        elif delivery.attempt == 1:
            log.warning(
                "webhook %s (%s): event %d is tried again: %s",
                delivery.webhook, host_of(delivery.url), delivery.event.id, problem,
            )  # fmt: skip


def request_of(delivery: Delivery, now: float) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a delivery."""
    body = msgspec.json.encode(delivery.event)
    return body, {
        "content-type": "application/json",
        "user-agent": f"pelton/{__version__}",
        "pelton-event": delivery.event.action,
        "pelton-delivery": delivery.id,
        "pelton-signature": sign(delivery.secret, body, int(now)),
    }


def problem_of(status: int) -> str:
    """What is wrong with an answer; nothing where the receiver has the event."""
    if 200 <= status < 300:
        return ""
    if 300 <= status < 400:
        return f"it answered {status}; redirects are not followed: give the final address"
    return f"it answered {status}"


def _told(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be looked up: {error.strerror}"
    return str(getattr(error, "strerror", None) or error)


# ---- one exchange


def post(url: str, headers: Mapping[str, str], body: bytes, deadline: float) -> int:
    """Sends one POST and returns the status of the answer. Raises OSError (TimeoutError at `deadline`, a time of
    `time.monotonic`), and ValueError for what is not HTTP."""
    parts = urlsplit(url)
    context = ssl.create_default_context() if parts.scheme == "https" else None
    sock = _connect(parts, deadline)
    try:
        if context is not None:
            sock = _encrypt(context, sock, parts.hostname or "", deadline)
        _send(sock, _request(parts, headers, body), deadline)
        status = _status(sock, deadline)
        _rest(sock, min(deadline, time.monotonic() + LINGER))
        return status
    finally:
        sock.close()


def _request(parts: SplitResult, headers: Mapping[str, str], body: bytes) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"POST {target} HTTP/1.1", f"host: {parts.netloc}", "connection: close", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def _connect(parts: SplitResult, deadline: float) -> socket.socket:
    """A connected socket that never blocks. A name that took too long to look up is not connected to: the lease may
    have ended."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    problem: OSError = TimeoutError()
    for family, kind, protocol, _, address in found:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(left)
        try:
            sock.connect(address)
        except OSError as error:
            sock.close()
            problem = error
            continue
        sock.setblocking(False)
        return sock
    raise problem


def _encrypt(context: ssl.SSLContext, sock: socket.socket, host: str, deadline: float) -> ssl.SSLSocket:
    """Ends `sock` where it fails: the encrypted one owns it."""
    secured = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    try:
        _when_able(secured, secured.do_handshake, select.POLLIN, deadline)
    except BaseException:
        secured.close()
        raise
    return secured


def _send(sock: socket.socket, data: bytes, deadline: float) -> None:
    view = memoryview(data)
    while view:
        view = view[_when_able(sock, lambda: sock.send(view), select.POLLOUT, deadline) :]  # noqa: B023 - called at once


def _status(sock: socket.socket, deadline: float) -> int:
    """The status of the answer; those that only promise one (1xx) are skipped."""
    data = b""
    while len(data) <= LONGEST_HEAD:
        more = _when_able(sock, lambda: sock.recv(4096), select.POLLIN, deadline)
        if not more:
            raise ConnectionError("it closed the connection without an answer")
        data += more
        while len(data) >= _BEGINNING:
            match = _STATUS.match(data)
            if match is None:
                raise ValueError("its answer is not HTTP")
            if int(match[1]) >= 200:
                return int(match[1])
            head, end, after = data.partition(b"\r\n\r\n")
            data = after if end else head
            if not end:
                break
    raise ValueError("its answer has no end")


def _rest(sock: socket.socket, deadline: float) -> None:
    """Lets the receiver finish what it says, within bounds."""
    with contextlib.suppress(OSError):
        size = 0
        while size < MOST_REST and (data := _when_able(sock, lambda: sock.recv(4096), select.POLLIN, deadline)):
            size += len(data)


def _when_able(sock: socket.socket, action: Callable[[], T], waits_for: int, deadline: float) -> T:
    """Calls `action` of a socket that does not block, as often as it takes. Raises TimeoutError at the deadline."""
    while True:
        try:
            return action()
        except ssl.SSLWantReadError:
            event = select.POLLIN
        except ssl.SSLWantWriteError:
            event = select.POLLOUT
        except BlockingIOError:
            event = waits_for
        left = deadline - time.monotonic()
        poll: Any = select.poll()
        poll.register(sock, event)
        if left <= 0 or not poll.poll(left * 1e3):
            raise TimeoutError
