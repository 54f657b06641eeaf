"""Log lines on standard error: as text for people, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final

from pelton.settings import Settings

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class JsonLines(logging.Formatter):
    """One JSON object a line. `extra={"call": {...}}` adds the fields of a call."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        call = record.__dict__.get("call")
        if isinstance(call, dict):
            line.update(call)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(settings: Settings) -> None:
    """Sets the process's logging up."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=LEVELS[settings.log_level], handlers=[handler], force=True)


class Told(logging.Handler):
    """Writes to the standard error of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def tell_progress() -> None:
    """Shows on standard error what importers are doing, for commands that take their time."""
    importers = logging.getLogger("pelton.importers")
    if not any(isinstance(handler, Told) for handler in importers.handlers):
        importers.addHandler(Told())
    importers.setLevel(logging.INFO)
