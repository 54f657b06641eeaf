"""Where the records of a serving process go beside its windows: log lines and traces, as the settings ask for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from pelton.errors import SettingInvalid
from pelton.records import Record
from pelton.records.call_log import CallLog, Later
from pelton.settings import Settings

RATIO_VARIABLE: Final = "OTEL_TRACES_SAMPLER_ARG"  # OpenTelemetry's own name for it
RATIO: Final = 0.01


class ClosingSink(Protocol):
    """A sink that keeps something back until it is closed."""

    def __call__(self, records: Sequence[Record]) -> None:
        """Takes a lot of records."""

    def close(self) -> None:
        """Gives out what it keeps, in a bounded time. Nothing comes after."""


def sinks_of(
    settings: Settings, clock: Callable[[], float], later: Later, environment: Mapping[str, str] = os.environ
) -> list[ClosingSink]:
    """The sinks of one process. `clock` times the records; `later` is its event loop's `call_later`.

    Raises ExtraMissing where traces are asked for without the extra, SettingInvalid for a wrong address or ratio."""
    sinks: list[ClosingSink] = [CallLog(later, slow_ms=settings.slow_ms, every=settings.access_log)]
    if settings.otel_endpoint:
        from pelton.records.traces import Traces

        sinks.append(Traces(settings.otel_endpoint, clock, ratio=_ratio(environment)))
    return sinks


def check(settings: Settings, environment: Mapping[str, str] = os.environ) -> None:
    """Raises what `sinks_of` would, at once and cheaply: in the process that starts workers."""
    if settings.otel_endpoint:
        from pelton.records.traces import checked

        checked(settings.otel_endpoint)
        _ratio(environment)


def _ratio(environment: Mapping[str, str]) -> float:
    """The share of calls without a traceparent that is traced."""
    text = environment.get(RATIO_VARIABLE, "") or str(RATIO)
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise SettingInvalid(f"{RATIO_VARIABLE} must be a number from 0 to 1, not {text!r}")
    return ratio
