"""When which calls run together: pure decisions (`latency`, `admission`, `batcher`) and the slots they run in (`executor`)."""

from pelton.scheduling.batcher import Batcher, BatchPolicy
from pelton.scheduling.executor import Executor
from pelton.scheduling.latency import LatencyModel
from pelton.scheduling.length_batcher import LengthBatcher, LengthScheduler
from pelton.scheduling.scheduler import Scheduler

__all__ = ["BatchPolicy", "Batcher", "Executor", "LatencyModel", "LengthBatcher", "LengthScheduler", "Scheduler"]
