"""Records as spans, sent by OTLP/HTTP from a thread of their own. The only file that imports opentelemetry.

What the loop does per record is to decide whether it is kept, and to append it; spans are made in the thread. Names
follow OpenTelemetry's semantic conventions for HTTP servers (1.40): they stand in one table below.
"""

from __future__ import annotations

import http.client
import importlib.util
import logging
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pelton import __version__
from pelton.errors import ExtraMissing, SettingInvalid
from pelton.records.record import Record, TokenUsage
from pelton.records.tokens import PROVIDER, operation_of
from pelton.records.trace_context import parse

log = logging.getLogger(__name__)

QUEUE: Final = 8192  # records that wait; more are dropped and counted
BATCH: Final = 512  # records that are sent together
PERIOD: Final = 1.0  # seconds until fewer are sent
TIMEOUT: Final = 5.0  # seconds for one attempt to send a batch
PATH: Final = "/v1/traces"
SHORT: Final = 12  # characters of a version
YIELD_AFTER: Final = 8  # spans; then the loop goes on, which else would wait 5 ms for the switch of threads
PAUSE: Final = 1.0  # seconds before a batch is sent again
AGAIN: Final = frozenset({0, 429, 502, 503, 504})  # statuses that the protocol calls retryable; 0: none came
FLAGS_ROOT: Final = 0x101  # sampled; known not to have a remote parent
FLAGS_REMOTE: Final = 0x301  # sampled; the parent is remote

# Record's words -> the names of the conventions, and `pelton.` where there is none.
ROUTES: Final = {
    "native": "/predict/{model}",
    "oip_v2": "/v2/models/{model}/infer",
    "kserve_v1": "/v1/models/{model}:predict",
}
NAMES: Final[dict[str, str]] = {
    "error": "error.type",
    "model": "pelton.model.name",
    "version": "pelton.model.version",
    "protocol": "pelton.protocol",
    "tenant": "pelton.tenant",
    "rows": "pelton.rows",
    "batch_rows": "pelton.batch.rows",
    "reason": "pelton.reason",
    "prepare": "pelton.prepare.seconds",
    "queue": "pelton.queue.seconds",
    "run": "pelton.run.seconds",
}
# The same of what generations used, by the conventions for generative AI (1.40).
USAGE: Final[dict[str, str]] = {
    "prompt": "gen_ai.usage.input_tokens",
    "completion": "gen_ai.usage.output_tokens",
    "cached": "gen_ai.usage.cache_read.input_tokens",
    "engine": "pelton.engine",
    "first": "pelton.first_token.seconds",
    "per_token": "pelton.token.seconds",
}
# Kinds whose HTTP status is 5xx; the conventions leave a server's span without status for the caller's own errors.
FAULTS: Final = frozenset({"model_failed", "internal", "refused", "deadline", "unsupported"})


class Traces:
    """A sink of records. `clock` is the clock of the records.

    A call with a `traceparent` is kept where its caller keeps it; of those without one, `ratio` (0 to 1) are kept. What
    does not fit the queue is dropped and counted: `dropped`. `failed`: spans that the receiver did not take.
    Raises ExtraMissing without the extra, SettingInvalid for an address that is none.
    """

    def __init__(
        self,
        endpoint: str,
        clock: Callable[[], float],
        *,
        ratio: float = 0.01,
        queue: int = QUEUE,
        wall: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
        pause: float = PAUSE,
    ) -> None:
        self._endpoint = checked(endpoint)
        self._requests = _Requests(wall() - clock())
        self._headers = _headers(os.environ)
        self._ratio = ratio
        self._draw = draw
        self._pause = pause
        self._queue: deque[Record] = deque()
        self._room = queue
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._give_up = float("inf")
        self._told = (0, 0)
        self.dropped = 0
        self.failed = 0
        self._thread = threading.Thread(target=self._run, name="pelton-traces", daemon=True)
        self._thread.start()

    def __call__(self, records: Sequence[Record]) -> None:
        queue = self._queue
        for record in records:
            if self._kept(record):
                if len(queue) < self._room:
                    queue.append(record)
                else:
                    self.dropped += 1
        if len(queue) >= BATCH:
            self._wake.set()

    def close(self, seconds: float = 2.0) -> None:
        """Sends what waits, and gives up after `seconds`. Logs what was lost."""
        if self._stopped.is_set():
            return
        self._give_up = time.monotonic() + seconds
        self._stopped.set()
        self._wake.set()
        self._thread.join(seconds)
        self.dropped += len(self._queue)
        self._tell()

    def _kept(self, record: Record) -> bool:
        parent = parse(record.trace) if record.trace else None
        if parent is not None:
            return parent.sampled
        return self._ratio > 0 and self._draw() < self._ratio

    # ---- the thread

    def _run(self) -> None:
        last = False
        while not last:
            self._wake.wait(PERIOD)
            self._wake.clear()
            last = self._stopped.is_set()  # read before the queue: what came before `close` is still sent
            while self._queue and time.monotonic() < self._give_up:
                self._send([self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))])
            if not last:
                self._tell()

    def _send(self, records: Sequence[Record]) -> None:
        """Sends a batch, and once more where the receiver says that this may help, or said nothing."""
        body = self._requests.of(records)
        for pause in (self._pause, 0.0):
            status = _post(self._endpoint, self._headers, body, TIMEOUT)
            if status == 200:
                return
            if status not in AGAIN or not pause or self._stopped.wait(pause):
                break
        self.failed += len(records)

    def _tell(self) -> None:
        """One line a period at most, and only where something new was lost."""
        now = (self.dropped, self.failed)
        dropped, failed = (new - old for new, old in zip(now, self._told, strict=True))
        if dropped or failed:
            self._told = now
            log.warning("traces: %d calls dropped, %d spans not taken by %s", dropped, failed, self._endpoint)


class _Requests:
    """Makes OTLP requests of records. `offset`: seconds since 1970 at zero of the records' clock.

    The messages are filled directly: by way of the SDK's own spans a record costs three times as much (measured: 60 and 200 us)."""

    def __init__(self, offset: float) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
        from opentelemetry.sdk.resources import Resource

        self._offset = offset
        self._empty = ExportTraceServiceRequest
        self._resource = Resource.create({"service.name": "pelton", "service.version": __version__}).attributes

    def of(self, records: Sequence[Record]) -> bytes:
        """A server span for each record. Stages are events and attributes of it, as they are shared by a whole batch."""
        request = self._empty()
        group = request.resource_spans.add()
        for name, value in self._resource.items():
            _put(group.resource.attributes.add(), name, value)
        scope = group.scope_spans.add()
        scope.scope.name, scope.scope.version = "pelton", __version__
        for number, record in enumerate(records, 1):
            self._fill(scope.spans.add(), record)
            if number % YIELD_AFTER == 0:
                time.sleep(0)
        data: bytes = request.SerializeToString()
        return data

    def _fill(self, span: Any, record: Record) -> None:
        parent = parse(record.trace) if record.trace else None
        span.trace_id = bytes.fromhex(parent.trace_id) if parent else _identity(16)
        span.span_id = _identity(8)
        if parent:
            span.parent_span_id = bytes.fromhex(parent.span_id)
        span.flags = FLAGS_REMOTE if parent else FLAGS_ROOT
        route = ROUTES.get(record.protocol, "")
        span.name = f"POST {route}" if route else "POST"
        span.kind = span.SPAN_KIND_SERVER
        span.start_time_unix_nano = self._nanoseconds(record.at - record.total)
        span.end_time_unix_nano = self._nanoseconds(record.at)
        for name, value in attributes(record):
            _put(span.attributes.add(), name, value)
        for name, at in moments(record):
            event = span.events.add()
            event.name, event.time_unix_nano = name, self._nanoseconds(at)
        if record.error in FAULTS:
            span.status.code = span.status.STATUS_CODE_ERROR

    def _nanoseconds(self, at: float) -> int:
        return int((at + self._offset) * 1e9)


def _identity(size: int) -> bytes:
    """Random bytes that are not all zero."""
    return os.urandom(size - 1) + b"\x01"


def _put(pair: Any, name: str, value: Any) -> None:
    """Fills a KeyValue. Everything but numbers and lists of texts becomes text."""
    pair.key = name
    if isinstance(value, bool):
        pair.value.bool_value = value
    elif isinstance(value, int):
        pair.value.int_value = value
    elif isinstance(value, float):
        pair.value.double_value = value
    elif isinstance(value, tuple):
        for one in value:
            pair.value.array_value.values.add().string_value = str(one)
    else:
        pair.value.string_value = str(value)


def attributes(record: Record) -> Iterator[tuple[str, Any]]:
    """A record in the words of the conventions; what is empty is left out."""
    yield "http.request.method", "POST"
    route = ROUTES.get(record.protocol)
    if route:
        yield "http.route", route
    for field, name in NAMES.items():
        value = getattr(record, field)
        if value:
            yield name, value
    if record.usage is not None:
        yield from _usage_attributes(record, record.usage)
    if record.request_id:
        yield "http.request.header.x-request-id", (record.request_id,)


def _usage_attributes(record: Record, usage: TokenUsage) -> Iterator[tuple[str, Any]]:
    yield "gen_ai.operation.name", operation_of(record.protocol)
    yield "gen_ai.provider.name", PROVIDER
    yield "gen_ai.request.model", record.model
    yield "gen_ai.response.model", f"{record.model}:{record.version[:SHORT]}"
    for field, name in USAGE.items():
        value = getattr(usage, field)
        if value:
            yield name, value
    if usage.finish:
        yield "gen_ai.response.finish_reasons", (usage.finish,)


def moments(record: Record) -> list[tuple[str, float]]:
    """(name, seconds of the records' clock) of what happened inside a call; none where it never ran.

    A call that was cut into pieces has the sum of their run times, which may be longer than the call itself."""
    if not record.batch_rows:
        return []
    began = record.at - record.total
    started = max(record.at - record.run, began)
    queued = max(started - record.queue, began)
    if record.usage is None:
        return [("queued", queued), ("batch started", started)]
    first = [("first token", began + record.usage.first)] if record.usage.first else []
    return [("queued", queued), ("first step", started), *first]


def checked(endpoint: str) -> str:
    """The whole address of a receiver; one without a path gets the path that the protocol prescribes.

    Raises SettingInvalid for what is no address, ExtraMissing where the libraries are missing. Loads none of them."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingInvalid(f"otel_endpoint {endpoint!r} is no address: write http://HOST:4318")
    for library in ("opentelemetry.sdk", "opentelemetry.proto"):
        try:
            found = importlib.util.find_spec(library)
        except (ModuleNotFoundError, ValueError):
            found = None
        if found is None:
            raise ExtraMissing("sending traces (setting otel_endpoint)", "otel")
    return endpoint if parts.path not in ("", "/") else f"{parts.scheme}://{parts.netloc}{PATH}"


def _headers(environment: Mapping[str, str]) -> dict[str, str]:
    """What OpenTelemetry's variables say that a receiver wants to see, as `name=value,name=value`, percent-encoded."""
    text = environment.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or environment.get("OTEL_EXPORTER_OTLP_HEADERS", "")
    pairs = (part.partition("=") for part in text.split(",") if "=" in part)
    given = {unquote(name).strip(): unquote(value).strip() for name, _, value in pairs}
    return {**given, "content-type": "application/x-protobuf"}


def _post(endpoint: str, headers: Mapping[str, str], body: bytes, seconds: float) -> int:
    """The status of one attempt; 0: there was no answer."""
    request = urllib.request.Request(endpoint, body, dict(headers))  # noqa: S310 - `checked` saw the scheme
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except (OSError, http.client.HTTPException, ValueError):  # ValueError: a header that cannot be sent
        return 0
