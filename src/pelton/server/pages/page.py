"""The page for people: one HTML file without any outside resource."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import Response

FILE = Path(__file__).parent / "static" / "page.html"


def page() -> Response:
    """The page. Its policy lets the browser run and load only what stands in it."""
    body, policy = _read()
    return Response(
        body,
        media_type="text/html",
        headers={
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
            "vary": "accept",
        },
    )


@cache
def _read() -> tuple[bytes, str]:
    body = FILE.read_bytes()
    hashes = {
        tag: " ".join(_hash(part) for part in re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL))
        for tag in (b"script", b"style")
    }
    return body, (
        f"default-src 'none'; script-src {hashes[b'script']}; style-src {hashes[b'style']}; connect-src 'self'; "
        "img-src data: blob:; media-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(part: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(part).digest()).decode()}'"
