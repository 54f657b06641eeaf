"""Fakes that belong to the product: a clock that stands still, and models whose answers and faults are known.

They need no test framework. Use them to test what is built on Pelton without weights, sleeping or luck.
"""

from pelton.testing.clock import ManualClock
from pelton.testing.models import EchoModel, FaultyModel, SleepyModel

__all__ = ["EchoModel", "FaultyModel", "ManualClock", "SleepyModel"]
