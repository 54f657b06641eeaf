"""/metrics and snapshots: what was counted is what was called."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from pelton.errors import InvalidInput
from pelton.records import Histogram, Record, Window, WindowKey
from pelton.records.snapshot import Lane, Padding, Snapshot, Usage, by_version, merged, sums_of
from pelton.server.pages.metrics import render

VERSION = "a" * 64


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "model": "m", "version": VERSION, "protocol": "native", "tenant": "", "rows": 1, "batch_rows": 1, "reason": "idle",
        "error": "", "at": 10.0, "prepare": 0.0, "queue": 0.001, "run": 0.002, "total": 0.004, "device": 0.002,
    }  # fmt: skip
    return Record(**{**values, **changes})


def snapshot(records: list[Record], worker: int = 0, **changes: Any) -> Snapshot:
    totals: dict[WindowKey, Window] = {}
    for one in records:
        totals.setdefault(WindowKey(one.model, one.version, one.protocol, one.tenant), Window()).add([one])
    values: dict[str, Any] = {
        "software": "1.0", "python": "3.11", "in_flight": 1, "usage": Usage(2.0, 1e9, 1000, 10, 100),
        "sums": sums_of(totals, 1e9), "lanes": [Lane("m", VERSION, 0.2, 8, 3, 1)], "worker": worker,
    }  # fmt: skip
    return Snapshot(**{**values, **changes})


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def told(processes: list[Snapshot], name: str, **labels: str) -> float:
    body, _ = render(processes)
    return sum(
        value
        for (found, given), value in samples(body.decode()).items()
        if found == name and set(labels.items()) <= set(given)
    )


BATCH = [record(rows=rows, batch_rows=4, reason="full", device=0.002 * rows / 4) for rows in (1, 1, 2)]
REFUSED = record(error="refused", reason="overloaded", batch_rows=0, rows=1)
FAILED = record(error="model_failed", protocol="oip_v2")


def test_calls_are_counted_once_with_their_outcome() -> None:
    one = [snapshot([*BATCH, REFUSED, REFUSED, FAILED])]
    assert told(one, "pelton_requests_total", outcome="ok", model="m", version="a" * 12) == 3
    assert told(one, "pelton_requests_total", outcome="refused") == 2
    assert told(one, "pelton_requests_total", outcome="model_failed", protocol="oip_v2") == 1
    assert told(one, "pelton_requests_total") == 6
    assert told(one, "pelton_rows_total") == 4
    assert told(one, "pelton_refusals_total", reason="overloaded") == 2


def test_the_calls_of_one_batch_make_one_batch() -> None:
    one = [snapshot([*BATCH, record()])]
    assert told(one, "pelton_batches_total", reason="full") == 1
    assert told(one, "pelton_batches_total", reason="idle") == 1
    assert told(one, "pelton_batch_rows_count") == 2
    assert told(one, "pelton_batch_rows_sum") == 5
    assert told(one, "pelton_batch_rows_bucket", le="1.0") == 1
    assert told(one, "pelton_batch_rows_bucket", le="4.0") == 2
    assert told(one, "pelton_device_seconds_total") == pytest.approx(0.004)


def test_latency_histograms_hold_every_answered_call() -> None:
    one = [snapshot([record(total=0.5), record(total=0.001), REFUSED])]
    assert told(one, "pelton_request_seconds_count") == 2
    assert told(one, "pelton_request_seconds_sum") == pytest.approx(0.501)
    assert told(one, "pelton_request_seconds_bucket", le="+Inf") == 2
    assert told(one, "pelton_request_seconds_bucket", le="0.016384") == 1
    assert told(one, "pelton_prepare_seconds_count") == 0


def test_processes_add_up() -> None:
    two = [snapshot([*BATCH]), snapshot([record()], worker=1, connections=4)]
    assert told(two, "pelton_requests_total", outcome="ok") == 4
    assert told(two, "pelton_request_seconds_count") == 4
    assert told(two, "pelton_in_flight") == 2
    assert told(two, "pelton_connections") == 4
    assert told(two, "pelton_queue_rows", model="m") == 6
    assert told(two, "pelton_target_seconds") == 0.2
    assert told(two, "process_cpu_seconds_total", worker="1") == 2
    assert told(two, "process_cpu_seconds_total") == 4


def test_a_model_is_ready_only_where_no_process_says_otherwise() -> None:
    good, bad = snapshot([]), snapshot([], worker=1, lanes=[], states={"m": "it failed", "n": "it is loading"})
    assert told([good], "pelton_model_ready", model="m") == 1
    assert told([good, bad], "pelton_model_ready", model="m") == 0
    body, _ = render([good, bad])
    assert 'pelton_model_ready{model="n",version=""} 0.0' in body.decode()


def test_tenants_are_no_label() -> None:
    one = [snapshot([record(tenant=f"t{i}") for i in range(20)])]
    body, _ = render(one)
    assert body.decode().count("pelton_requests_total{") == 1
    assert told(one, "pelton_requests_total") == 20


def test_openmetrics_is_given_to_those_who_ask_for_it() -> None:
    body, kind = render([snapshot([*BATCH, FAILED])], "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_openmetrics(body.decode())}
    assert families["pelton_requests"].type == "counter"
    assert families["pelton_request_seconds"].type == "histogram"
    assert families["pelton_build"].type == "info"
    assert body.endswith(b"# EOF\n")
    _, plain = render([snapshot([])], "text/html")
    assert plain.startswith("text/plain")


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=abc",
        "text/plain;version=x.y",
        ";;;,,,",
        "*/*",
        "application/openmetrics-text;",
    ],
)
def test_no_accept_header_breaks_the_answer_or_comes_back_in_it(accept: str) -> None:
    body, kind = render([snapshot([record()])], accept)
    assert kind in (
        "text/plain; version=0.0.4; charset=utf-8",
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    )
    assert b"pelton_requests_total{" in body


def test_a_snapshot_survives_the_way_to_another_process() -> None:
    sent = snapshot([*BATCH, REFUSED, FAILED], states={"x": "it is loading"})
    received = Snapshot.from_bytes(sent.to_bytes())
    assert received == sent
    assert render([received]) == render([sent])


@pytest.mark.parametrize("data", [b"", b"\x81", b"\xc1" * 50, b"\x91" * 100_000, snapshot([]).to_bytes()[:-3]])
def test_bytes_that_are_no_snapshot_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="not a snapshot"):
        Snapshot.from_bytes(data)


def test_windows_come_back_from_a_snapshot_as_they_went() -> None:
    records = [*BATCH, record(prepare=0.1), REFUSED]
    whole = Window()
    whole.add(records)
    [window] = by_version(merged(snapshot(records).sums)).values()
    assert (window.answered, window.rows, window.errors, window.refusals) == (4, 5, {"refused": 1}, {"overloaded": 1})
    assert window.dispatched == pytest.approx(whole.dispatched)
    assert {size: batch.count for size, batch in window.batches.items()} == pytest.approx({4: 1.0, 1: 1.0})
    for stage, histogram in whole.stages.items():
        assert window.stages[stage].counts.tolist() == histogram.counts.tolist()
        assert math.isclose(window.stages[stage].sum, histogram.sum)
    assert window.last_answer == pytest.approx(1e9 + 10)


def test_buckets_that_do_not_exist_are_left_out() -> None:
    one = snapshot([record()])
    broken = one.sums[0].stages["total"].counts
    broken[10_000] = 5
    [window] = merged(one.sums).values()
    assert isinstance(window.stages["total"], Histogram)
    assert window.stages["total"].count == 1


def test_metrics_of_a_running_server_count_the_calls_that_were_made(own_server: Any) -> None:
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=own_server.url) as client:
        for _ in range(5):
            assert client.post("/predict/linear", json={"x": [1, 2, 3]}).status_code == 200
        assert client.post("/v1/models/linear:predict", json={"instances": [[1, 2, 3]] * 7}).status_code == 200
        assert client.post("/predict/linear", json={"x": [1, 2]}).status_code == 400
        assert client.post("/predict/none", json={"x": [1, 2]}).status_code == 404
        page = client.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=")
        found = samples(page.text)

        def value(name: str, **labels: str) -> float:
            return sum(v for (n, given), v in found.items() if n == name and set(labels.items()) <= set(given))

        assert value("pelton_requests_total", model="linear", protocol="native", outcome="ok") == 5
        assert value("pelton_requests_total", model="linear", protocol="kserve_v1", outcome="ok") == 1
        assert value("pelton_requests_total", model="linear", outcome="invalid") == 1
        assert value("pelton_requests_total", model="", outcome="not_found") == 1
        assert value("pelton_rows_total", model="linear") == 12
        assert value("pelton_batch_rows_sum", model="linear") == 12
        assert value("pelton_request_seconds_count", model="linear") == 6
        assert value("pelton_batches_total", model="linear") == value("pelton_batch_rows_count", model="linear") == 6
        assert value("pelton_model_ready", model="linear") == 1
        assert value("pelton_in_flight") == 0
        assert value("process_resident_memory_bytes") > 1e7
        assert value("process_open_fds") > 3
        again = samples(client.get("/metrics").text)
        assert {k: v for k, v in again.items() if k[0].startswith("pelton_")} == {
            k: v for k, v in found.items() if k[0].startswith("pelton_")
        }


def test_invented_model_names_make_no_series(visit: Callable[..., Any]) -> None:
    async def test(house: Any) -> None:
        from pelton.errors import NotFound

        for i in range(100):
            house.engine.reject(f"name{i}", "native", NotFound("no"), house.engine.clock())
        text = (await house.ask("GET", "/metrics")).body.decode()
        assert text.count("pelton_requests_total{") == 1
        assert 'model="",outcome="not_found",protocol="native",version=""} 100.0' in text

    visit(test, "linear")


def test_padding_of_all_processes_is_added_up_and_models_of_fixed_rows_have_none():
    lane = Lane("texts", VERSION, 0.2, 128, 3, 1, padding=Padding(real=900, computed=1000, queued=64, cap=512))
    plain = Lane("m", VERSION, 0.2, 8, 3, 1)
    found = samples(render([snapshot([], worker, lanes=[plain, lane]) for worker in range(2)])[0].decode())
    labels = (("model", "texts"), ("version", VERSION[:12]))
    assert found["pelton_padding_real_tokens_total", labels] == 1800
    assert found["pelton_padding_tokens_total", labels] == 200
    assert found["pelton_queue_tokens", labels] == 128
    assert found["pelton_batch_tokens_cap", labels] == 512
    assert not [name for name, of in found if "padding" in name and ("model", "m") in of]
    assert Snapshot.from_bytes(snapshot([], lanes=[lane]).to_bytes()).lanes == [lane]
