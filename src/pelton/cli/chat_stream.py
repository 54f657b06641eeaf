"""One chat completion as a client reads it: pieces of text as they come, then what it took."""

from __future__ import annotations

import http.client
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from pelton.cli.http_client import KINDS, Client
from pelton.errors import ModelFailed, NotReady, PeltonError

PATH = "/v1/chat/completions"
LINE_LIMIT = 16 * 1024 * 1024
SILENCE = 600.0  # seconds without a byte before the server counts as gone: a long prompt takes its time


@dataclass
class Reply:
    """What is known of an answer; complete once its pieces are read."""

    text: str = ""
    finish_reason: str = ""
    receipt: dict[str, Any] = field(default_factory=dict)


class Conversation:
    """Asks a server; one answer at a time."""

    def __init__(self, client: Client, key: str = "") -> None:
        self._client = client
        self._headers = {"content-type": "application/json", "pelton-receipt": "true"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    def ask(self, body: dict[str, Any], reply: Reply) -> Generator[str, None, None]:
        """Yields text as it comes and fills `reply`. Leaving the iterator early hangs up, which stops the model.

        Raises PeltonError with the server's own words."""
        told = {**body, "stream": True, "stream_options": {"include_usage": True}}
        connection = self._client.connect(SILENCE)
        try:
            try:
                connection.request("POST", PATH, json.dumps(told).encode(), self._headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise NotReady(
                    f"no answer from {self._client.url} ({error}); is `pelton serve` running there?"
                ) from None
            if response.status != 200:
                raise _refusal(response)
            for chunk in _events(response):
                yield from _heard(chunk, reply)
            if not reply.finish_reason:
                raise ModelFailed("the answer was cut off: the server ended, or the connection to it")
        finally:
            connection.close()


def _heard(chunk: dict[str, Any], reply: Reply) -> Iterator[str]:
    if "error" in chunk:
        raise ModelFailed(str(chunk["error"].get("message", chunk["error"])))
    reply.receipt = chunk.get("receipt") or reply.receipt
    for choice in chunk.get("choices", ()):
        reply.finish_reason = choice.get("finish_reason") or reply.finish_reason
        piece = choice.get("delta", {}).get("content")
        if piece:
            reply.text += piece
            yield piece


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each event of a stream, up to `[DONE]`."""
    try:
        while line := response.readline(LINE_LIMIT):
            data = line.strip()
            if not data.startswith(b"data:"):
                continue
            data = data[5:].strip()
            if data == b"[DONE]":
                return
            yield json.loads(data)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ModelFailed(f"the answer was cut off ({error})") from None


def _refusal(response: http.client.HTTPResponse) -> PeltonError:
    try:
        error = json.loads(response.read(LINE_LIMIT)).get("error", "")
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        error = ""
    message = error.get("message", "") if isinstance(error, dict) else str(error)
    return KINDS.get(response.status, PeltonError)(message or f"{PATH} answered {response.status}")
