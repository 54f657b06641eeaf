"""Log lines about calls, made from records: errors of our making, slow calls, refusals, and on request every call.

No input, header or secret is ever logged: a line holds only what a record holds. Lines are bounded, so that an outage
does not also fill the disk: of each model and kind some lines a second, then one that counts those left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from pelton.records.record import Record
from pelton.records.trace_context import parse

log = logging.getLogger(__name__)

OURS: Final = frozenset({"model_failed", "internal"})  # kinds of errors that are never the caller's doing
PERIOD: Final = 1.0  # seconds
SHORT: Final = 12  # characters of a version, as headers and metrics show it

Later = Callable[[float, Callable[[], None]], object]  # seconds, what to do then: an event loop's `call_later`


class _Count(msgspec.Struct):
    """Lines of one model and kind in the period that runs, and those left out of it."""

    written: int = 0
    left_out: int = 0


class CallLog:
    """A sink of records that writes log lines, each with `extra={"call": {...}}`.

    Errors of our making at ERROR; calls slower than `slow_ms` (0: none; generations: to the first token) at WARNING; refusals summed up per model and
    period at WARNING; with `every`, each call that has no line yet at INFO. Belongs to one thread, that of `later`.
    """

    def __init__(
        self,
        later: Later,
        *,
        slow_ms: float = 0.0,
        every: bool = False,
        per_period: int = 10,
        logger: logging.Logger = log,
    ) -> None:
        self._later = later
        self._slow = slow_ms / 1e3 if slow_ms else float("inf")
        self._every = every
        self._limit = per_period
        self._log = logger
        self._counts: dict[tuple[str, str], _Count] = {}
        self._refused: dict[str, dict[str, int]] = {}
        self._period_runs = False

    def __call__(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.error == "refused":
                reasons = self._refused.setdefault(record.model, {})
                reasons[record.reason] = reasons.get(record.reason, 0) + 1
                written = False
            elif record.error in OURS:
                written = self._bounded(logging.ERROR, record.error, record)
            elif (record.total if record.usage is None else record.usage.first) > self._slow:
                written = self._bounded(logging.WARNING, "slow", record)
            else:
                written = False
            if self._every and not written:
                self._write(logging.INFO, record.error or "ok", record)
        if (self._counts or self._refused) and not self._period_runs:
            self._period_runs = True
            self._later(PERIOD, self._end_period)

    def close(self) -> None:
        """Writes what is still summed up."""
        self._sum_up()

    def _bounded(self, level: int, kind: str, record: Record) -> bool:
        count = self._counts.setdefault((record.model, kind), _Count())
        if count.written >= self._limit:
            count.left_out += 1
            return False
        count.written += 1
        self._write(level, kind, record)
        return True

    def _write(self, level: int, kind: str, record: Record) -> None:
        self._log.log(
            level,
            "model %s: %s, %d rows, %.1f ms (request %s)",
            record.model or "-",
            kind,
            record.rows,
            record.total * 1e3,
            record.request_id or "-",
            extra={"call": fields(record)},
        )

    def _end_period(self) -> None:
        self._period_runs = False
        self._sum_up()

    def _sum_up(self) -> None:
        counts, self._counts = self._counts, {}
        refused, self._refused = self._refused, {}
        for (model, kind), count in counts.items():
            if count.left_out:
                self._log.log(
                    logging.WARNING if kind == "slow" else logging.ERROR,
                    "model %s: %s, %d more calls like this in the last second",
                    model or "-",
                    kind,
                    count.left_out,
                    extra={"call": {"model": model, "error": "" if kind == "slow" else kind, "calls": count.left_out}},
                )
        for model, reasons in refused.items():
            self._log.warning(
                "model %s: %d calls were refused in the last second (%s)",
                model or "-",
                sum(reasons.values()),
                ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items())),
                extra={
                    "call": {"model": model, "error": "refused", "calls": sum(reasons.values()), "reasons": reasons}
                },
            )


def fields(record: Record) -> dict[str, str | int | float]:
    """What a line says about a call. Times are milliseconds; `error` is empty for an answer."""
    parent = parse(record.trace) if record.trace else None
    line: dict[str, str | int | float] = {
        "request_id": record.request_id,
        "trace_id": parent.trace_id if parent else "",
        "model": record.model,
        "version": record.version[:SHORT],
        "protocol": record.protocol,
        "rows": record.rows,
        "batch_rows": record.batch_rows,
        "reason": record.reason,
        "queue_ms": _ms(record.queue),
        "run_ms": _ms(record.run),
        "total_ms": _ms(record.total),
        "error": record.error,
    }
    usage = record.usage
    if usage is not None:
        line |= {
            "engine": usage.engine,
            "prompt_tokens": usage.prompt,
            "cached_tokens": usage.cached,
            "completion_tokens": usage.completion,
            "first_token_ms": _ms(usage.first),
            "per_token_ms": _ms(usage.per_token),
            "device_ms": _ms(record.device),
            "finish": usage.finish,
        }
    return line


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
