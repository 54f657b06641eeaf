"""Traces, against an OTLP receiver in this process that decodes what it gets."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pelton import __version__
from pelton.errors import ExtraMissing, SettingInvalid
from pelton.records import Record
from pelton.records.call_log import CallLog
from pelton.records.traces import NAMES, Traces
from pelton.server.sinks import check, sinks_of
from pelton.settings import Settings
from pelton.testing import ManualClock

TRACE_ID, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE_ID}-{PARENT}-01", f"00-{TRACE_ID}-{PARENT}-00"
EPOCH = 1_700_000_000.0  # wall time when the clock says 0


class Receiver:
    """A local OTLP/HTTP receiver. While `gate` is closed it answers nothing."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: list[str] = []
        self.status = 200
        self.first_status = 0  # of the first request only
        self.headers: dict[str, str] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self.answered = threading.Event()
        receiver = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.asked.set()
                receiver.headers = dict(self.headers)
                status, receiver.first_status = receiver.first_status or receiver.status, 0
                receiver.gate.wait(20)
                if status == 200:
                    receiver.paths.append(self.path)
                    receiver.requests.append(ExportTraceServiceRequest.FromString(body))
                    receiver.answered.set()
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def traces(receiver: Receiver) -> Iterator[Callable[..., Traces]]:
    made: list[Traces] = []

    def make(**options: Any) -> Traces:
        made.append(Traces(receiver.url, ManualClock(), wall=lambda: EPOCH, **options))
        return made[-1]

    yield make
    for one in made:
        one.close(5.0)


def record(trace: str = SAMPLED, error: str = "", **fields: Any) -> Record:
    values: dict[str, Any] = {
        "model": "m", "version": "0123456789abcdef", "protocol": "oip_v2", "tenant": "", "rows": 2, "batch_rows": 5,
        "reason": "idle", "at": 100.5, "prepare": 0.125, "queue": 0.0625, "run": 0.25, "total": 0.5, "device": 0.1,
        "request_id": "r-1",
    }  # fmt: skip
    return Record(error=error, trace=trace, **{**values, **fields})


def plain(attributes: Any) -> dict[str, Any]:
    values = {}
    for pair in attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        values[pair.key] = [one.string_value for one in value.values] if kind == "array_value" else value
    return values


def seconds(nanoseconds: int) -> float:
    return nanoseconds / 1e9 - EPOCH


def test_a_call_becomes_a_server_span_under_the_span_of_its_caller(receiver, traces):
    sink = traces()
    sink([record()])
    sink.close(5.0)
    assert receiver.paths == ["/v1/traces"]
    span = receiver.spans()[0]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT)
    assert span.name == "POST /v2/models/{model}/infer"
    assert span.kind == span.SPAN_KIND_SERVER
    assert (seconds(span.start_time_unix_nano), seconds(span.end_time_unix_nano)) == pytest.approx((100.0, 100.5))
    assert plain(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model}/infer",
        "http.request.header.x-request-id": ["r-1"],
        "pelton.model.name": "m",
        "pelton.model.version": "0123456789abcdef",
        "pelton.protocol": "oip_v2",
        "pelton.rows": 2,
        "pelton.batch.rows": 5,
        "pelton.reason": "idle",
        "pelton.prepare.seconds": 0.125,
        "pelton.queue.seconds": 0.0625,
        "pelton.run.seconds": 0.25,
    }
    assert span.status.code == span.status.STATUS_CODE_UNSET
    assert span.flags == 0x301


def test_the_stages_are_events_at_their_times(receiver, traces):
    sink = traces()
    sink([record()])
    sink.close(5.0)
    [span] = receiver.spans()
    assert {event.name: seconds(event.time_unix_nano) for event in span.events} == {
        "queued": pytest.approx(100.1875),
        "batch started": pytest.approx(100.25),
    }


def test_a_call_that_never_ran_has_no_stages(receiver, traces):
    sink = traces()
    sink([record(error="refused", batch_rows=0, queue=0.0, run=0.0)])
    sink.close(5.0)
    [span] = receiver.spans()
    assert not span.events


def test_a_call_in_pieces_whose_run_times_add_up_to_more_than_itself_keeps_its_events_inside(receiver, traces):
    sink = traces()
    sink([record(run=7.0, queue=0.1)])
    sink.close(5.0)
    [span] = receiver.spans()
    for event in span.events:
        assert span.start_time_unix_nano <= event.time_unix_nano <= span.end_time_unix_nano


def test_the_resource_names_the_service_and_its_version(receiver, traces):
    sink = traces()
    sink([record()])
    sink.close(5.0)
    resource = plain(receiver.requests[0].resource_spans[0].resource.attributes)
    assert (resource["service.name"], resource["service.version"]) == ("pelton", __version__)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("model_failed", True), ("internal", True), ("refused", True), ("invalid", False), ("not_found", False)],
)
def test_an_error_is_named_and_only_those_of_the_server_mark_the_span(receiver, traces, kind, fault):
    sink = traces()
    sink([record(error=kind)])
    sink.close(5.0)
    span = receiver.spans()[0]
    assert plain(span.attributes)["error.type"] == kind
    assert (span.status.code == span.status.STATUS_CODE_ERROR) is fault


def test_the_caller_decides_whether_its_trace_is_kept(receiver, traces):
    sink = traces(ratio=1.0)
    sink([record(NOT_SAMPLED), record(SAMPLED), record(NOT_SAMPLED)])
    sink.close(5.0)
    assert [span.parent_span_id.hex() for span in receiver.spans()] == [PARENT]


def test_of_calls_without_a_caller_the_ratio_is_kept_each_as_a_trace_of_its_own(receiver, traces):
    draws = iter([0.05, 0.95, 0.25, 0.249999])
    sink = traces(ratio=0.25, draw=lambda: next(draws))
    sink([record("", request_id=str(i)) for i in range(3)] + [record("malformed", request_id="3")])
    sink.close(5.0)
    spans = receiver.spans()
    assert [plain(span.attributes)["http.request.header.x-request-id"] for span in spans] == [["0"], ["3"]]
    assert all(not span.parent_span_id for span in spans)
    assert len({span.trace_id for span in spans}) == 2


def test_calls_without_a_model_leave_their_empty_fields_out(receiver, traces):
    sink = traces()
    sink(
        [
            record(
                model="",
                version="",
                protocol="",
                rows=0,
                batch_rows=0,
                reason="",
                request_id="",
                prepare=0.0,
                queue=0.0,
                run=0.0,
                error="not_found",
            )
        ]
    )
    sink.close(5.0)
    span = receiver.spans()[0]
    assert plain(span.attributes) == {"http.request.method": "POST", "error.type": "not_found"}
    assert span.name == "POST"


def test_what_does_not_fit_the_queue_is_dropped_counted_and_logged(receiver, traces, caplog):
    receiver.gate.clear()
    sink = traces(queue=3)
    sink([record()] * 5)
    assert sink.dropped == 2
    receiver.gate.set()
    sink.close(5.0)
    assert len(receiver.spans()) == 3
    assert any("2 calls dropped" in message for message in caplog.messages)


def test_everything_is_sent_in_batches(receiver, traces):
    sink = traces()
    sink([record()] * 1300)
    sink.close(10.0)
    assert len(receiver.spans()) == 1300
    assert len(receiver.requests) == 3


def test_a_receiver_that_refuses_costs_its_spans_and_is_told_of_in_the_log(receiver, traces, caplog):
    receiver.status = 400
    sink = traces()
    sink([record()])
    sink.close(5.0)
    assert (sink.failed, sink.dropped) == (1, 0)
    assert [line.name for line in caplog.records if line.levelno >= logging.WARNING] == ["pelton.records.traces"]


def test_a_batch_is_sent_again_where_the_receiver_asks_for_it(receiver, traces):
    receiver.first_status = 503
    sink = traces(pause=0.001)
    sink([record()] * 512)  # a full batch is sent at once
    assert receiver.answered.wait(20)
    sink.close(5.0)
    assert (sink.failed, len(receiver.spans())) == (0, 512)


def test_an_address_where_nobody_listens_costs_the_spans_and_nothing_else(caplog):
    sink = Traces("http://127.0.0.1:1", ManualClock(), wall=lambda: EPOCH)
    sink([record()])
    sink.close(5.0)
    assert (sink.failed, sink.dropped) == (1, 0)


def test_the_headers_of_opentelemetrys_variables_are_sent(receiver, traces, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc, x-tenant = seven ")
    sink = traces()
    sink([record()])
    sink.close(5.0)
    assert (receiver.headers["Authorization"], receiver.headers["X-Tenant"]) == ("Bearer abc", "seven")
    assert receiver.headers["Content-Type"] == "application/x-protobuf"


def test_closing_gives_up_on_a_receiver_that_hangs(receiver, traces):
    receiver.gate.clear()
    sink = traces()
    sink([record()] * 512)
    assert receiver.asked.wait(20)
    sink([record()] * 7)  # these wait behind the batch that hangs
    sink.close(0.05)
    assert sink.dropped == 7


def test_closing_twice_does_no_harm(traces):
    sink = traces()
    sink.close(5.0)
    sink.close(5.0)


@pytest.mark.parametrize("endpoint", ["localhost:4318", "grpc://localhost:4317", "http://", "nonsense"])
def test_an_address_that_is_none_is_refused_with_an_example(endpoint):
    with pytest.raises(SettingInvalid, match="http://HOST:4318"):
        Traces(endpoint, ManualClock())


def test_an_address_with_a_path_is_used_as_it_is(receiver):
    sink = Traces(f"{receiver.url}/otlp/traces", ManualClock(), wall=lambda: EPOCH)
    sink([record()])
    sink.close(5.0)
    assert receiver.paths == ["/otlp/traces"]


def test_without_the_extra_its_name_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.proto", None)
    with pytest.raises(ExtraMissing, match=r"pelton\[otel\]"):
        Traces("http://127.0.0.1:1", ManualClock())


def test_every_name_of_the_table_belongs_to_a_field_of_the_record():
    assert set(NAMES) <= set(Record.__struct_fields__)


def test_the_settings_decide_which_sinks_there_are(receiver):
    def later(seconds: float, what: Callable[[], None]) -> None:
        pass

    assert [type(sink) for sink in sinks_of(Settings(), ManualClock(), later)] == [CallLog]
    sinks = sinks_of(Settings(otel_endpoint=receiver.url), ManualClock(), later)
    assert [type(sink) for sink in sinks] == [CallLog, Traces]
    for sink in sinks:
        sink.close()


@pytest.mark.parametrize("text", ["-0.1", "1.1", "nan", "much"])
def test_a_ratio_beyond_its_range_is_refused(text):
    with pytest.raises(SettingInvalid, match="OTEL_TRACES_SAMPLER_ARG"):
        sinks_of(
            Settings(otel_endpoint="http://127.0.0.1:1"),
            ManualClock(),
            lambda seconds, what: None,
            {"OTEL_TRACES_SAMPLER_ARG": text},
        )


@pytest.mark.parametrize(
    ("endpoint", "ratio", "word"),
    [("localhost:4318", "", "http://HOST:4318"), ("http://127.0.0.1:1", "2", "OTEL_TRACES_SAMPLER_ARG")],
)
def test_wrong_settings_are_found_before_any_worker_starts(endpoint, ratio, word):
    with pytest.raises(SettingInvalid, match=word):
        check(Settings(otel_endpoint=endpoint), {"OTEL_TRACES_SAMPLER_ARG": ratio})


def test_checking_settings_loads_no_library():
    code = (
        "import sys; from pelton.server.sinks import check; from pelton.settings import Settings;"
        "check(Settings(otel_endpoint='http://127.0.0.1:1')); sys.exit('opentelemetry.sdk.trace' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_an_address_the_library_is_not_imported():
    code = (
        "import sys; from pelton.server.sinks import sinks_of; from pelton.settings import Settings;"
        "sinks_of(Settings(), float, lambda s, w: None); sys.exit('opentelemetry' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
