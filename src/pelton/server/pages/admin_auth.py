"""Who may use the admin API. Pure but for the clock that is passed in.

With a token: whoever sends it. Without one: programs on this machine, told by the address of the connection; what a
proxy says about its clients is not believed, so behind one a token is needed. Pages of other sites that a browser on
this machine shows are kept out either way: by their Origin, and, where only the address speaks for a caller, by the
Host, which has to be one of this machine's own names (else a foreign name that resolves to 127.0.0.1 would get in).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from pelton.errors import PeltonError

ATTEMPTS: Final = 20  # wrong tokens of one address in a window, before it has to wait
WINDOW: Final = 60.0
REMEMBERED: Final = 1024  # addresses
ACTOR_LIMIT: Final = 100
FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


class Denied(PeltonError):
    """The caller may not. `status`: 401, 403 or 429."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Gate:
    """Lets callers in or raises Denied. `token`: empty where none is set. Belongs to the event loop."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()

    def check(self, headers: Mapping[str, str], peer: str | None, now: float) -> str:
        """Returns the actor: who the caller says it is, and why it was let in. `headers` have names in lower case."""
        _check_browser(headers)
        if self._token:
            self._check_token(headers.get("authorization", ""), peer or "", now)
            return _actor(headers, "token")
        _check_near(headers, peer)
        return _actor(headers, "this machine")

    def _check_token(self, given: str, peer: str, now: float) -> None:
        recent = [at for at in self._wrong.get(peer, ()) if at > now - WINDOW]
        if len(recent) >= ATTEMPTS:
            raise Denied(429, "too many wrong tokens from this address; wait a minute")
        scheme, _, token = given.partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode("latin-1", "replace"), self._token):
            return
        if given:
            self._wrong[peer] = [*recent, now]
            self._wrong.move_to_end(peer)
            if len(self._wrong) > REMEMBERED:
                self._wrong.popitem(last=False)
        wrong = "this token is not the one that the server was given" if given else "the admin API needs a token"
        raise Denied(401, f"{wrong}: send `Authorization: Bearer TOKEN`, or give PELTON_ADMIN_TOKEN to the command")


def _check_browser(headers: Mapping[str, str]) -> None:
    """A page of another site. A browser always says so; other programs send neither header."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        raise Denied(403, f"requests from pages of {origin[:100]!r} are not taken here")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Denied(403, "requests from pages of other sites are not taken here")


def _check_near(headers: Mapping[str, str], peer: str | None) -> None:
    mend = "set admin_token on the server and send it, or ask from the machine itself"
    if peer is None or not _is_loopback(peer):
        raise Denied(403, f"without a token the admin API answers programs on its own machine only: {mend}")
    if any(name in headers for name in FORWARDED):
        raise Denied(403, f"this request came through a proxy, so its sender is not known: {mend}")
    host = headers.get("host", "")
    if not _is_loopback(_host_name(host)):
        raise Denied(403, f"the host {host[:100]!r} is no name of this machine (localhost, 127.0.0.1, [::1]): {mend}")


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _actor(headers: Mapping[str, str], by: str) -> str:
    """What the caller calls itself is a help for people, no proof: beside it stands what let it in."""
    claimed = headers.get("pelton-actor", "").strip()[:ACTOR_LIMIT]
    return f"{claimed} (by {by})" if claimed and claimed.isprintable() else f"by {by}"
