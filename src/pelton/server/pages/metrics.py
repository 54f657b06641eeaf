"""`GET /metrics`: the sums of all processes in Prometheus' text form, or OpenMetrics where the client asks for it.

Made from snapshots at the moment of asking: nothing is counted a second time, and there is no global registry. Labels
are model, version, protocol, and fixed words, so the number of series is bounded by what is served; tenants are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics

from pelton.records import Histogram, Window, WindowKey
from pelton.records.snapshot import Lane, Padding, Snapshot, Streams, by_version, merged
from pelton.records.tokens import PROVIDER, TOKEN, TokenSums, operation_of

STAGES: Final = (
    ("total", "pelton_request_seconds", "From the last byte of a request to its answer, of calls that were answered."),
    ("prepare", "pelton_prepare_seconds", "Preprocessing of a call: pictures, sounds, texts, table rows."),
    ("queue", "pelton_queue_seconds", "Time that a call waited for its batch to start."),
    ("run", "pelton_run_seconds", "Run time of the batch that a call was part of."),
)
# Of language models, by the names of OpenTelemetry's semantic conventions for generative AI (1.40) as Prometheus spells
# them: what `records.tokens` calls it -> gen_ai.server.time_to_first_token and so on.
GEN_AI_TIMES: Final = (
    ("first", "gen_ai_server_time_to_first_token_seconds", "From a call's first byte to its first token."),
    ("each", "gen_ai_server_time_per_output_token_seconds", "From one token to the next, the mean of a generation."),
)
GEN_AI_TOKENS: Final = (("inputs", "input"), ("outputs", "output"))  # gen_ai.client.token.usage, by gen_ai.token.type
GEN_AI_LABELS: Final = (
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_response_model",
)
TOKEN_COUNTS: Final = (
    ("prompt", "pelton_input_tokens", "Tokens of prompts."),
    ("cached", "pelton_cached_tokens", "Tokens of prompts that the prefix cache saved; they are among the input."),
    ("completion", "pelton_output_tokens", "Tokens that were made."),
)
TOKEN_BOUNDS: Final = tuple(4**power for power in range(11))  # as the conventions advise
BATCH_BOUNDS: Final = tuple(2**power for power in range(11))
OPENMETRICS: Final = "application/openmetrics-text"
EOF: Final = b"# EOF\n"  # OpenMetrics' end
VERSION: Final = ("model", "version")
SHORT: Final = 12  # characters of a version, as headers and answers name it


def render(processes: Sequence[Snapshot], accept: str = "") -> tuple[bytes, str]:
    """(body, content type). `accept` is the client's Accept header; empty: Prometheus' text form."""
    content_type, parts = in_parts(processes, accept)
    return b"".join(parts), content_type


def in_parts(processes: Sequence[Snapshot], accept: str = "") -> tuple[str, Iterator[bytes]]:
    """Content type, and the body family by family: writing all of them at once would keep an event loop busy too long
    (12 ms for five models when it is made in one piece)."""
    # prometheus-client's own choice raises for a version that is no number, and repeats what the client sent
    asked = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    open_form = OPENMETRICS in asked
    encoder = openmetrics.generate_latest if open_form else generate_latest

    def parts() -> Iterator[bytes]:
        for family in _families(processes):
            registry = CollectorRegistry(auto_describe=False)
            registry.register(_One(family))
            text: bytes = encoder(registry)
            yield text.removesuffix(EOF)
        if open_form:
            yield EOF

    return openmetrics.CONTENT_TYPE_LATEST if open_form else CONTENT_TYPE_PLAIN_0_0_4, parts()


class _One:
    """A collector of one family, for prometheus-client's exposition."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)

    def describe(self) -> Iterable[Metric]:
        return ()


def _families(processes: Sequence[Snapshot]) -> Iterator[Metric]:
    sums = [one for process in processes for one in process.sums]
    totals = merged(msgspec.structs.replace(one, version=one.version[:SHORT], tenant="") for one in sums)
    versions = by_version(totals)
    yield from _calls(totals)
    yield from _refusals(versions)
    yield from _stages(versions)
    yield from _batches(versions)
    yield from _tokens(totals)
    yield from _lanes(processes)
    yield from _processes(processes)


def _calls(totals: Mapping[WindowKey, Window]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "pelton_requests", "Calls by how they ended; ok: answered.", labels=("model", "version", "protocol", "outcome")
    )
    rows = CounterMetricFamily(
        "pelton_rows", "Rows of calls that were answered.", labels=("model", "version", "protocol")
    )
    for key, window in sorted(totals.items(), key=lambda item: item[0]):
        for outcome, count in sorted({**window.errors, "ok": window.answered}.items()):
            if count:
                requests.add_metric((*key[:3], outcome), count)
        rows.add_metric(key[:3], window.rows)
    yield requests
    yield rows


def _refusals(versions: Mapping[tuple[str, str], Window]) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "pelton_refusals",
        "Calls that were not taken although nothing was wrong with them.",
        labels=(*VERSION, "reason"),
    )
    for key, window in sorted(versions.items(), key=lambda item: item[0]):
        for reason, count in sorted(window.refusals.items()):
            family.add_metric((*key, reason), count)
    yield family


def _stages(versions: Mapping[tuple[str, str], Window]) -> Iterator[Metric]:
    for stage, name, text in STAGES:
        family = HistogramMetricFamily(name, text, labels=VERSION)
        for key, window in _answered(versions):
            histogram = window.stages[stage]
            buckets = [(repr(edge), float(count)) for edge, count in histogram.cumulative()]
            family.add_metric(key, [*buckets, ("+Inf", float(histogram.count))], histogram.sum)
        yield family


def _batches(versions: Mapping[tuple[str, str], Window]) -> Iterator[Metric]:
    sizes = HistogramMetricFamily("pelton_batch_rows", "Rows of the batches that ran.", labels=VERSION)
    left = CounterMetricFamily(
        "pelton_batches",
        "Batches by why they left the queue: idle (all that waited), full, shape (the next row had another one), "
        "pieces (a call larger than a batch).",
        labels=(*VERSION, "reason"),
    )
    device = CounterMetricFamily("pelton_device_seconds", "Seconds that batches held the device.", labels=VERSION)
    for key, window in _answered(versions):
        counts = {size: round(batch.count) for size, batch in window.batches.items()}
        sizes.add_metric(key, _size_buckets(counts), float(sum(size * count for size, count in counts.items())))
        for reason, share in sorted(window.dispatched.items()):
            left.add_metric((*key, reason), round(share))
        device.add_metric(key, window.device_seconds)
    yield from (sizes, left, device)


def _tokens(totals: Mapping[WindowKey, Window]) -> Iterator[Metric]:
    """Generations. Nothing where no language model was asked."""
    by_operation: dict[tuple[str, str, str], TokenSums] = {}
    by_model: dict[tuple[str, str], TokenSums] = {}
    for key, window in totals.items():
        if window.tokens is not None:
            operation = operation_of(key.protocol)
            by_operation.setdefault((operation, key.model, key.version), TokenSums()).merge(window.tokens)
            by_model.setdefault((key.model, key.version), TokenSums()).merge(window.tokens)
    if not by_model:
        return
    for word, name, text in GEN_AI_TIMES:
        times = HistogramMetricFamily(name, text, labels=GEN_AI_LABELS)
        for (operation, model, version), sums in sorted(by_operation.items()):
            histogram = sums.histograms[word]
            buckets = [(repr(edge), float(count)) for edge, count in histogram.cumulative()]
            labels = (operation, PROVIDER, model, f"{model}:{version}")
            times.add_metric(labels, [*buckets, ("+Inf", float(histogram.count))], histogram.sum)
        yield times
    usage = HistogramMetricFamily(
        "gen_ai_client_token_usage", "Tokens of one call, by type.", labels=(*GEN_AI_LABELS, "gen_ai_token_type")
    )
    for (operation, model, version), sums in sorted(by_operation.items()):
        for word, kind in GEN_AI_TOKENS:
            histogram = sums.histograms[word]
            values = (operation, PROVIDER, model, f"{model}:{version}", kind)
            usage.add_metric(values, _token_buckets(histogram), round(histogram.sum / TOKEN))
    yield usage
    for field, name, text in TOKEN_COUNTS:
        count = CounterMetricFamily(name, text, labels=VERSION)
        for key2, sums in sorted(by_model.items()):
            count.add_metric(key2, getattr(sums, field))
        yield count


def _token_buckets(histogram: Histogram) -> list[tuple[str, float]]:
    sums = np.cumsum(histogram.counts)
    powers = [(bound, 8 * (bound.bit_length() - 1)) for bound in TOKEN_BOUNDS]
    buckets = [(repr(float(bound)), float(sums[min(index, len(sums) - 1)])) for bound, index in powers]
    return [*buckets, ("+Inf", float(histogram.count))]


def _size_buckets(counts: Mapping[int, int]) -> list[tuple[str, float]]:
    buckets = [
        (repr(float(bound)), float(sum(n for size, n in counts.items() if size <= bound))) for bound in BATCH_BOUNDS
    ]
    return [*buckets, ("+Inf", float(sum(counts.values())))]


def _answered(versions: Mapping[tuple[str, str], Window]) -> Iterable[tuple[tuple[str, str], Window]]:
    return sorted(
        ((key, window) for key, window in versions.items() if window.answered or window.tokens is not None),
        key=lambda item: item[0],
    )


def _lanes(processes: Sequence[Snapshot]) -> Iterator[Metric]:
    lanes: dict[tuple[str, str], list[Lane]] = {}
    states: dict[str, str] = {}
    for process in processes:
        states.update(process.states)
        for lane in process.lanes:
            lanes.setdefault((lane.model, lane.version[:SHORT]), []).append(lane)
    waiting = GaugeMetricFamily("pelton_queue_rows", "Rows that wait for a batch.", labels=VERSION)
    running = GaugeMetricFamily("pelton_running_batches", "Batches that run.", labels=VERSION)
    ready = GaugeMetricFamily(
        "pelton_model_ready", "1: the model answers; 0: it loads, failed, or was unloaded.", labels=VERSION
    )
    target = GaugeMetricFamily("pelton_target_seconds", "The latency target.", labels=VERSION)
    cap = GaugeMetricFamily("pelton_batch_rows_cap", "The largest batch that keeps the target.", labels=VERSION)
    for key, same in sorted(lanes.items()):
        waiting.add_metric(key, sum(lane.queue_rows for lane in same))
        running.add_metric(key, sum(lane.running for lane in same))
        ready.add_metric(key, float(key[0] not in states))  # in every process
        target.add_metric(key, max(lane.target for lane in same))
        cap.add_metric(key, min(lane.cap for lane in same))
    for name in sorted(states.keys() - {model for model, _ in lanes}):
        ready.add_metric((name, ""), 0.0)
    yield from (waiting, running, ready, target, cap)
    yield from _padding({key: [one.padding for one in same if one.padding] for key, same in sorted(lanes.items())})
    yield from _engines({key: [one.streams for one in same if one.streams] for key, same in sorted(lanes.items())})


def _padding(lanes: Mapping[tuple[str, str], Sequence[Padding]]) -> Iterator[Metric]:
    """What is computed only because rows of a batch differ in length."""
    if not any(lanes.values()):
        return
    real = CounterMetricFamily("pelton_padding_real_tokens", "Tokens of texts that ran.", labels=VERSION)
    wasted = CounterMetricFamily("pelton_padding_tokens", "Tokens that only filled rows up.", labels=VERSION)
    queued = GaugeMetricFamily("pelton_queue_tokens", "Tokens that wait for a batch.", labels=VERSION)
    cap = GaugeMetricFamily("pelton_batch_tokens_cap", "The largest batch that keeps the target.", labels=VERSION)
    for key, same in lanes.items():
        if same:
            real.add_metric(key, sum([one.real for one in same]))
            wasted.add_metric(key, sum([one.computed - one.real for one in same]))
            queued.add_metric(key, sum([one.queued for one in same]))
            cap.add_metric(key, min([one.cap for one in same]))
    yield from (real, wasted, queued, cap)


def _engines(engines: Mapping[tuple[str, str], Sequence[Streams]]) -> Iterator[Metric]:
    """What the engines of language models have to do now."""
    if not any(engines.values()):
        return
    gauges = {
        "running": GaugeMetricFamily("pelton_generations_running", "Generations in the engine.", labels=VERSION),
        "waiting": GaugeMetricFamily(
            "pelton_generations_waiting", "Generations that wait for a place in the engine.", labels=VERSION
        ),
        "places": GaugeMetricFamily("pelton_engine_streams", "Generations that can run at once.", labels=VERSION),
        "kv_used": GaugeMetricFamily(
            "pelton_kv_cache_usage_ratio", "Share of the KV memory that is in use, 0 to 1.", labels=VERSION
        ),
    }
    busy = CounterMetricFamily("pelton_engine_busy_seconds", "Seconds of all steps of the engine.", labels=VERSION)
    restarts = CounterMetricFamily(
        "pelton_engine_restarts", "How often the engine's process has ended by itself.", labels=VERSION
    )
    for key, same in engines.items():
        if not same:
            continue
        for field, gauge in gauges.items():
            values = [getattr(one, field) for one in same]
            gauge.add_metric(key, max(values) if field == "kv_used" else sum(values))
        busy.add_metric(key, sum(one.busy_seconds for one in same))
        restarts.add_metric(key, sum(one.restarts for one in same))
    yield from (*gauges.values(), busy, restarts)


def _processes(processes: Sequence[Snapshot]) -> Iterator[Metric]:
    build = InfoMetricFamily("pelton_build", "The release that runs.", labels=())
    for version, python in sorted({(process.software, process.python) for process in processes}):
        build.add_metric((), {"version": version, "python": python})
    yield build
    in_flight = sum(process.in_flight for process in processes)
    yield GaugeMetricFamily("pelton_in_flight", "Calls that were taken and are not answered yet.", in_flight)
    counted = [process.connections for process in processes if process.connections is not None]
    if counted:
        yield GaugeMetricFamily("pelton_connections", "Open client connections.", sum(counted))
    yield from _usage(processes)


def _usage(processes: Sequence[Snapshot]) -> Iterator[Metric]:
    """The names that all Prometheus clients use; with the label `worker` where several processes share the port."""
    labels = ("worker",) if len(processes) > 1 else ()
    cpu = CounterMetricFamily("process_cpu_seconds", "Processor time used.", labels=labels)
    gauges = {
        "rss_bytes": GaugeMetricFamily("process_resident_memory_bytes", "Memory held.", labels=labels),
        "open_fds": GaugeMetricFamily("process_open_fds", "Open file descriptors.", labels=labels),
        "max_fds": GaugeMetricFamily("process_max_fds", "Limit of open file descriptors.", labels=labels),
        "started": GaugeMetricFamily("process_start_time_seconds", "Start, in seconds since 1970.", labels=labels),
        "children": GaugeMetricFamily(
            "pelton_child_processes_resident_memory_bytes",
            "Memory held by engines of language models and other processes that the server has started.",
            labels=labels,
        ),
    }
    for process in processes:
        values = (str(process.worker),) if labels else ()
        usage = process.usage
        cpu.add_metric(values, usage.cpu_seconds)
        told = (usage.rss_bytes, usage.open_fds, usage.max_fds, usage.started, usage.children_rss_bytes)
        for family, value in zip(gauges.values(), told, strict=True):
            if value is not None:
                family.add_metric(values, value)
    yield cpu
    yield from gauges.values()
