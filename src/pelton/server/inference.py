"""An inference that came over HTTP: a parsed request becomes a call, the call's outcome becomes the answer."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from typing import Any, Final

from pelton.engine import Engine, Served
from pelton.errors import Cancelled, ModelFailed, PeltonError
from pelton.server.call_headers import priority_of, request_id, timeout_of, trace_of
from pelton.server.protocols.codec import Answer, Codec, decompress
from pelton.server.protocols.status import error_body, error_headers, status_of
from pelton.server.wire.answer_head import date, head
from pelton.server.wire.connection import JSON_TYPE, Connection
from pelton.server.wire.encodings import negotiate
from pelton.server.wire.limits import Limits
from pelton.server.wire.request import Request
from pelton.types import Call

log = logging.getLogger(__name__)

# An answer: what all calls of a batch share, made once a batch, and the call's own.
BATCH_HEAD: Final = b"HTTP/1.1 200 OK\r\ndate: %b\r\npelton-version: %b\r\npelton-batch-rows: %d\r\nserver-timing: run;dur=%.3f, queue;dur="
QUICK_HEAD: Final = b"%b%.3f\r\ncontent-type: application/json\r\ncontent-length: "
QUICK_ANSWER: Final = b"%b%d\r\nx-request-id: %b\r\n\r\n%b"
CALL_HEAD: Final = b"%b%.3f%b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%bx-request-id: %b\r\n%b\r\n"
CLOSE: Final = b"connection: close\r\n"
COMPRESS_FROM: Final = 8 * 1024
BITS: Final = {b"gzip": 31, b"deflate": 15}  # zlib's window bits, which also choose the form


class Inference(Call, eq=False):
    """A call that one request on one connection waits for. One object instead of two: it is made for every request."""

    connection: Any = None  # Connection
    request: Any = None  # Request
    codec: Any = None  # Codec
    context: Any = None  # the codec's own
    served: Any = None  # Served
    engine: Any = None  # Engine
    give: Any = None  # of `Quick`, for a call that came that way

    def left(self) -> None:
        """The client is gone."""
        self.engine.cancel(self.served, self)

    def give_up(self, error: PeltonError) -> None:
        """The process does not wait for the answer."""
        self.engine.fail(self.served, self, error)


def decoded(
    engine: Engine, connection: Connection, request: Request, served: Served, codec: Codec, limits: Limits
) -> Inference:
    """The call of any request. Raises PeltonError for a body that cannot be one."""
    body, special = request.body, request.special
    encoding = request.header(b"content-encoding") if special else None
    if encoding is not None:
        body = decompress(body, encoding, limits.body)
    asked = codec.decode(request, body)
    timeout = (timeout_of(request) if special else 0.0) or asked.timeout
    return Inference(
        asked.inputs,
        asked.rows,
        answer,
        request.received,
        request.received + (timeout or served.target),
        asked.fields,
        own_deadline=timeout > 0.0,
        priority=(priority_of(request) if special else 0) or asked.priority,
        protocol=codec.protocol,
        request_id=request_id(request),
        trace=trace_of(request) if special else "",
        connection=connection,
        request=request,
        codec=codec,
        context=asked.context,
        served=served,
        engine=engine,
    )


def hand_on(calls: Sequence[Call]) -> None:
    """`pelton.engine.hand_back` for calls of which most came in their plainest form."""
    queued, head = -1.0, b""
    for call in calls:
        try:
            if (
                type(call) is Inference
                and (give := call.give) is not None
                and call.done is answer
                and type(outcome := call.outcome) is list
                and (body := give(outcome)) is not None
                and call.request.keep_alive
            ):
                if call.queued != queued:  # calls that were read in the same turn have waited equally long
                    queued = call.queued
                    head = _quick_head(call)
                call.connection.send(QUICK_ANSWER % (head, len(body), call.request_id.encode(), body))
            else:
                call.done(call)
        except Exception:
            log.exception("handing an answer on failed (request %s)", call.request_id)


def _quick_head(call: Inference) -> bytes:
    """What the answers to the calls of one turn in one batch begin with."""
    batch = call.batch
    assert batch is not None
    return QUICK_HEAD % (batch.head or _batch_head(call), (batch.started - call.queued) * 1e3)


def answer(call: Any) -> None:
    """`Call.done` of an inference: its outcome, as bytes, to its connection."""
    outcome = call.outcome
    if type(outcome) is list:
        try:
            encoded = call.codec.encode(call, outcome, call.context)
        except PeltonError as error:
            outcome = error
        except Exception as error:
            log.exception("model %s: the answer cannot be encoded", call.served.name)
            outcome = ModelFailed(f"the answer of model {call.served.name!r} cannot be encoded: {error}")
        else:
            _reply(call, encoded)
            return
    failure = outcome if isinstance(outcome, PeltonError) else Cancelled("no outcome")
    reply_error(call.connection, call.request, failure, call.request_id, call.served.wire_version)


def _reply(call: Inference, encoded: Answer) -> None:
    batch, request = call.batch, call.request
    assert batch is not None
    headers, body = encoded.headers, encoded.body
    if request.special and len(body) >= COMPRESS_FROM:
        headers, body = _compressed(request, encoded)
    call.connection.reply(
        CALL_HEAD
        % (
            batch.head or _batch_head(call),
            (batch.started - call.queued) * 1e3,
            b", prepare;dur=%.3f" % (call.prepared * 1e3) if call.prepared else b"",
            encoded.content_type,
            len(body),
            headers,
            call.request_id.encode(),
            b"" if request.keep_alive else CLOSE,
        ),
        body,
    )


def _batch_head(call: Inference) -> bytes:
    """Made by the first answer of a batch."""
    batch = call.batch
    assert batch is not None
    batch.head = BATCH_HEAD % (date(), call.served.wire_version, batch.rows, batch.run_seconds * 1e3)
    return batch.head


def reply_error(
    connection: Connection, request: Request, error: PeltonError, request_id: str, version: bytes = b""
) -> None:
    """Answers with an error. Never compressed: clients do not decompress errors. `version`: that took the call."""
    body = error_body(str(error))
    extra = error_headers(error)
    if version:
        extra += b"pelton-version: %b\r\n" % version
    if request_id:
        extra += b"x-request-id: %b\r\n" % request_id.encode()
    if not request.keep_alive:
        extra += CLOSE
    connection.reply(head(status_of(error), JSON_TYPE, len(body), extra), body)


def _compressed(request: Request, encoded: Answer) -> tuple[bytes, bytes]:
    """Header lines and body, in the encoding that the client likes most."""
    accepted = request.header(b"accept-encoding")
    name = negotiate(accepted) if accepted is not None else None
    if name is None:
        return encoded.headers, encoded.body
    deflater = zlib.compressobj(1, zlib.DEFLATED, BITS[name])
    body = deflater.compress(encoded.body) + deflater.flush()
    return encoded.headers + b"content-encoding: %b\r\nvary: accept-encoding\r\n" % name, body
