"""The one place where a settled call becomes a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pelton import errors
from pelton.engine.stream import Stream
from pelton.records import Record, TokenUsage
from pelton.types import Batch, Call, Outcome

# Short fixed words: they are metric labels.
KINDS: Final[tuple[tuple[type[errors.PeltonError], str], ...]] = (
    (errors.Cancelled, "cancelled"),
    (errors.Refused, "refused"),
    (errors.DeadlineExceeded, "deadline"),
    (errors.InvalidInput, "invalid"),
    (errors.NotFound, "not_found"),
    (errors.Unsupported, "unsupported"),
    (errors.ModelFailed, "model_failed"),
)


def error_kind(error: errors.PeltonError) -> str:
    """The metric word of an error."""
    for kind, word in KINDS:
        if isinstance(error, kind):
            return word
    return "internal"


def records_of(model: str, version: str, batch: Batch, calls: Sequence[Call]) -> list[Record]:
    """What is kept of the calls of a batch that were answered: `record_of` for all of them at once."""
    now, started, run, size, reason = batch.finished, batch.started, batch.run_seconds, batch.rows, batch.reason
    share = run / size
    return [
        Record(
            model, version, call.protocol, call.tenant, call.rows, size, reason, "",
            now, call.prepared, started - call.queued, run, now - call.received, share * call.rows,
            call.request_id, call.trace, call.route, call.key,
        )
        for call in calls
    ]  # fmt: skip


def record_of(model: str, version: str, call: Call, outcome: Outcome, now: float) -> Record:
    """What is kept of a call. A call that ran has its batch; one that was refused has none."""
    if isinstance(outcome, list):
        kind, reason = "", ""
    else:
        kind = error_kind(outcome)
        reason = outcome.reason if isinstance(outcome, errors.Refused) else ""
    if call.abandoned:
        kind = "cancelled"
    batch: Batch | None = call.batch
    if batch is None:
        return Record(
            model, version, call.protocol, call.tenant, call.rows, 0, reason, kind,
            now, call.prepared, 0.0, 0.0, now - call.received, 0.0, call.request_id, call.trace, call.route, call.key,
        )  # fmt: skip
    rows, run = call.rows, batch.run_seconds
    device = run * rows / batch.rows if batch.usage is None else batch.device
    return Record(
        model, version, call.protocol, call.tenant, rows, batch.rows, reason or batch.reason, kind,
        now, call.prepared, batch.started - call.queued, run, now - call.received, device,
        call.request_id, call.trace, call.route, call.key, batch.usage,
    )  # fmt: skip


def record_of_stream(model: str, version: str, stream: Stream) -> Record:
    """What is kept of a generation. `run` is its time in the engine, `device` its share of the engine's steps."""
    generation, receipt, error = stream.generation, stream.generation.receipt, stream.error
    kind = "" if error is None else error_kind(error)
    return Record(
        model, version, generation.protocol, generation.tenant, 1, 1 if stream.begun else 0,
        error.reason if isinstance(error, errors.Refused) else "", kind,
        stream.ended, 0.0, receipt.queue, stream.ended - stream.begun if stream.begun else 0.0,
        stream.ended - generation.received, receipt.device,
        generation.request_id, generation.trace, generation.route, generation.key, usage_of(stream),
    )  # fmt: skip


def usage_of(stream: Stream) -> TokenUsage:
    """The tokens of a generation and their times."""
    receipt = stream.generation.receipt
    first = stream.first - stream.generation.received if stream.first else 0.0
    return TokenUsage(
        receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens, first, receipt.prefill, receipt.decode,
        stream.finish, receipt.engine,
    )  # fmt: skip
