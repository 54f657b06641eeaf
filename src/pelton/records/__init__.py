"""One record per call; records fold into windows, windows add up. Metrics, reports and decisions read windows."""

from pelton.records.histogram import Histogram
from pelton.records.ledger import Ledger
from pelton.records.record import Record, TokenUsage
from pelton.records.window import Window, WindowKey

__all__ = ["Histogram", "Ledger", "Record", "TokenUsage", "Window", "WindowKey"]
