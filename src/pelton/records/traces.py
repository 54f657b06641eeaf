"""Records as spans, sent by OTLP/HTTP from a thread of their own. The only file that imports opentelemetry.

What the loop does per record is to decide whether it is kept, and to append it; spans are made in the thread. Names
follow OpenTelemetry's semantic conventions for HTTP servers (1.40): they stand in one table below.
"""

from __future__ import annotations

import importlib.util
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from pelton import __version__
from pelton.errors import ExtraMissing, SettingInvalid
from pelton.records.record import Record
from pelton.records.trace_context import parse

log = logging.getLogger(__name__)

QUEUE: Final = 8192  # records that wait; more are dropped and counted
BATCH: Final = 512  # records that are sent together
PERIOD: Final = 1.0  # seconds until fewer are sent
TIMEOUT: Final = 5.0  # seconds for one batch, repetitions included
PATH: Final = "/v1/traces"

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
    ) -> None:
        self._endpoint = checked(endpoint)
        self._spans = _Spans(wall() - clock())
        self._exporter = _exporter(self._endpoint)
        self._ratio = ratio
        self._draw = draw
        self._queue: deque[Record] = deque()
        self._room = queue
        self._wake = threading.Event()
        self._stopping = False
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
        if self._stopping:
            return
        self._give_up = time.monotonic() + seconds
        self._stopping = True
        self._wake.set()
        self._thread.join(seconds)
        self._exporter.shutdown()  # also ends a repetition that waits
        self._thread.join(0.1)
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
            last = self._stopping  # read before the queue: what came before `close` is still sent
            while self._queue and time.monotonic() < self._give_up:
                self._send([self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))])
            if not last:
                self._tell()

    def _send(self, records: Sequence[Record]) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        spans = self._spans.of(records)
        try:
            taken = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:  # whatever a transport raises: serving goes on without traces
            log.debug("exporting spans failed", exc_info=True)
            taken = False
        if not taken:
            self.failed += len(spans)

    def _tell(self) -> None:
        """One line a period at most, and only where something new was lost."""
        now = (self.dropped, self.failed)
        dropped, failed = (new - old for new, old in zip(now, self._told, strict=True))
        if dropped or failed:
            self._told = now
            log.warning("traces: %d calls dropped, %d spans not taken by %s", dropped, failed, self._endpoint)


class _Spans:
    """Makes spans of records. `offset`: seconds since 1970 at zero of the records' clock."""

    def __init__(self, offset: float) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        done: list[Any] = []

        class Collect(SpanProcessor):
            """Keeps ended spans until they are sent."""

            def on_end(self, span: Any) -> None:
                done.append(span)

        resource = Resource.create({"service.name": "pelton", "service.version": __version__})
        # what reaches this provider was chosen before
        provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(Collect())
        self._tracer = provider.get_tracer("pelton", __version__)
        self._done = done
        self._offset = offset

    def of(self, records: Sequence[Record]) -> list[Any]:
        """A server span for each record. Stages are events and attributes of it, as they are shared by a whole batch."""
        for record in records:
            self._span(record)
        spans = list(self._done)
        self._done.clear()
        return spans

    def _span(self, record: Record) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        began = record.at - record.total
        route = ROUTES.get(record.protocol, "")
        span = self._tracer.start_span(
            f"POST {route}" if route else "POST",
            context=_context(record.trace),
            kind=SpanKind.SERVER,
            attributes=dict(attributes(record)),
            start_time=self._nanoseconds(began),
        )
        if record.error in FAULTS:
            span.set_status(Status(StatusCode.ERROR))
        for name, at in moments(record):
            span.add_event(name, timestamp=self._nanoseconds(at))
        span.end(self._nanoseconds(record.at))

    def _nanoseconds(self, at: float) -> int:
        return int((at + self._offset) * 1e9)


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
    if record.request_id:
        yield "http.request.header.x-request-id", (record.request_id,)


def moments(record: Record) -> list[tuple[str, float]]:
    """(name, seconds of the records' clock) of what happened inside a call; none where it never ran.

    A call that was cut into pieces has the sum of their run times, which may be longer than the call itself."""
    if not record.batch_rows:
        return []
    began = record.at - record.total
    started = max(record.at - record.run, began)
    queued = max(started - record.queue, began)
    return [("queued", queued), ("batch started", started)]


def _context(trace: str) -> Any:
    """The caller's span as the parent, or a context that has none."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    parent = parse(trace) if trace else None
    if parent is None:
        return Context()
    remote = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, TraceFlags(parent.sampled))
    return set_span_in_context(NonRecordingSpan(remote), Context())


def checked(endpoint: str) -> str:
    """The whole address of a receiver; one without a path gets the path that the protocol prescribes.

    Raises SettingInvalid for what is no address, ExtraMissing where the libraries are missing. Loads none of them."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingInvalid(f"otel_endpoint {endpoint!r} is no address: write http://HOST:4318")
    for library in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        try:
            found = importlib.util.find_spec(library)
        except (ModuleNotFoundError, ValueError):
            found = None
        if found is None:
            raise ExtraMissing("sending traces (setting otel_endpoint)", "otel")
    return endpoint if parts.path not in ("", "/") else f"{parts.scheme}://{parts.netloc}{PATH}"


def _exporter(endpoint: str) -> Any:
    """The OTLP/HTTP sender."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    # its own line per failed batch says no more than ours
    logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
    return OTLPSpanExporter(endpoint, timeout=TIMEOUT)
