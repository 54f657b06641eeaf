"""Preprocessing that is worth a thread: pictures, sounds, tokenizers. Its queue is bounded by time, as the model's is.

Without a bound, a server whose pictures take longer to decode than to classify would queue them without end and answer
every caller late.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from pelton.errors import Cancelled, DeadlineExceeded, ModelFailed, Overloaded, PeltonError
from pelton.transforms import Prepare, Prepared
from pelton.types import Call

log = logging.getLogger(__name__)

RATE: Final = 0.1  # how fast a model's seconds per instance follow what is measured

Ready = Callable[[Call, "Prepared | PeltonError"], None]


class Preparation:
    """The threads that prepare calls for all models of a process. Everything but the work itself runs on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, workers: int, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._workers = workers
        self._clock = clock
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pelton-prepare")
        self._seconds: dict[str, float] = {}  # per instance, by model
        self._waiting = 0.0  # predicted seconds of work that was taken on and is not done
        self._calls = 0

    def start(self, model: str, call: Call, prepare: Prepare, after: float, ready: Ready) -> None:
        """Prepares `call` in a thread and hands the result to `ready` on the loop.

        `after`: seconds that the model will need behind what it has; 0: it is idle. Raises Overloaded where that would be too late.
        """
        fields = call.fields or {}
        instances = max([len(values) for values in fields.values()], default=1) or 1
        seconds = self._seconds.get(model, 0.0) * instances
        now = self._clock()
        if after or self._calls >= self._workers:  # else it is tried, whatever is believed of it
            finish = now + self._waiting / self._workers + seconds + after
            if finish > call.deadline:
                raise Overloaded(
                    f"preprocessing is behind: an answer would take {(finish - call.received) * 1e3:.0f} ms, "
                    f"its target is {(call.deadline - call.received) * 1e3:.0f} ms; try again",
                    retry_after=finish - call.deadline,
                )
        self._calls += 1
        self._waiting += seconds
        done = partial(self._done, model, call, instances, seconds, ready)
        self._pool.submit(self._work, call, partial(prepare, fields), done)

    def close(self) -> None:
        """Ends the threads; what has not begun is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(
        self, call: Call, prepare: Callable[[], Prepared], done: Callable[[Prepared | PeltonError, float], None]
    ) -> None:
        """In a thread."""
        begin = self._clock()
        result: Prepared | PeltonError
        if call.abandoned:
            result = Cancelled("the caller left")
        elif begin > call.deadline:
            result = _late(call, begin)
        else:
            result = attempt(prepare)
        self._loop.call_soon_threadsafe(done, result, self._clock() - begin)

    def _done(
        self,
        model: str,
        call: Call,
        instances: int,
        predicted: float,
        ready: Ready,
        result: Prepared | PeltonError,
        seconds: float,
    ) -> None:
        self._calls -= 1
        self._waiting = self._waiting - predicted if self._calls else 0.0
        if not isinstance(result, (Cancelled, Overloaded, DeadlineExceeded)):
            each = seconds / instances
            known = self._seconds.get(model, each)
            self._seconds[model] = known + RATE * (each - known)
        ready(call, result)


def attempt(prepare: Callable[[], Prepared]) -> Prepared | PeltonError:
    """Preprocessing may only fail with an error for the caller; anything else is a defect of the package."""
    try:
        return prepare()
    except PeltonError as error:
        return error
    except Exception as error:
        log.exception("preprocessing failed")
        return ModelFailed(f"preprocessing failed: {type(error).__name__}")


def _late(call: Call, now: float) -> PeltonError:
    waited = (now - call.received) * 1e3
    if call.own_deadline:
        return DeadlineExceeded(f"the call's own deadline passed after {waited:.0f} ms, before it was prepared")
    return Overloaded(f"the call waited {waited:.0f} ms to be prepared; try again", reason="late")
